"""A run whose episodes and training steps only wait: there is no model and no sandbox.

The loop, waves, dispatcher, database and files are the real ones.

    python tests/helpers/simulated_game.py FOLDER KILL_AT

KILL_AT: the point at which the process sends itself SIGKILL, as in `scripted_game`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from rich.console import Console

from selfplay.agent.episode import Episode, FinishReason, Role, Turn
from selfplay.agent.hosts import InjectorWork, SolverWork
from selfplay.agent.tool_format import format_action
from selfplay.agent.tools import format_edit
from selfplay.agent.workspaces import EpisodeContext, EpisodeKey
from selfplay.config import build_config
from selfplay.curriculum.store import Store
from selfplay.metrics import JsonlSink
from selfplay.orchestrator.context import RunContext
from selfplay.orchestrator.loop import TrainLoop
from selfplay.orchestrator.run_folder import RunFolder, create_run
from selfplay.outcomes import TestOutcomes
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.environment import Environment
from selfplay.repositories.specs import RepositorySpec
from selfplay.source.trees import Tree
from selfplay.verdicts.artifact import FILE_NAMES
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.grading import Grade
from selfplay.verdicts.verdict import Verdict
from selfplay.viewing.progress import TrainProgress

NAME = "simulated"
CHANGE = format_action("edit", format_edit("a.py", 1, "1", "2"))
TOKENS = 8  # tokens of an episode; half of them are actions


@dataclass
class Script:
    """What happens in the run, most of it by an episode's key.

    play_s    seconds that an episode takes
    judge_s   seconds that a verdict or grade takes
    step_s    seconds that a training step takes
    is_bug    an injector's artifact is accepted
    repairs   a solver's repair passes
    fails     the machine fails in the episode
    restored  the restored paths in each repair's submission
    refuses   the only edit of an episode is refused
    """

    play_s: Callable[[EpisodeKey], float] = lambda key: 0.01
    judge_s: float = 0.0
    step_s: float = 0.0
    is_bug: Callable[[EpisodeKey], bool] = lambda key: key.member < 3
    repairs: Callable[[EpisodeKey], bool] = lambda key: key.member % 2 == 0
    fails: Callable[[EpisodeKey], bool] = lambda key: False
    restored: str = ""
    refuses: Callable[[EpisodeKey], bool] = lambda key: False


class SimulatedChat:
    def decode(self, ids: Sequence[int]) -> str:
        return "." * len(ids)


@dataclass
class SimulatedEngine:
    weight_version: int = 0

    def generate(self, requests: Any, sampling: Any) -> Any:
        raise NotImplementedError

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        self.weight_version = version

    def close(self) -> None:
        pass


@dataclass
class SimulatedHost:
    """played: (episode id, begin, end) in the order of their ends; times in monotonic seconds."""

    script: Script
    engine: SimulatedEngine
    played: list[tuple[str, float, float]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def prepare(self, work: SolverWork) -> SolverWork:
        return work

    def play(self, work: InjectorWork | SolverWork, key: EpisodeKey) -> Episode:
        began, version = time.monotonic(), self.engine.weight_version
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        time.sleep(self.script.play_s(key))
        is_injector = isinstance(work, InjectorWork)
        name = f"{key.group}-m{key.member}"
        if is_injector:
            submission = dict.fromkeys(FILE_NAMES, name) if self.script.is_bug(key) else {}
        else:
            submission = {
                "patch": "good" if self.script.repairs(key) else "",
                "restored": self.script.restored,
            }
        with self._lock:
            self.in_flight -= 1
            self.played.append((name, began, time.monotonic()))
        failed = self.script.fails(key)
        return Episode(
            episode_id=name,
            role=Role.INJECTOR if is_injector else Role.SOLVER,
            repository=work.repository,
            update=key.update,
            group=key.group,
            member=key.member,
            seed=key.seed(0),
            finish=FinishReason.ENV_ERROR if failed else FinishReason.SUBMITTED,
            messages=(),
            turns=() if failed else (Turn(CHANGE, "edit", "", (1, 4), is_error=self.script.refuses(key)),),
            token_ids=() if failed else tuple(range(TOKENS)),
            loss_mask=() if failed else (0, 1) * (TOKENS // 2),
            logprobs=() if failed else (-0.5,) * TOKENS,
            weight_versions=() if failed else ((1, version),),
            submission=submission,
            error="a machine failure (a test says so)" if failed else "",
        )

    def judge(self, work: InjectorWork, episode: Episode) -> Verdict:
        time.sleep(self.script.judge_s)
        accepted = bool(episode.submission)
        digest = hashlib.sha256(episode.episode_id.encode()).hexdigest()
        return Verdict(
            accepted, (), "" if accepted else "readable", ("t::a",), ("t::b",), digest, "", 0.0, 0, 0
        )

    def grade(self, work: SolverWork, patch: str) -> Grade:
        time.sleep(self.script.judge_s)
        confirmation = Confirmation.CONFIRMED if patch else Confirmation.NOT_NEEDED
        return Grade(patch == "good", "", confirmation=confirmation)

    def judge_second_order(self, work: SolverWork, patch: str, thresholds: Thresholds) -> Verdict:
        raise NotImplementedError

    def engine_busy_s(self) -> float:
        return 0.0


@dataclass
class SimulatedTrainer:
    """A trainer whose checkpoint holds its version and the number of samples that it has seen in all.

    steps: (begin, end, number of samples); times in monotonic seconds. samples: those of the last step.
    """

    script: Script
    weight_version: int = 0
    seen: int = 0
    steps: list[tuple[float, float, int]] = field(default_factory=list)
    samples: list[Any] = field(default_factory=list)

    def step(self, samples: Sequence[Any]) -> dict[str, float]:
        self.samples = list(samples)
        began = time.monotonic()
        time.sleep(self.script.step_s)
        self.weight_version += 1
        self.seen += len(samples)
        self.steps.append((began, time.monotonic(), len(samples)))
        return {}

    @property
    def ratios(self) -> list[Any]:
        return [np.ones(len(sample.token_ids)) for sample in self.samples]

    def export_weights(self) -> dict[str, Any]:
        return {}

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps([self.weight_version, self.seen]))

    def load(self, folder: Path) -> None:
        self.weight_version, self.seen = json.loads((folder / "state.json").read_text())

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Simulation:
    run: RunFolder
    host: SimulatedHost
    trainer: SimulatedTrainer


def an_environment() -> Environment:
    checkout = Checkout(RepositorySpec("r", "path", "r", "r"), "r", "0" * 40, Tree({}), None, 1, "")
    return Environment(
        key="k",
        reference="",
        repository="r",
        base_commit="0" * 40,
        licence="",
        tree=Tree({}),
        checkout=checkout,
        test_files=(),
        script="",
        parser="",
        baseline=TestOutcomes(),
        excluded_ids=frozenset(),
        targets=(),
        calls={},
        variables={},
    )


def simulate(
    folder: Path,
    script: Script,
    max_lag: int,
    kill_at: str = "",
    sections: Mapping[str, Any] = MappingProxyType({}),
    **train: Any,
) -> Simulation:
    """Start the run in `folder`, or continue the one that is there.

    sections: settings of other sections than `train`. train: settings of that section.
    """
    train = {
        "updates": 4,
        "injector_groups": 1,
        "solver_groups": 2,
        "group_size": 4,
        "max_machine_failures": 0.9,
        "max_async_updates": 2,
        **train,
    }
    run = RunFolder(folder / NAME)
    settings = {
        "run": {"name": NAME, "folder": str(folder)},
        "max_lag": max_lag,
        "train": train,
        "solver": {"second_order_share": 0.0},
    }
    config = build_config({**settings, "injector": {"strategies": {"direct": 1.0}}, **sections})
    if not run.config_file.exists():
        run, config = create_run(config, "r\n", datetime(2026, 1, 1))
    with (
        Store.open(run.database) as store,
        TrainProgress(Console(quiet=True), config.train.updates) as progress,
    ):
        committed = store.last_checkpoint()
        run.discard_uncommitted(committed, keep=config.train.keep_checkpoints)
        trainer, engine = SimulatedTrainer(script), SimulatedEngine()
        if committed:
            trainer.load(run.checkpoints / committed)
        engine.load_weights({}, trainer.weight_version)
        host = SimulatedHost(script, engine)
        if kill_at:
            from scripted_game import die_at

            die_at(kill_at, progress, store)
        nothing: Any = None
        context = RunContext(
            run=run,
            store=store,
            environments={"r": an_environment()},
            episodes=EpisodeContext(config, engine, cast(Any, SimulatedChat()), nothing, nothing),
            labels={"run": NAME, "owner": str(os.getpid())},
            trainer=trainer,
            sink=JsonlSink(run.metrics),
            progress=progress,
            host=host,
        )
        try:
            asyncio.run(TrainLoop(context).run())
        finally:
            context.sink.close()
    return Simulation(run, host, trainer)


def uneven(key: EpisodeKey) -> float:
    """Between 5 and 45 ms, by the key."""
    return 0.005 + 0.04 * (key.seed(0) % 101) / 101


if __name__ == "__main__":
    simulate(Path(sys.argv[1]), Script(play_s=uneven, step_s=0.03), 2, sys.argv[2])
