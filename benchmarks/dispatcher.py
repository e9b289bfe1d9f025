"""Measures the loop: episodes per hour with and without overlap, and one controller at 5,000 episodes.

python -m benchmarks.dispatcher rates [--updates 6] [--max-lag 2]
    Sandboxes and test runs are real; engine and trainer only take time.
python -m benchmarks.dispatcher controller [--episodes 5000] [--seconds 120]
    Engine, trainer and sandboxes only take time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.options import at_least_one
from selfplay.agent.chat import ChatFormat, load_tokenizer, policy_path
from selfplay.agent.local_host import LocalHost
from selfplay.agent.tool_format import format_action
from selfplay.agent.workspaces import EpisodeContext, sandbox_limits
from selfplay.config import Config, load_config
from selfplay.curriculum.rows import BugRow
from selfplay.curriculum.store import Store
from selfplay.engines.base import Completion, Engine, GenerationRequest, Sampling
from selfplay.engines.scripted_engine import ScriptedEngine
from selfplay.metrics import Value
from selfplay.orchestrator.build import check_targets
from selfplay.orchestrator.context import RunContext
from selfplay.orchestrator.loop import TrainLoop
from selfplay.orchestrator.run_folder import create_run
from selfplay.repositories.environment import Environment
from selfplay.repositories.prepare import Preparer
from selfplay.repositories.specs import read_repository_list
from selfplay.runtime.resources import resource
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import WORKSPACE, ExecResult, SandboxSpec
from selfplay.source.trees import FileEntry, Tree
from selfplay.teacher.player import TeacherPlayer
from selfplay.verdicts.test_runs import TestRunner
from selfplay.viewing.progress import TrainProgress

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))
from simulated_game import Script, SimulatedTrainer, an_environment
from tiny_bugs import CLAMP_BUG, CLAMP_TEST, CLAMP_WEAKENED, make_artifact
from tiny_repository import FILES

if TYPE_CHECKING:
    import torch

RATIO_GOAL = 1.55


class SharedSpeed:
    """The speed of a server.

    Each conversation gets `tokens_per_s`. More than `at_once` conversations share the speed of `at_once`.
    """

    def __init__(self, tokens_per_s: float, at_once: int) -> None:
        self.tokens_per_s, self.at_once, self.tokens = tokens_per_s, at_once, 0.0
        self._changed, self._active, self._served, self._at = threading.Condition(), 0, 0.0, time.monotonic()

    def take(self, tokens: float) -> None:
        """Return once `tokens` were served to this caller."""
        with self._changed:
            self._advance(+1)
            due = self._served + tokens
            while (left := due - self._served) > 1e-6:
                self._changed.wait(left / self._each())
                self._advance()
            self.tokens += tokens
            self._advance(-1)

    def _each(self) -> float:
        return self.tokens_per_s * min(1.0, self.at_once / self._active)

    def _advance(self, arrived: int = 0) -> None:
        """Add the tokens that each active conversation got since the last call. Then count arrivals."""
        now = time.monotonic()
        self._served += self._each() * (now - self._at) if self._active else 0.0
        self._at, self._active = now, self._active + arrived
        if arrived:
            self._changed.notify_all()


class MemorySink:
    """Keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Value]] = []

    def write(self, row: Mapping[str, Value]) -> None:
        self.rows.append(dict(row))

    def close(self) -> None:
        pass


@dataclass
class TimedEngine:
    """Takes the time of a served model before it answers. Lengths of thoughts are log-normal, as an agent's.

    thought_tokens  median length of a thought
    spread          standard deviation of the logarithm of that length
    """

    engine: Engine
    speed: SharedSpeed
    thought_tokens: float
    spread: float = 0.8

    @property
    def weight_version(self) -> int:
        return self.engine.weight_version

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        completions = self.engine.generate(requests, sampling)
        for request, completion in zip(requests, completions, strict=True):
            thought = random.Random(request.seed).lognormvariate(math.log(self.thought_tokens), self.spread)
            self.speed.take(thought + len(completion.token_ids))
        return completions

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        self.engine.load_weights(weights, version)

    def close(self) -> None:
        self.engine.close()


