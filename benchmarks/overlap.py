"""Episodes an hour on two cores with the real engine and trainer: in turn, and overlapped.

    python -m benchmarks.overlap [--updates 6] [--repos FILE] [--config FILE] [--set KEY=VALUE …]

It plays three runs of `selfplay train` from one seed. The trainer is DeepSpeed's with one rank, a process of
its own. In the first two runs the loop, the engine and the sandboxes have one core, the trainer the other;
they differ in `train.max_async_updates` alone. Playing and training should take equally long, since the ratio
can be no more than their sum divided by the longer one. The third run is in turn, with both cores for each.
The first and the last update do not count: when they play or train, the other half has nothing to do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.options import at_least_one
from selfplay.orchestrator.build import TrainerInputs
from selfplay.training.base import Trainer
from selfplay.training.deepspeed_trainer import DeepSpeedTrainer
from selfplay.training.ranks.controller import RankLaunch, Ranks
from selfplay.training.ranks.worker import RankWorker

ROOT = Path(__file__).resolve().parents[1]
RATIO_GOAL, BALANCE = 1.8, 0.2
TRAINER_CORE = "SELFPLAY_BENCH_TRAINER_CORE"
PLAYING = ("injecting", "solving", "second_order")
LEAST_UPDATES = 3


class PinnedRank(RankWorker):
    """A rank on one core of its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        os.sched_setaffinity(0, {int(os.environ[TRAINER_CORE])})
        super().__init__(*arguments, **options)


def pinned_trainer(inputs: TrainerInputs) -> Trainer:
    """A part for `trainer.type`."""
    config = inputs.config
    worker = f"{PinnedRank.__module__}:{PinnedRank.__qualname__}"
    ranks = Ranks(1, RankLaunch(inputs.logs), config.trainer.deadline_s, worker)
    return DeepSpeedTrainer(
        inputs.model, config.trainer, config.agent.context_tokens, config.seed, ranks=ranks
    )


@dataclass(frozen=True)
class Form:
    """One of the runs."""

    name: str
    ahead: int = 0
    is_pinned: bool = True


FORMS = (
    Form("in turn"),
    Form("overlapped", ahead=1),
    Form("in turn, 2 cores each", is_pinned=False),
)


@dataclass(frozen=True)
class Figures:
    """Of the updates that count. Seconds are means of one update; playing and training may overlap."""

    episodes: int
    wall_s: float
    playing_s: float
    training_s: float
    idle_trainer: float
    idle_engine: float

    @property
    def an_hour(self) -> float:
        return self.episodes * 3600 / self.wall_s


def play(form: Form, options: argparse.Namespace, folder: Path, cores: Sequence[int]) -> Figures:
    """Run `selfplay train`. Raises CalledProcessError if it fails."""
    name = form.name.replace(" ", "-").replace(",", "")
    trainer = f"{__spec__.name if __spec__ else __name__}:pinned_trainer" if form.is_pinned else "deepspeed"
    settings = {
        "run.folder": str(folder),
        "run.name": name,
        "train.updates": str(options.updates),
        "train.max_async_updates": str(form.ahead),
        "max_lag": "2",
        "trainer.type": trainer,
        "trainer.ranks": "1",
        "trainer.zero_stage": "0",
        "trainer.train_embeddings": "true",  # only the torch trainer can keep them
        "evaluation.tasks": "[]",
        "sandbox.type": "bubblewrap",
    }
    given = [f"{key}={value}" for key, value in settings.items()] + options.set
    overrides = [part for each in given for part in ("--set", each)]
    command = [sys.executable, "-m", "selfplay.cli", "train", "--repos", str(options.repos)]
    used = {cores[0]} if form.is_pinned else set(cores)
    subprocess.run(
        [*command, "--config", str(options.config), *overrides],
        check=True,
        cwd=ROOT,
        stdout=sys.stderr,
        env=os.environ | {TRAINER_CORE: str(cores[1])},
        preexec_fn=lambda: os.sched_setaffinity(0, used),
    )
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "update" in row and "seconds/training" in row]
    return figures(rows[1:-1])


def figures(rows: Sequence[dict[str, Any]]) -> Figures:
    def mean(*names: str) -> float:
        return sum(float(row.get(name, 0.0)) for row in rows for name in names) / len(rows)

    seconds = sorted({name for row in rows for name in row if name.startswith("seconds/")})
    return Figures(
        episodes=sum(row["injector/episodes"] + row["solver/episodes"] for row in rows),
        wall_s=mean(*seconds) * len(rows),
        playing_s=mean(*(f"seconds/{phase}" for phase in PLAYING)),
        training_s=mean("seconds/training"),
        idle_trainer=mean("idle/trainer"),
        idle_engine=mean("idle/engine"),
    )


def show(found: Sequence[Figures], counted: int) -> None:
    console = Console()
    table = Table(title=f"real engine and trainer on two cores, {counted} updates each; seconds of an update")
    columns = (
        "",
        "episodes",
        "wall s",
        "an hour",
        "playing s",
        "training s",
        "idle engine",
        "idle trainer",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right")
    for form, each in zip(FORMS, found, strict=True):
        table.add_row(
            form.name,
            str(each.episodes),
            f"{each.wall_s:.0f}",
            f"{each.an_hour:.0f}",
            f"{each.playing_s:.0f}" if not form.ahead else "",
            f"{each.training_s:.0f}",
            f"{each.idle_engine:.0%}",
            f"{each.idle_trainer:.0%}",
        )
    console.print(table)
    in_turn, overlapped, both = found
    longer, shorter = sorted((in_turn.playing_s, in_turn.training_s), reverse=True)
    apart = longer / shorter - 1
    console.print(
        f"playing and training take {apart:.0%} apart (wanted: at most {BALANCE:.0%}), "
        f"so the ceiling is {(longer + shorter) / longer:.2f}"
    )
    console.print(f"overlapped / in turn: {overlapped.an_hour / in_turn.an_hour:.2f} (goal {RATIO_GOAL})")
    console.print(f"overlapped / in turn with both cores: {overlapped.an_hour / both.an_hour:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=at_least_one, default=6)
    parser.add_argument("--repos", default="quickstart-repos")
    parser.add_argument("--config", default="pretrained")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more settings")
    options = parser.parse_args()
    if options.updates < LEAST_UPDATES:
        parser.error(f"--updates {options.updates}: at least {LEAST_UPDATES}, since two do not count")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("this machine has one core; the measurement needs two")
    with tempfile.TemporaryDirectory(prefix="selfplay-bench-") as folder:
        try:
            found = [play(form, options, Path(folder), cores[:2]) for form in FORMS]
        except subprocess.CalledProcessError as error:  # it has said why
            sys.exit(error.returncode)
    show(found, options.updates - 2)


if __name__ == "__main__":
    main()
