"""The time that a sandbox takes: start, one command, files in and out, removal.

One run compares our sandboxes with swe-rex, mini-swe-agent and the least that each mechanism takes (the
floors):

    make bench-sandbox
    python -m benchmarks.sandbox [--rounds 20] [--kind bubblewrap] [--json]

Leaves out peers that are not installed, and says so. `--scale` checks instead that many sandboxes leave
nothing behind (benchmarks/sandbox_scale.py).
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import os
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.options import at_least_one
from benchmarks.sandbox_peers import BARE, MAKERS, Contender, Failed, Load, Opened, Unavailable
from benchmarks.sandbox_scale import check_scale, show_report
from selfplay.errors import PrerequisiteError
from selfplay.sandbox import open_backend

WARM_UP_COMMANDS = 3
START, COMMAND, OVER, REMOVE = "start, to the end of `true`", "`true`", "`true`, over its own time", "removal"

Samples = dict[str, dict[str, list[float]]]  # contender → operation → seconds


@dataclass(frozen=True)
class Figure:
    """Times of one operation of one contender.

    count   number of samples
    p50_ms  median
    ratio   its median divided by that of our sandbox of the same kind; None where ours did not run
    """

    operation: str
    contender: str
    count: int
    p50_ms: float
    p90_ms: float
    ratio: float | None


def make_load(label: str, name: str, files: int, file_bytes: int, scratch: Path) -> Load:
    """Make files of hexadecimal digits, ten in a folder. Only swe-rex compresses them, to half their size."""
    generator = random.Random(name)
    folder = scratch / name
    for number in range(files):
        path = folder / f"part_{number // 10}" / f"file_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(generator.randbytes(file_bytes // 2).hex())
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(folder, arcname=name)
    return Load(label, name, folder, out.getvalue(), files * file_bytes // 2 * 2)


def measure_once(
    contender: Contender, commands: int, loads: Sequence[Load], found: dict[str, list[float]]
) -> None:
    """Open one sandbox, time every operation in it, remove it. Adds the times, in seconds, to `found`."""
    started = time.perf_counter()
    box = contender.open()
    try:
        box.run()
        found[START].append(time.perf_counter() - started)
        for _ in range(WARM_UP_COMMANDS):
            box.run()
        for _ in range(commands):
            started = time.perf_counter()
            own_s = box.run()
            seconds = time.perf_counter() - started
            found[COMMAND].append(seconds)
            if own_s is not None:
                found[OVER].append(seconds - own_s)
        for load in loads if contender.moves_files else ():
            _move(box, load, found)
    except BaseException:
        with suppress(Exception):
            box.remove()
        raise
    if contender.lasts:
        started = time.perf_counter()
        box.remove()
        found[REMOVE].append(time.perf_counter() - started)


def _move(box: Opened, load: Load, found: dict[str, list[float]]) -> None:
    started = time.perf_counter()
    box.put(load)
    found[f"{load.label} in"].append(time.perf_counter() - started)
    started = time.perf_counter()
    got = box.get(load)
    if got is None:
        return
    found[f"{load.label} out"].append(time.perf_counter() - started)
    with tarfile.open(fileobj=io.BytesIO(got)) as archive:
        size = sum(member.size for member in archive if member.isreg())
    if size != load.content_bytes:
        raise Failed(f"{size} bytes came back of {load.content_bytes} in {load.name}")


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    commands: int,
    loads: Sequence[Load],
    report: Callable[[str], None],
) -> tuple[Samples, dict[str, str]]:
    """Measure each contender once per round. Returns the samples, and contender -> reason of each failure.

    Each round starts with the next contender, so that none always follows the same one. A contender that
    fails is not measured again.
    """
    samples: Samples = {contender.name: defaultdict(list) for contender in contenders}
    failed: dict[str, str] = {}
    for number in range(rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            if contender.name in failed:
                continue
            try:
                measure_once(contender, commands, loads, samples[contender.name])
            except Exception as error:  # the others are measured on, whatever a library raises
                failed[contender.name] = f"failed in round {number + 1}: {type(error).__name__}: {error}"
        report(f"round {number + 1} of {rounds}")
    _add_overheads(contenders, samples)
    return samples, failed


def _add_overheads(contenders: Sequence[Contender], samples: Samples) -> None:
    """Add OVER for contenders that do not report a command's own time.

    Estimates that time: a bare start of bash for those that start bash, else 0.
    """
    bare_s = statistics.median(samples.get(BARE, {}).get(COMMAND) or [0.0])
    for contender in contenders:
        found = samples[contender.name]
        if OVER not in found and contender.name != BARE:
            found[OVER] = [seconds - (bare_s if contender.starts_bash else 0.0) for seconds in found[COMMAND]]


def figures_of(contenders: Sequence[Contender], samples: Samples, operations: Sequence[str]) -> list[Figure]:
    figures = []
    for operation in operations:
        medians = {
            c.name: statistics.median(samples[c.name][operation])
            for c in contenders
            if samples[c.name].get(operation)
        }
        for contender in contenders:
            if contender.name not in medians:
                continue
            values = sorted(samples[contender.name][operation])
            p50, p90 = medians[contender.name], values[math.ceil(0.9 * len(values)) - 1]
            ours = medians.get(f"selfplay {contender.kind}")
            ratio = round(p50 / ours, 2) if ours else None
            figures.append(
                Figure(
                    operation, contender.name, len(values), round(1000 * p50, 3), round(1000 * p90, 3), ratio
                )
            )
    return figures


def show(figures: Sequence[Figure], left_out: Mapping[str, str], heading: str) -> None:
    console = Console()
    table = Table(
        title=heading, caption="ratio: its median / that of selfplay's sandbox of the same kind in this run"
    )
    for column in ("", "n", "p50 ms", "p90 ms", "ratio"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for operation, rows in itertools.groupby(figures, lambda figure: figure.operation):
        table.add_section()
        table.add_row(f"[bold]{operation}")
        for row in rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            table.add_row(
                f"  {row.contender}", str(row.count), f"{row.p50_ms:.2f}", f"{row.p90_ms:.2f}", ratio
            )
    console.print(table)
    for name, reason in left_out.items():
        console.print(f"left out: {name}: {reason}", markup=False, highlight=False)


def compare(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="selfplay-bench-") as folder:
        scratch = Path(folder)
        loads = [
            make_load("1 MB (100 files)", "small", 100, 10_000, scratch),
            make_load("20 MB (20 files)", "large", 20, 1_000_000, scratch),
        ]
        contenders, left_out = [], {}
        for name, make in MAKERS.items():
            if (
                options.kind != "all"
                and ("docker" in name) != (options.kind == "docker")
                and name != "bare exec"
            ):
                continue
            try:
                contenders.append(make(scratch))
            except Unavailable as missing:
                left_out[name] = str(missing)
        before = os.getloadavg()[0]
        samples, failed = measure(
            contenders,
            options.rounds,
            options.commands,
            loads,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
    moves = [f"{load.label} {way}" for load in loads for way in ("in", "out")]
    figures = figures_of(contenders, samples, [START, COMMAND, OVER, *moves, REMOVE])
    left_out |= failed
    if options.json:
        print(
            json.dumps(
                {
                    "figures": [asdict(figure) for figure in figures],
                    "left_out": left_out,
                    "load_before": before,
                }
            )
        )
    else:
        rounds = f"{options.rounds} rounds of {options.commands} commands"
        show(figures, left_out, f"a sandbox, {rounds}; load when it began {before:.1f}")
    return 1 if any(name.startswith("selfplay") for name in failed) else 0


def scale(options: argparse.Namespace) -> int:
    status = 0
    for kind in ("bubblewrap", "docker"):
        if options.kind not in ("all", kind):
            continue
        try:
            backend, _ = open_backend(kind)
        except PrerequisiteError as missing:
            print(f"left out: {kind}: {str(missing).splitlines()[0]}")
            continue
        report = check_scale(backend, options.at_once, options.in_sequence, options.memory_slack << 20)
        if options.json:
            print(json.dumps(asdict(report), default=len))  # sets of names become their sizes
        else:
            show_report(report)
        status |= bool(report.left)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="all", choices=["all", "bubblewrap", "docker"])
    parser.add_argument(
        "--rounds",
        type=at_least_one,
        default=20,
        help="number of rounds; each opens, uses and removes one sandbox of every contender",
    )
    parser.add_argument("--commands", type=at_least_one, default=20, help="timed commands in each sandbox")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--scale", action="store_true", help="check instead what many sandboxes leave behind")
    parser.add_argument(
        "--at-once", type=at_least_one, default=200, help="with --scale: sandboxes open together"
    )
    parser.add_argument(
        "--in-sequence",
        type=at_least_one,
        default=2000,
        help="with --scale: sandboxes opened and closed one after the other",
    )
    parser.add_argument(
        "--memory-slack", type=int, default=16, help="with --scale: MiB by which this process may grow"
    )
    options = parser.parse_args()
    return scale(options) if options.scale else compare(options)


if __name__ == "__main__":
    sys.exit(main())