def play(
    config: Config,
    engine: Engine,
    chat: ChatFormat,
    backend: Any,
    environments: dict[str, Environment],
    step_s: float,
    bugs: Any = (),
) -> list[dict[str, Any]]:
    """Play a whole run and return its rows of metrics."""
    with tempfile.TemporaryDirectory(prefix="selfplay-bench-") as folder:
        run, config = create_run(
            config.model_copy(update={"run": config.run.model_copy(update={"folder": folder})}),
            "",
            datetime.now(),
        )
        limits, labels, sink = (
            sandbox_limits(config),
            {"run": "bench", "owner": str(os.getpid())},
            MemorySink(),
        )
        with (
            Store.open(run.database) as store,
            TrainProgress(Console(quiet=True), config.train.updates) as progress,
        ):
            for bug in bugs:
                store.add_bug(bug)
            trainer: Any = SimulatedTrainer(Script(step_s=step_s))
            tests = TestRunner(backend, config.validator, limits, labels)
            episodes = EpisodeContext(config, engine, chat, backend, limits)
            host = LocalHost(episodes, environments, tests)
            context = RunContext(run, store, environments, episodes, host, trainer, sink, progress, labels)
            asyncio.run(TrainLoop(context).run())
        return sink.rows


# ---- episodes an hour


def rates(arguments: argparse.Namespace) -> None:
    """Print episodes per hour and idle shares, without and with overlapped updates."""
    console = Console()
    backend, _ = open_backend("bubblewrap")
    recipe = resource("recipes") / "quickstart.toml"
    settings = [
        f"train.updates={arguments.updates}",
        "train.solver_groups=3",
        f"train.group_size={arguments.group_size}",
        f"train.max_async_updates={arguments.ahead}",
        "engine.type=scripted",
    ]
    config = load_config(recipe, settings)
    preparer = Preparer(backend, config, sandbox_limits(config), console)
    specs = read_repository_list(resource("recipes") / "quickstart-repos.txt")
    environments = preparer.prepare_all(specs)
    check_targets(config, environments, console.print)
    tokenizer = load_tokenizer(policy_path("carried"))
    chat = ChatFormat(tokenizer)
    pace = f"{arguments.tokens_per_s:g} tokens/s for up to {arguments.at_once}"
    pace += f", thoughts of {arguments.thought:g} tokens"
    table = Table(title=f"episodes per hour: {pace}, steps of {arguments.step:g} s")
    for name in (
        "max_lag",
        "wall s",
        "episodes",
        "episodes/h",
        "engine idle",
        "engine used",
        "trainer idle",
        "lag",
    ):
        table.add_column(name, justify="right")
    found = {}
    for max_lag in (0, arguments.max_lag):
        scripted = ScriptedEngine(
            TeacherPlayer([environment.tree for environment in environments.values()]), tokenizer
        )
        speed = SharedSpeed(arguments.tokens_per_s, arguments.at_once)
        engine = TimedEngine(scripted, speed, arguments.thought)
        started = time.monotonic()
        rows = play(
            config.model_copy(update={"max_lag": max_lag}),
            engine,
            chat,
            backend,
            environments,
            arguments.step,
        )
        wall_s = time.monotonic() - started
        episodes = sum(row["injector/episodes"] + row["solver/episodes"] for row in rows)
        found[max_lag] = episodes * 3600 / wall_s
        mean = {name: sum(row[f"idle/{name}"] for row in rows) / len(rows) for name in ("engine", "trainer")}
        lag = f"{max(row['lag/max'] for row in rows)} at most"
        used = speed.tokens / (speed.tokens_per_s * speed.at_once * wall_s)
        shares = (f"{share:.0%}" for share in (mean["engine"], used, mean["trainer"]))
        table.add_row(str(max_lag), f"{wall_s:.0f}", str(episodes), f"{found[max_lag]:.0f}", *shares, lag)
        print(json.dumps(rows), file=sys.stderr)
    console.print(table)
    ratio = found[arguments.max_lag] / found[0]
    console.print(f"overlapped / in turn: {ratio:.2f} (goal {RATIO_GOAL})")


