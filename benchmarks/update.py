"""Seconds of an update by phase, with and without the parts that save time, in one run of this program.

    python -m benchmarks.update [--updates 3] [--sandbox bubblewrap] [--repos FILE] [--config FILE]

The plain variant computes the whole prompt of every turn again, one token in each pass, and runs the tests of
every attempt in its own sandbox. Code and seed are otherwise the same. Rounding can still make the variants
sample different tokens, so the table has the number of sampled tokens too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from benchmarks.options import at_least_one

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("plain", "selfplay")


def play(variant: str, arguments: list[str]) -> None:
    """Run `selfplay train` in this process. The variant "plain" first removes the parts that save time."""
    from selfplay.agent import injector, solver
    from selfplay.cli import app
    from selfplay.engines import hf_engine

    if variant == "plain":
        hf_engine._MAX_DRAFT_TOKENS = 0
        hf_engine.shared_prefix = lambda *_: 0
        for role in (injector, solver):
            role.SharedTests = lambda box, *_: box  # type: ignore[assignment,misc]
        arguments = [*arguments, "--set", "engine.cache_mb=0"]
    app(arguments)


def measured(variant: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Means over the updates of seconds/PHASE and of sampled tokens.

    Raises CalledProcessError if training fails.
    """
    settings = {
        "run.folder": str(folder),
        "run.name": variant,
        "train.updates": str(options.updates),
        "evaluation.tasks": "[]",
        "sandbox.type": options.sandbox,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    train = ["train", "--repos", str(options.repos), "--config", str(options.config), *overrides]
    command = [sys.executable, "-m", "benchmarks.update", "--play", variant, *train]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    values = defaultdict(list)
    for line in (folder / variant / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "update" in row:
            for key, value in row.items():
                if key.startswith("seconds/") or key.endswith("/sampled_tokens"):
                    values[key].append(float(value))
    means = {key: fmean(listed) for key, listed in values.items()}
    tokens = sum(value for key, value in means.items() if key.endswith("/sampled_tokens"))
    return {key: value for key, value in means.items() if key.startswith("seconds/")} | {"tokens": tokens}


def show(found: Mapping[str, Mapping[str, float]], updates: int) -> None:
    plain, ours = (found[variant] for variant in VARIANTS)
    table = Table(title=f"an update, mean of {updates}")
    for column in ("", "plain", "selfplay", "times faster"):
        table.add_column(column, justify="left" if column == "" else "right")
    phases = [key for key in plain if key.startswith("seconds/")]
    rows = [
        (key.removeprefix("seconds/").replace("_", " "), plain[key], ours.get(key, 0.0)) for key in phases
    ]
    rows.append(("all phases, seconds", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    for name, before, after in rows:
        table.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}" if after else "")
    table.add_row("sampled tokens", f"{plain['tokens']:.0f}", f"{ours['tokens']:.0f}", "")
    Console().print(table)


def main() -> None:
    if sys.argv[1:2] == ["--play"]:
        play(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=at_least_one, default=3)
    parser.add_argument("--sandbox", default="bubblewrap", choices=["bubblewrap", "docker"])
    parser.add_argument("--repos", type=Path, default=ROOT / "runs/recipes/quickstart-repos.txt")
    parser.add_argument("--config", type=Path, default=ROOT / "runs/recipes/learning.toml")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="selfplay-bench-") as folder:
        found = {variant: measured(variant, options, Path(folder)) for variant in VARIANTS}
    if options.json:
        print(json.dumps(found))
    else:
        show(found, options.updates)


if __name__ == "__main__":
    main()
