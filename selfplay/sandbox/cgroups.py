"""Memory, process and processor limits by control groups, v1 or v2, where this process may make any; else None.

Leaves the watchdog that stands in for a missing group to the backend. Invariant: a group is named by its owner.
"""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from selfplay.sandbox.base import Limits
from selfplay.sandbox.owners import abandoned

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 100_000


@dataclass(frozen=True)
class ControlGroup:
    """One folder a controller (v1), or one for all of them (v2)."""

    folders: tuple[Path, ...]
    controllers: frozenset[str]

    def add(self, pid: int) -> None:
        for folder in self.folders:
            try:
                (folder / "cgroup.procs").write_text(str(pid))
            except ProcessLookupError:
                return

    def remove(self, patience_s: float = 5.0) -> None:
        """Kill what is left in it and remove it."""
        give_up = time.monotonic() + patience_s
        for folder in self.folders:
            while folder.exists():
                try:
                    folder.rmdir()
                except OSError:
                    for pid in _processes(folder):
                        _kill(pid)
                    if time.monotonic() > give_up:
                        break
                    time.sleep(0.002)


def memory_kills(group: ControlGroup | None) -> int | None:
    """How many processes the kernel ever killed for want of memory: in the group, else on the machine; None where it does not say."""
    files = [
        folder / name
        for folder in (group.folders if group else ())
        for name in ("memory.events", "memory.oom_control")
    ]  # v2, v1
    for file in (*files, Path("/proc/vmstat")):
        with suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE):
                return int(found[1])
    return None


def make_group(name: str, limits: Limits) -> ControlGroup | None:
    """A fresh group with these limits, without members; None where none may be made."""
    bases = _bases()
    if not bases:
        return None
    folders: list[Path] = []
    settings = _settings(limits)
    try:
        for controllers, base in bases:
            folder = base / name
            folder.mkdir()
            folders.append(folder)
            for controller in controllers:
                for filenames, value in settings[controller]:
                    _write_first(folder, filenames, value)
    except OSError:
        ControlGroup(tuple(folders), frozenset()).remove()
        return None
    return ControlGroup(tuple(folders), frozenset(c for controllers, _ in bases for c in controllers))


def sweep_groups() -> list[str]:
    removed = []
    for _, base in _bases():
        for folder in base.glob("selfplay-*"):
            if abandoned(folder.name):
                ControlGroup((folder,), frozenset()).remove()
                if not folder.exists():
                    removed.append(f"control group {folder}")
    return removed


def _settings(limits: Limits) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """Per controller: (file name of v1 or v2, whichever is there; value). A swap file may be missing, the others not."""
    memory, quota = str(limits.memory_bytes), int(limits.cpus * PERIOD_US)
    return {
        "memory": [
            (("memory.limit_in_bytes", "memory.max"), memory),
            (("memory.memsw.limit_in_bytes", ""), memory),
            (("memory.swap.max", ""), "0"),
        ],
        "pids": [(("pids.max",), str(limits.processes))],
        "cpu": [(("cpu.max", ""), f"{quota} {PERIOD_US}"), (("cpu.cfs_quota_us", ""), str(quota))],
    }


def _write_first(folder: Path, filenames: tuple[str, ...], value: str) -> None:
    for filename in filenames:
        if not filename:
            return  # optional
        if (folder / filename).exists():
            (folder / filename).write_text(value)
            return
    raise FileNotFoundError(f"{folder} has none of {filenames}")


@cache
def _bases() -> tuple[tuple[tuple[str, ...], Path], ...]:
    """Where groups can be made: ((controllers, folder), …). Memory and pids are needed, cpu is taken where it is."""
    if (ROOT / "cgroup.controllers").exists():
        return _unified_base()
    found = []
    own = _own_groups()
    for controller in ("memory", "pids", "cpu"):
        for mount in (ROOT / controller, ROOT / "cpu,cpuacct"):
            base = mount / own.get(controller, "").lstrip("/")
            if not base.is_dir():
                base = mount
            if (
                base.is_dir()
                and os.access(base, os.W_OK)
                and (base / "cgroup.procs").exists()
                and (controller != "cpu" or (base / "cpu.shares").exists())
            ):
                found.append(((controller,), base))
                break
            if controller != "cpu":
                break
    return tuple(found) if {"memory", "pids"} <= {c for controllers, _ in found for c in controllers} else ()


def _unified_base() -> tuple[tuple[tuple[str, ...], Path], ...]:
    """v2: a parent without processes of its own, since only such a one may limit its children."""
    for base in (ROOT / _own_groups().get("", "").lstrip("/"), ROOT):
        parent = base / "selfplay"
        try:
            wanted = [
                c for c in ("memory", "pids", "cpu") if c in (base / "cgroup.controllers").read_text().split()
            ]
            if not {"memory", "pids"} <= set(wanted):
                continue
            enable = " ".join(f"+{c}" for c in wanted)
            (base / "cgroup.subtree_control").write_text(enable)
            parent.mkdir(exist_ok=True)
            (parent / "cgroup.subtree_control").write_text(enable)
            return ((tuple(wanted), parent),)
        except OSError:
            continue
    return ()


def _own_groups() -> dict[str, str]:
    groups: dict[str, str] = {}
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                groups[controller] = path
    except OSError:
        pass
    return groups


def _processes(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
