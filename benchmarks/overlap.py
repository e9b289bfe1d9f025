"""Playing and training at the same time beside in turn, with a real engine and a real trainer on a core each.

    python -m benchmarks.overlap [--updates 6] [--ahead 2] [--engine-core 0] [--trainer-core 1]

Both variants are the same `selfplay train`. A vLLM server has processes of its own on one core, a DeepSpeed
rank has one on another. Sandboxes and verdicts use all cores. "in turn" has train.max_async_updates = 0. The
first `--ahead` + 1 updates fill the pipeline and are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.options import at_least_one
from selfplay.training.ranks.worker import RankWorker

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("in turn", "at the same time")
TRAINER_CORE = "SELFPLAY_BENCH_TRAINER_CORE"
# Enough work for both sides: groups with and without a gradient, on the packages of the quickstart.
SETTINGS = {
    "evaluation.tasks": "[]",
    "train.injector_groups": "1",
    "train.solver_groups": "3",
    "engine.type": "vllm",
    "engine.sync": "gloo",
    "engine.cache_mb": "512",
    "trainer.type": "deepspeed",
    "trainer.ranks": "1",
    "trainer.zero_stage": "2",
}


class PinnedRank(RankWorker):
    """A trainer rank on one core."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        os.sched_setaffinity(0, {int(os.environ[TRAINER_CORE])})
        super().__init__(*arguments, **options)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes that this thread starts inside the block stay on `core`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def play(engine_core: int, arguments: list[str]) -> None:
    """Run `selfplay train` in this process, with its server and its rank on their cores."""
    from selfplay.cli import app
    from selfplay.engines.vllm_servers import OwnServer
    from selfplay.training import deepspeed_trainer

    start: Callable[..., None] = OwnServer.__init__

    def pinned(server: OwnServer, *given: Any, **options: Any) -> None:
        with on_core(engine_core):
            start(server, *given, **options)

    OwnServer.__init__ = pinned  # type: ignore[assignment,method-assign]
    deepspeed_trainer.Ranks = partial(  # type: ignore[assignment,misc]
        deepspeed_trainer.Ranks, worker="benchmarks.overlap:PinnedRank"
    )
    app(arguments)


def measured(variant: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Means over the counted updates. Raises CalledProcessError if training fails."""
    name = variant.replace(" ", "-")
    ahead = 0 if variant == VARIANTS[0] else options.ahead
    skipped = options.ahead + 1
    settings = {
        **SETTINGS,
        "run.folder": str(folder),
        "run.name": name,
        "train.updates": str(options.updates + skipped),
        "train.max_async_updates": str(ahead),
        "max_lag": str(2 * ahead),
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    overrides += [part for text in options.set for part in ("--set", text)]
    train = ["train", "--repos", str(options.repos), "--config", str(options.config), *overrides]
    command = [sys.executable, "-m", "benchmarks.overlap", "--play", str(options.engine_core), *train]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    variables = {**os.environ, "PYTHONPATH": paths, TRAINER_CORE: str(options.trainer_core)}
    subprocess.run(command, check=True, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    counted = [row for row in rows if row.get("update", 0) > skipped]
    seconds = [sum(value for key, value in row.items() if key.startswith("seconds/")) for row in counted]
    return {
        "seconds an update": fmean(seconds),
        "trained tokens/s": sum(row.get("tokens", 0.0) for row in counted) / sum(seconds),
        "episodes an hour": fmean(row["episodes_per_hour"] for row in counted),
        "trainer idle": fmean(row["idle/trainer"] for row in counted),
        "engine idle": fmean(row["idle/engine"] for row in counted),
        "mean age, updates": fmean(row.get("lag/mean", 0.0) for row in counted),
    }


def show(found: dict[str, dict[str, float]]) -> None:
    table = Table(title="engine and trainer on a core each")
    for column in ("", *VARIANTS, "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name, alone in found[VARIANTS[0]].items():
        both = found[VARIANTS[1]][name]
        table.add_row(name, f"{alone:.3g}", f"{both:.3g}", f"{both / alone:.2f}" if alone else "")
    Console().print(table)


def main() -> None:
    if sys.argv[1:2] == ["--play"]:
        play(int(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=at_least_one, default=6, help="that are counted")
    parser.add_argument("--ahead", type=at_least_one, default=2, help="updates that are played ahead")
    parser.add_argument("--engine-core", type=int, default=0)
    parser.add_argument("--trainer-core", type=int, default=1)
    parser.add_argument("--repos", type=Path, default=ROOT / "runs/recipes/quickstart-repos.txt")
    parser.add_argument("--config", type=Path, default=ROOT / "runs/recipes/learning.toml")
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="selfplay-bench-") as folder:
        found = {variant: measured(variant, options, Path(folder)) for variant in VARIANTS}
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