# ---- one controller


@dataclass
class TimedSandbox:
    """Stores the workspace. A command takes some time and prints twelve lines."""

    spec: SandboxSpec
    command_s: float
    tar: bytes = b""

    def run(
        self, command: str, timeout_s: float = 60.0, output_bytes: int | None = None, stdin: bytes = b""
    ) -> ExecResult:
        time.sleep(self.command_s * random.uniform(0.2, 1.8))
        output = "\n".join(f"./package/module_{n}.py:{n}:def function_{n}(first, second):" for n in range(12))
        return ExecResult(0, output.encode(), False, False, self.command_s)

    def write_archive(self, folder: str, tar: bytes) -> None:
        if folder == WORKSPACE:
            self.tar = tar

    def read_archive(self, folder: str, max_bytes: int) -> bytes:
        return self.tar

    def close(self) -> None:
        pass


@dataclass
class TimedBackend:
    command_s: float
    watch: Watch
    name: str = "simulated"

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[TimedSandbox]:
        self.watch.count(+1)
        try:
            yield TimedSandbox(spec, self.command_s)
        finally:
            self.watch.count(-1)


class TimedCompletions:
    """The engine of an agent that looks around for `turns` turns on average and submits nothing.

    It decodes and computes nothing.
    """

    weight_version = 0

    def __init__(self, tokenizer: Any, turn_s: float, turns: int) -> None:
        stop = (int(tokenizer.eos_token_id),)
        thought = (
            "The function that fails is called from several places, so where it is used comes first. " * 8
        )

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False)) + stop

        self._looks = [
            ids(f"{thought}\n{format_action('bash', f'grep -rn function_{n} package')}") for n in range(128)
        ]
        self._submit = ids(format_action("submit", ""))
        self._turn_s, self._turns = turn_s, turns

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        done = []
        for request in requests:
            episode, _, turn = request.tag.rpartition("/")
            # Lengths are uniform from 1 to twice the mean, so episodes end evenly from the first minute on.
            last = 1 + random.Random(episode).randrange(2 * self._turns)
            tokens = self._looks[int(turn) % len(self._looks)] if int(turn) < last else self._submit
            time.sleep(self._turn_s * random.uniform(0.2, 1.8))
            done.append(Completion(tokens, (-0.5,) * len(tokens), 0, stopped=True))
        return done

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        pass

    def close(self) -> None:
        pass


