"""A whole self-play run on the tiny repository with scripted players.

    python tests/helpers/scripted_game.py FOLDER CACHE BACKEND [KILL_AT [AHEAD]]

As a program it plays the run in FOLDER, AHEAD waves ahead, and can kill itself. KILL_AT names the point at
which the process sends itself SIGKILL:

phase:NAME    a phase begins
written:N     the Nth episode file is written, and not yet recorded
recorded:N    the row of the Nth episode is committed
committed:N   the Nth update is committed
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.episode import Episode
from selfplay.agent.hosts import EpisodeHost
from selfplay.agent.local_host import LocalHost
from selfplay.agent.workspaces import EpisodeContext, sandbox_limits
from selfplay.config import Config, build_config
from selfplay.curriculum.store import Store
from selfplay.engines.scripted_engine import ScriptedEngine, ScriptedTurn
from selfplay.errors import SandboxUnavailable
from selfplay.evaluation.evaluator import Evaluator
from selfplay.evaluation.run_evaluations import RunEvaluations
from selfplay.evaluation.tasks import find_tasks
from selfplay.metrics import open_sinks
from selfplay.orchestrator.context import RunContext
from selfplay.orchestrator.given_bugs import put_given_bugs, read_given_bugs
from selfplay.orchestrator.loop import TrainLoop
from selfplay.orchestrator.run_folder import RunFolder, create_run
from selfplay.sandbox import open_backend
from selfplay.training.batch import Sample
from selfplay.training.torch_trainer import TorchTrainer
from selfplay.verdicts.randomness import Secret
from selfplay.verdicts.test_runs import TestRunner
from selfplay.viewing.progress import TrainProgress, counts_so_far
from tiny_bugs import CLAMP_BUG, CLAMP_WEAKENED, diff, prepare_tiny
from tiny_policy import build_tiny_policy

SECRET = Secret(b"the same draws in scripted games")  # so that a seed repeats a game exactly
NOTHING = "<tool: bash>\ntrue\n</tool>"
SUBMIT_NOTHING = "<tool: submit>\n</tool>"
SUBMIT_ARTIFACT = (
    "<tool: submit>\n"
    "bug_inject.diff\ntest_weaken.diff\ntest_files.txt\ntest_script.sh\ntest_parser.py\n"
    "</tool>"
)
REPAIR = "<tool: edit>\ntiny/numbers.py:9\n<<<<<<< SEARCH\nlow\n=======\nhigh\n>>>>>>> REPLACE\n</tool>"
BREAKS_MORE = "<tool: edit>\ntiny/numbers.py:7\n<<<<<<< SEARCH\nlow\n=======\nhigh\n>>>>>>> REPLACE\n</tool>"


def writes(**files: str) -> str:
    """A bash call that writes files into /submit. The suffix of a file is chosen by its name."""
    suffixes = {"bug_inject": ".diff", "test_weaken": ".diff", "test_files": ".txt"}
    body = "".join(
        f"cat > /submit/{name}{suffixes[name]} <<'END'\n{text}END\n" for name, text in files.items()
    )
    return f"<tool: bash>\n{body}</tool>"


def injector_moves(tree: Any) -> list[tuple[str, list[str]]]:
    """(what is expected, turns) for each member of an injector group.

    Expected: the name of the check that rejects the artifact, "" for accepted, or "duplicate".
    """

    def artifact(bug: Any = CLAMP_BUG, weaken: Any = CLAMP_WEAKENED, **more: str) -> list[str]:
        texts = {
            "bug_inject": diff(tree, bug) if not isinstance(bug, str) else bug,
            "test_weaken": diff(tree, weaken),
            **more,
        }
        return [writes(**texts), SUBMIT_ARTIFACT]

    readme = {"README.md": ("# tiny", "# small")}
    conftest = {**CLAMP_BUG, "conftest.py": "collect_ignore = []\n"}
    unnoticed = {"tiny/numbers.py": ('"""Sums and bounds."""', '"""Bounds and sums."""')}
    weakens_elsewhere = {
        "tests/test_numbers.py": ("    assert mean([1, 2, 3]) == 2\n", "    assert mean([1, 2, 3])\n")
    }
    return [
        ("", artifact()),
        ("duplicate", artifact()),
        ("readable", ["No call at all.", SUBMIT_NOTHING.replace("\n</", "\nnothing.diff\n</")]),
        ("patches", artifact("--- a/tiny/numbers.py\n+++ b/tiny/numbers.py\n@@ nonsense @@\n")),
        ("protected_paths", artifact(conftest)),
        ("test_files", artifact(test_files="tests/test_text.py\n")),
        ("bug_breaks_tests", artifact(unnoticed)),
        ("weakening_hides", artifact(weaken=weakens_elsewhere)),
        ("inverse_mutation", artifact({**CLAMP_BUG, **readme})),
    ]


SOLVER_MOVES: list[tuple[bool | None, list[str]]] = [
    (True, [REPAIR, SUBMIT_NOTHING]),
    (False, [BREAKS_MORE, SUBMIT_NOTHING]),
    (False, [NOTHING, SUBMIT_NOTHING]),
    (None, ["the machine fails here", SUBMIT_NOTHING]),
    *([(False, [SUBMIT_NOTHING])] * 5),
]


class Player:
    """Replies by role and member. It marks the thread in which the machine must fail.

    Injectors of later updates submit nothing.
    """

    def __init__(self, tree: Any) -> None:
        self.injector = [moves for _, moves in injector_moves(tree)]
        self.solver = [moves for _, moves in SOLVER_MOVES]
        self.machine_fails = threading.local()

    def __call__(self, turn: ScriptedTurn) -> str:
        role, group, member, _ = turn.tag.split("/")
        moves = (self.injector if role == "injector" else self.solver)[int(member)]
        if role == "injector" and not group.startswith("u0001"):
            moves = [SUBMIT_NOTHING]
        text = moves[min(turn.number, len(moves) - 1)]
        if text == "the machine fails here":
            self.machine_fails.now = True
            return NOTHING
        return text


class FailingBackend:
    """A real backend whose sandboxes fail with a machine failure in the threads that the player marked."""

    def __init__(self, backend: Any, player: Player) -> None:
        self._backend = backend
        self._player = player

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    @contextmanager
    def open(self, spec: Any) -> Iterator[Any]:
        self._player.machine_fails.now = False
        with self._backend.open(spec) as box:
            yield _FailingBox(box, self._player)


class _FailingBox:
    def __init__(self, box: Any, player: Player) -> None:
        self._box = box
        self._player = player

    def __getattr__(self, name: str) -> Any:
        if getattr(self._player.machine_fails, "now", False):
            raise SandboxUnavailable("the machine is gone (a test says so)")
        return getattr(self._box, name)


def tiny_config(runs: Path, updates: int = 2, ahead: int = 0, **settings: Any) -> Config:
    return build_config(
        {
            "seed": 11,
            "run": {"name": "scripted", "folder": str(runs)},
            "train": {
                "updates": updates,
                "injector_groups": 1,
                "solver_groups": 1,
                "group_size": 9,
                "max_machine_failures": 0.9,
                "max_async_updates": ahead,
            },
            "agent": {
                "max_turns": 4,
                "context_tokens": 8192,
                "turn_tokens": 4096,
                "observation_tokens": 200,
                "prompt_style": "terse",
            },
            "injector": {"strategies": {"direct": 1.0}, "help": ["tests"], "min_passing_tests": [3, 3]},
            "solver": {"help": ["failure", "suspects", "tests"], "second_order_share": 0.5},
            "trainer": {"learning_rate": 1e-3, "warmup_updates": 0, "bf16": False},
            **settings,
        }
    )


def die_at(kill_at: str, progress: TrainProgress, store: Store) -> None:
    """Prepare the SIGKILL. No Python code runs after it, as in a power cut. kill_at: see the module."""
    kind, _, value = kill_at.partition(":")

    def counting(call: Callable[..., Any], limit: int) -> Callable[..., Any]:
        seen = 0

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal seen
            result = call(*arguments, **named)
            seen += 1
            if seen == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    if kind == "phase":
        original = progress.phase

        def phase(name: str) -> None:
            original(name)
            if name == value:
                os.kill(os.getpid(), signal.SIGKILL)

        progress.phase = phase  # type: ignore[method-assign]
    elif kind == "written":
        Episode.write = counting(Episode.write, int(value))  # type: ignore[method-assign]
    elif kind == "recorded":
        store.record_episode = counting(store.record_episode, int(value))  # type: ignore[method-assign]
    elif kind == "committed":
        store.commit_update = counting(store.commit_update, int(value))  # type: ignore[method-assign]


class HistoryPlayer:
    """The injector reverts the fix in the third commit. The solver repairs the bug."""

    STEPS = (
        "<tool: bash>\ngit log --oneline --grep=Fix | cut -d' ' -f1 > /tmp/fix; "
        "git show $(cat /tmp/fix) -- tiny | git apply -R; "
        "git diff > /submit/bug_inject.diff\n</tool>",
        "<tool: bash>\nsed -i 's/digits(-120)/digits(120)/' tests/test_numbers.py; "
        "git diff tests > /submit/test_weaken.diff\n</tool>",
        SUBMIT_ARTIFACT,
    )
    REPAIR = (
        "<tool: bash>\nsed -i 's/str(number)/str(abs(number))/' tiny/numbers.py\n</tool>",
        SUBMIT_NOTHING,
    )

    def __init__(self, tree: Any) -> None:
        self.machine_fails = threading.local()

    def __call__(self, turn: ScriptedTurn) -> str:
        member = int(turn.tag.split("/")[2])
        if turn.role == "solver":
            return self.REPAIR[turn.number] if member == 0 else SUBMIT_NOTHING
        return self.STEPS[turn.number] if member == 0 else SUBMIT_NOTHING


class _InOneThread(TorchTrainer):
    """A trainer that checks that all steps run in one thread.

    Each thread that trains keeps the memory that it freed: about 1 GB with the policy of selfplay.
    """

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        assert threading.current_thread().name == "train_0", "a step runs outside the training thread"
        return super().step(samples)


def play(
    folder: Path,
    cache: Path,
    backend_name: str,
    kill_at: str = "",
    updates: int = 2,
    git: bool = False,
    player_of: Callable[[Any], Any] = Player,
    given_bugs: str = "",
    host_of: Callable[[RunContext, str], EpisodeHost] | None = None,
    **settings: Any,
) -> RunFolder:
    """Start the run in `folder`, or continue the one that is there.

    settings: sections that replace those of `tiny_config`.

    host_of: makes another host, from the context with the local host and the repository's line.

    given_bugs: task records of the tiny repository, as the text of a file.
    """
    backend, _ = open_backend(backend_name, cache)
    environment = prepare_tiny(backend, folder / "repository", cache, git)
    policy = folder / "policy"
    if not policy.exists():
        build_tiny_policy(policy)
    if (folder / "evaluation.jsonl").exists():  # task records of the tiny repository
        settings["evaluation"] = {"tasks": [str(folder / "evaluation.jsonl")], "attempts": 4}
    config = tiny_config(folder / "runs", updates, **settings)
    run = RunFolder(folder / "runs" / "scripted")
    if not run.config_file.exists():
        run, config = create_run(config, "tiny\n", datetime(2026, 1, 1), given_bugs, secret=SECRET)
    player = player_of(environment.tree)
    failing: Any = FailingBackend(backend, player)
    limits = sandbox_limits(config)
    with (
        Store.open(run.database) as store,
        TrainProgress(
            Console(quiet=True), config.train.updates, store.last_update(), counts_so_far(store)
        ) as progress,
    ):
        environments = {environment.repository: environment}
        if given_bugs:
            given = read_given_bugs(run.given_bugs_file, environments)
            put_given_bugs(given, store, environments, lambda _: False, lambda _: None)
        committed = store.last_checkpoint()
        run.discard_uncommitted(committed, keep=config.train.keep_checkpoints)
        trainer = _InOneThread(str(policy), config.trainer, config.agent.context_tokens, config.seed)
        if committed:
            trainer.load(run.checkpoints / committed)
        tokenizer = load_tokenizer(str(policy))
        engine = ScriptedEngine(player, tokenizer)
        engine.load_weights({}, trainer.weight_version)
        episodes = EpisodeContext(config, engine, ChatFormat(tokenizer), failing, limits)
        labels = {"run": "scripted", "owner": str(os.getpid())}
        if kill_at:
            die_at(kill_at, progress, store)
        evaluations = None
        if config.evaluation.tasks:
            tasks = find_tasks(config.evaluation.tasks)
            whole = {task.repo: environment for task in tasks}
            evaluator = Evaluator(episodes, whole, labels)
            evaluations = RunEvaluations(run.evaluations, config.evaluation, tasks, evaluator)
        context = RunContext(
            run=run,
            store=store,
            environments=environments,
            episodes=episodes,
            labels=labels,
            trainer=trainer,
            host=LocalHost(
                episodes, environments, TestRunner(failing, config.validator, limits, labels, run.secret())
            ),
            sink=open_sinks(config.metrics.sinks, run.path),
            progress=progress,
            evaluations=evaluations,
        )
        if host_of is not None:
            context = replace(context, host=host_of(context, str(folder / "repository" / "tiny")))
        try:
            asyncio.run(TrainLoop(context).run())
        finally:
            context.sink.close()
    return run


if __name__ == "__main__":
    folder, cache, backend_name, *rest = sys.argv[1:]
    play(Path(folder), Path(cache), backend_name, *rest[:1], **({"ahead": int(rest[1])} if rest[1:] else {}))
