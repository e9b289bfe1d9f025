"""The cost of the episode loop: a turn of `Agent.play`, compared with the engine alone on the same requests.

Run: python -m benchmarks.agent_loop [--turns 16] [--episodes 8] [--policy FOLDER]. Without bubblewrap it
leaves out the row with a sandbox.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.options import at_least_one
from selfplay.agent.agent import Agent, AgentResult
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.tool_format import format_action
from selfplay.engines.base import Completion, Engine, GenerationRequest, Sampling, derive_seed
from selfplay.engines.scripted_engine import ScriptedEngine
from selfplay.errors import PrerequisiteError
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import ExecResult, Sandbox, SandboxSpec
from selfplay.settings.playing import AgentSettings

if TYPE_CHECKING:
    import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))
from tiny_policy import build_tiny_policy

OUTPUT = "\n".join(
    f"./package/module_{n}.py:{n}:def function_{n}(first, second):" for n in range(40)
).encode()


class NoSandbox:
    """Answers every command at once with forty lines, so that only the loop is measured."""

    spec = SandboxSpec(environment="")

    def run(
        self, command: str, timeout_s: float = 60.0, output_bytes: int | None = None, stdin: bytes = b""
    ) -> ExecResult:
        return ExecResult(0, OUTPUT, truncated=False, timed_out=False, duration_s=0.0)

    def write_archive(self, folder: str, tar: bytes) -> None:
        raise NotImplementedError

    def read_archive(self, folder: str, max_bytes: int) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Recorder:
    """Passes requests on and keeps them, so that the engine can answer them again without the loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: list[GenerationRequest] = []
        self.engine_s = 0.0

    @property
    def weight_version(self) -> int:
        return self.engine.weight_version

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        self.requests += requests
        started = time.perf_counter()
        completions = self.engine.generate(requests, sampling)
        self.engine_s += time.perf_counter() - started
        return completions

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        self.engine.load_weights(weights, version)

    def close(self) -> None:
        self.engine.close()


def play(
    engine: Engine, chat: ChatFormat, sandbox: Sandbox, settings: AgentSettings, episode: int
) -> AgentResult:
    tag = f"injector/b/{episode}"
    agent = Agent(engine, chat, sandbox, settings, lambda turn: derive_seed(episode, turn), tag)
    return agent.play("", "injector direct")


def measure(
    name: str, engine: Engine, chat: ChatFormat, sandbox: Sandbox, settings: AgentSettings, episodes: int
) -> list[str]:
    """One row of the table: for each turn, the time of the loop, of the engine alone, and the overhead."""
    play(engine, chat, sandbox, settings, episodes)  # warm-up
    recorder = Recorder(engine)
    started = time.perf_counter()
    results = [play(recorder, chat, sandbox, settings, episode) for episode in range(episodes)]
    loop_s = time.perf_counter() - started
    started = time.perf_counter()
    for request in recorder.requests:
        engine.generate([request], Sampling(temperature=settings.temperature))
    bare_s = time.perf_counter() - started
    turns = sum(len(result.turns) for result in results)
    act_s = sum(turn.act_s for result in results for turn in result.turns)
    overhead_ms = (loop_s - recorder.engine_s) / turns * 1000
    columns = (
        turns,
        f"{loop_s / turns * 1000:.2f}",
        f"{bare_s / turns * 1000:.2f}",
        f"{act_s / turns * 1000:.2f}",
        f"{overhead_ms:.2f}",
    )
    return [name, *map(str, columns), f"{loop_s / bare_s:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=at_least_one, default=16)
    parser.add_argument("--episodes", type=at_least_one, default=8)
    parser.add_argument(
        "--policy", default="", help="a model folder for the hf rows; default: a tiny one with random weights"
    )
    arguments = parser.parse_args()
    settings = AgentSettings(
        max_turns=arguments.turns, context_tokens=32_768, turn_tokens=64, max_format_errors=arguments.turns
    )
    table = Table(title="a turn of the episode loop, in milliseconds")
    for column in (
        "engine, sandbox",
        "turns",
        "loop",
        "bare engine",
        "tool",
        "loop less engine",
        "loop / bare engine",
    ):
        table.add_column(column, justify="left" if column.startswith("engine") else "right")
    with ExitStack() as stack:
        folder = Path(
            arguments.policy or build_tiny_policy(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        )
        tokenizer = load_tokenizer(str(folder))
        chat = ChatFormat(tokenizer)
        scripted = ScriptedEngine(lambda turn: format_action("bash", f"echo {turn.number}"), tokenizer)
        table.add_row(*measure("scripted, none", scripted, chat, NoSandbox(), settings, arguments.episodes))
        try:
            backend = open_backend("bubblewrap")[0]
            box = stack.enter_context(backend.open(SandboxSpec(environment="", labels={"run": "benchmark"})))
            table.add_row(*measure("scripted, bubblewrap", scripted, chat, box, settings, arguments.episodes))
        except PrerequisiteError as error:
            print(f"no bubblewrap row: {error}", file=sys.stderr)
        try:
            from selfplay.engines.hf_engine import HFEngine
        except ImportError as error:
            print(f"no hf row: {error}", file=sys.stderr)
        else:
            model = HFEngine(str(folder), 8, settings.context_tokens)
            table.add_row(*measure("hf, none", model, chat, NoSandbox(), settings, 2))
            model.close()
    Console().print(table)


if __name__ == "__main__":
    main()
