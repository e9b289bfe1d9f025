"""Checks that many sandboxes leave nothing behind.

It counts memory, descriptors, threads, processes, mounts, control groups, temporary files, containers and
volumes. benchmarks/sandbox.py measures times. Invariant: only things of this process count, so that others
may use the machine meanwhile. Mounts and volumes name no owner: they are compared by name.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from selfplay.sandbox.base import Sandbox, SandboxBackend, SandboxSpec
from selfplay.sandbox.docker_engine import engine_host, shared_client
from selfplay.sandbox.owners import owner

WARM_UP = 3
SETTLE_S = 10.0  # the engine and the kernel finish some removals after they answered
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Holdings:
    """What this process holds at one moment.

    groups          control groups of its sandboxes
    temporary       temporary files and folders
    children_bytes  memory of its child processes (proportional share, so that shared memory counts once)
    kernel_bytes    slabs, per-processor data, stacks and page tables of the whole machine; only shown
    """

    resident_bytes: int
    descriptors: int
    threads: int
    processes: int
    groups: int
    temporary: int
    mounts: frozenset[str]
    containers: frozenset[str]
    volumes: frozenset[str]
    children_bytes: int
    kernel_bytes: int


@dataclass(frozen=True)
class Report:
    """What one check saw.

    before, opened, closed, after  holdings at the start, with `at_once` sandboxes open, without them, at the
                                   end
    opening_s                      to open all of them and run a first command in each
    asking_s, closing_s            to run a second command in each; to close all of them
    sequence_s                     to open, use and close `in_sequence` sandboxes one after the other
    left                           name -> how much more there is than before
    """

    backend: str
    at_once: int
    in_sequence: int
    before: Holdings
    opened: Holdings
    closed: Holdings
    after: Holdings
    opening_s: float
    asking_s: float
    closing_s: float
    sequence_s: float
    left: dict[str, str]


def check_scale(backend: SandboxBackend, at_once: int, in_sequence: int, memory_slack: int) -> Report:
    """Open `at_once` sandboxes together and use each twice, then open `in_sequence` one after the other.

    memory_slack: bytes by which this process may grow. Raises what the backend raises, and RuntimeError when
    a command gives a wrong result.
    """
    spec = SandboxSpec(environment="", labels={"run": "scale"})
    with private_temporary_folder() as folder:
        for _ in range(WARM_UP):  # things that are made once for all sandboxes are not left over
            with backend.open(spec) as box:
                ask(box, "warm")
        before = look(backend.name, folder)
        with ExitStack() as stack:
            started = time.monotonic()
            boxes = []
            for number in range(at_once):
                boxes.append(stack.enter_context(backend.open(spec)))
                ask(boxes[-1], f"echo {number} > number; cat number")
            opening_s = time.monotonic() - started
            opened = look(backend.name, folder)
            started = time.monotonic()
            for number, box in enumerate(boxes):
                ask(box, "cat number", str(number))
            asking_s = time.monotonic() - started
            started = time.monotonic()
        closing_s = time.monotonic() - started
        closed = settled(backend.name, folder, before, memory_slack)
        started = time.monotonic()
        for number in range(in_sequence):
            with backend.open(spec) as box:
                ask(box, f"echo {number}", str(number))
        sequence_s = time.monotonic() - started
        after = settled(backend.name, folder, before, memory_slack)
    left = {f"{name}, all at once": more for name, more in left_over(before, closed, memory_slack).items()}
    left |= {f"{name}, in sequence": more for name, more in left_over(before, after, memory_slack).items()}
    seconds = (opening_s, asking_s, closing_s, sequence_s)
    return Report(backend.name, at_once, in_sequence, before, opened, closed, after, *seconds, left)


def ask(box: Sandbox, command: str, expected: str | None = None) -> None:
    result = box.run(command)
    if expected is not None and (result.exit_code, result.text.strip()) != (0, expected):
        raise RuntimeError(f"{command!r} was answered with {result}, not with {expected!r}")


def left_over(before: Holdings, after: Holdings, memory_slack: int) -> dict[str, str]:
    """Name -> how much more there is than before, without growth of memory by up to `memory_slack` bytes."""
    left = {}
    if after.resident_bytes > before.resident_bytes + memory_slack:
        left["memory"] = f"{(after.resident_bytes - before.resident_bytes) >> 20} MiB more"
    for name in ("descriptors", "threads", "processes", "groups", "temporary"):
        if (more := getattr(after, name) - getattr(before, name)) > 0:
            left[name] = f"{more} more"
    for name in ("mounts", "containers", "volumes"):
        if new := getattr(after, name) - getattr(before, name):
            left[name] = f"{len(new)} more, such as {min(new)}"
    return left


def settled(kind: str, folder: Path, before: Holdings, memory_slack: int) -> Holdings:
    """Wait until nothing more is held than `before`, at most SETTLE_S. Returns what is held then."""
    give_up = time.monotonic() + SETTLE_S
    while True:
        gc.collect()
        now = look(kind, folder)
        if not left_over(before, now, memory_slack) or time.monotonic() > give_up:
            return now
        time.sleep(0.2)


@contextmanager
def private_temporary_folder() -> Iterator[Path]:
    """Let this process put its temporary files into a new folder, so that only its own are counted."""
    usual = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="selfplay-scale-") as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = usual


# ---- looking


def look(kind: str, folder: Path) -> Holdings:
    """kind: the backend's name; only "docker" looks at the engine. folder: for temporary files."""
    children = descendants(os.getpid())
    containers, volumes = _of_the_engine() if kind == "docker" else (frozenset[str](), frozenset[str]())
    return Holdings(
        resident_bytes=_kilobytes(Path("/proc/self/status"), ("VmRSS",)),
        descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        threads=threading.active_count(),
        processes=len(children),
        groups=sum(
            name.startswith(f"selfplay-{owner()}-") for _, names, _ in os.walk(CGROUPS) for name in names
        ),
        temporary=sum(1 for _ in folder.rglob("*")),
        mounts=frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        containers=containers,
        volumes=volumes,
        children_bytes=sum(_kilobytes(Path(f"/proc/{pid}/smaps_rollup"), ("Pss",)) for pid in children),
        kernel_bytes=_kilobytes(Path("/proc/meminfo"), ("Slab", "Percpu", "KernelStack", "PageTables")),
    )


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, including dead ones that nobody has waited for."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(file.parent.name))
    found, pending = [], [pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def _kilobytes(path: Path, names: tuple[str, ...]) -> int:
    """The sum, in bytes, of the lines with these names in a file of /proc; 0 for a process that has ended."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.partition(":")[0] in names)


def _of_the_engine() -> tuple[frozenset[str], frozenset[str]]:
    """Names of this process's containers, and of all volumes, since volumes have no label."""
    client = shared_client(engine_host())
    containers = client.api.containers(all=True, filters={"label": f"selfplay.owner={owner()}"})
    volumes = client.api.volumes()["Volumes"] or []
    # Closes idle connections, of which the library keeps up to 25, one per address. No sandbox adds to them.
    client.close()
    return frozenset(found["Id"][:12] for found in containers), frozenset(
        volume["Name"] for volume in volumes
    )


# ---- showing


def show_report(report: Report) -> None:
    stages = {
        "before": report.before,
        f"{report.at_once} open": report.opened,
        "closed": report.closed,
        f"after {report.in_sequence} in sequence": report.after,
    }
    table = Table(title=f"{report.backend}: what this process holds")
    for column in ("", *stages):
        table.add_column(column, justify="right" if column else "left")
    for name, label in (
        ("resident_bytes", "memory of the harness, MiB"),
        ("children_bytes", "memory of sandboxes, MiB"),
    ):
        table.add_row(label, *(f"{getattr(holdings, name) / 2**20:.1f}" for holdings in stages.values()))
    for name in ("descriptors", "threads", "processes"):
        table.add_row(name, *(str(getattr(holdings, name)) for holdings in stages.values()))
    table.add_row("control groups", *(str(holdings.groups) for holdings in stages.values()))
    table.add_row("temporary files", *(str(holdings.temporary) for holdings in stages.values()))
    for name in ("mounts", "containers", "volumes"):
        table.add_row(name, *(str(len(getattr(holdings, name))) for holdings in stages.values()))
    table.add_row(
        "the whole machine's kernel memory, MiB",
        *(f"{holdings.kernel_bytes / 2**20:.0f}" for holdings in stages.values()),
    )
    console = Console()
    console.print(table)
    console.print(
        f"{report.at_once} opened in {report.opening_s:.1f} s, asked again in {report.asking_s:.2f} s, "
        f"closed in {report.closing_s:.1f} s; {report.in_sequence} in sequence in {report.sequence_s:.1f} s"
    )
    if report.left:
        console.print(
            "NOT returned to where it was: "
            + "; ".join(f"{name}: {more}" for name, more in report.left.items()),
            markup=False,
        )
    else:
        console.print("returned to where it was")