def controller(arguments: argparse.Namespace) -> None:
    """Print the CPU time per second of this process and of its children (git applies diffs).

    It is measured once all episodes are in flight.
    """
    groups = math.ceil(arguments.episodes / 8)
    config = load_config(
        None,
        [
            "train.updates=3",
            "train.injector_groups=0",
            f"train.solver_groups={groups}",
            "train.group_size=8",
            f"train.episodes_in_flight={arguments.episodes}",
            "train.max_opening=256",
            "train.workers=64",
            "agent.prompt_style=terse",
            "agent.max_turns=128",
            "agent.context_tokens=65536",
            'solver.help=["failure"]',
            "solver.second_order_share=0.0",
        ],
    )
    tree = Tree({path: FileEntry(text.encode()) for path, text in FILES.items()})
    environment = replace(an_environment(), tree=tree, script="true\n", parser="pass\n")
    artifact = make_artifact(environment, CLAMP_BUG, CLAMP_WEAKENED)
    tokenizer = load_tokenizer(policy_path("carried"))
    failure = "E   assert clamp(11, 0, 10) == 10\n" * arguments.prompt_lines
    bugs = [
        BugRow(
            bug_id=f"bug-{number}",
            repository="r",
            environment_key="k",
            base_commit=environment.base_commit,
            order=1,
            parent_bug_id=None,
            parent_episode_id=None,
            injector_episode_id="",
            strategy="given",
            target="",
            artifact=artifact.to_files(),
            attempt_patch="",
            fail_to_pass=(CLAMP_TEST,),
            pass_to_pass=(),
            failure=failure,
            tree_digest=str(number),
        )
        for number in range(3 * groups)
    ]
    engine: Any = TimedCompletions(tokenizer, arguments.turn_s, arguments.turns)
    watch = Watch(arguments.episodes, arguments.seconds)
    threading.stack_size(1 << 20)
    threading.Thread(target=watch.measure, daemon=True).start()
    backend: Any = TimedBackend(arguments.command_s, watch)
    play(config, engine, ChatFormat(tokenizer), backend, {"r": environment}, 0.0, bugs)


@dataclass
class Watch:
    """Counts open sandboxes. Once `wanted` are open, it measures for `seconds`, prints and exits."""

    wanted: int
    seconds: float
    open: int = 0
    opened: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def count(self, change: int) -> None:
        with self.lock:
            self.open += change
            self.opened += change > 0

    def measure(self) -> None:
        started = time.monotonic()
        while self.open < self.wanted * 0.95:
            time.sleep(1)
            print(f"{self.open} in flight after {time.monotonic() - started:.0f} s", file=sys.stderr)
        began, before, opened = time.monotonic(), os.times(), self.opened
        least = self.open
        while time.monotonic() - began < self.seconds:
            time.sleep(0.5)
            least = min(least, self.open)
        after, wall_s = os.times(), time.monotonic() - began
        own = (after.user + after.system - before.user - before.system) / wall_s
        children = (
            after.children_user + after.children_system - before.children_user - before.children_system
        ) / wall_s
        table = Table(title=f"one controller, {wall_s:.0f} s")
        for name in (
            "in flight, at least",
            "episodes ended/s",
            "cores, this process",
            "cores, git beside it",
            "bound",
        ):
            table.add_column(name, justify="right")
        ended = (self.opened - opened) / wall_s
        table.add_row(str(least), f"{ended:.1f}", f"{own:.2f}", f"{children:.2f}", "1")
        Console().print(table)
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("rates")
    one.add_argument("--updates", type=at_least_one, default=6)
    one.add_argument("--max-lag", type=int, default=2)
    one.add_argument("--ahead", type=int, default=2)
    one.add_argument("--group-size", type=at_least_one, default=4)
    one.add_argument("--tokens-per-s", type=float, default=40.0, help="of one conversation")
    one.add_argument(
        "--at-once",
        type=at_least_one,
        default=16,
        help="conversations that the server serves at that speed; more conversations share it",
    )
    one.add_argument("--thought", type=float, default=120.0, help="median tokens of a thought before a call")
    one.add_argument("--step", type=float, default=15.0, help="seconds of a training step")
    two = kinds.add_parser("controller")
    two.add_argument("--episodes", type=at_least_one, default=5000)
    two.add_argument("--seconds", type=float, default=120.0)
    two.add_argument("--turns", type=at_least_one, default=50, help="mean turns of an episode")
    two.add_argument("--turn-s", type=float, default=15.0, help="mean seconds of generation of a turn")
    two.add_argument("--command-s", type=float, default=5.0, help="mean seconds of a command in its sandbox")
    two.add_argument(
        "--prompt-lines",
        type=at_least_one,
        default=700,
        help="lines of the prompt; by default as long as a conversation at half of its turns",
    )
    arguments = parser.parse_args()
    rates(arguments) if arguments.kind == "rates" else controller(arguments)


if __name__ == "__main__":
    main()
