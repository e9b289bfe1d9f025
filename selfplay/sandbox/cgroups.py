"""Limits of memory, processes and processors by control groups, v1 or v2.

This process may lack the right to make groups: then `make_group` returns None, and the backend needs a
watchdog instead. Invariant: a group's name identifies the process that made it, so that `sweep_groups` can
tell what a dead process left.
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
NEAR_LIMIT_BYTES = 4 << 20  # a request for memory that would exceed the limit is not added to what was used


@dataclass(frozen=True)
class ControlGroup:
    """A group of processes.

    folders      one per controller (v1), or one for all controllers (v2)
    controllers  names of the controllers that limit the group
    """

    folders: tuple[Path, ...]
    controllers: frozenset[str]

    def has(self, pid: int) -> bool:
        """Whether a process is in the group. Not so where this process may make groups but not fill them."""
        return all(pid in _processes(folder) for folder in self.folders)

    def remove(self, patience_s: float = 5.0) -> None:
        """Kill its processes and remove it. After `patience_s` seconds, leave it to a sweep."""
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


def machine_kills(group: ControlGroup | None) -> int:
    """Number of processes of the group that the kernel killed because the machine ran out of memory.

    0 if the group reached a limit of its own, since its own code is to blame then. Without a group: kills of
    the whole machine.
    """
    if group is not None and _reached_own_limit(group):
        return 0
    return memory_kills(group) or 0


def _reached_own_limit(group: ControlGroup) -> bool:
    for folder in group.folders:
        with suppress(OSError):  # v2
            if found := re.search(r"^oom (\d+)$", (folder / "memory.events").read_text(), re.MULTILINE):
                return found[1] != "0"
        with suppress(OSError, ValueError):  # v1
            most, limit = (
                int((folder / name).read_text())
                for name in ("memory.max_usage_in_bytes", "memory.limit_in_bytes")
            )
            return most > limit - NEAR_LIMIT_BYTES
    return True


def group_of(pid: int, name: str) -> ControlGroup | None:
    """The group with this name that limits the memory of a process. None if it is not to be found here."""
    for controllers, path in _groups_of(str(pid)).items():
        folder = ROOT / controllers / path.lstrip("/")
        if controllers in ("", "memory") and name in path and folder.is_dir():
            return ControlGroup((folder,), frozenset({"memory"}))
    return None


def memory_kills(group: ControlGroup | None) -> int | None:
    """Number of processes that the kernel killed since memory ran out; None where it counts none.

    Of the group, or of the whole machine where there is no group.
    """
    files = [
        folder / name
        for folder in (group.folders if group else ())
        for name in ("memory.events", "memory.oom_control")  # of v2, of v1
    ]
    for file in (*files, Path("/proc/vmstat")):
        with suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE):
                return int(found[1])
    return None


def make_group(name: str, limits: Limits) -> ControlGroup | None:
    """Make a group with these limits and no processes. Returns None when this process may not make one."""
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
    """Controller -> its settings: (possible file names, value). The name "" means that it may be missing."""
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
            return  # the file may be missing
        if (folder / filename).exists():
            (folder / filename).write_text(value)
            return
    raise FileNotFoundError(f"{folder} has none of {filenames}")


@cache
def _bases() -> tuple[tuple[tuple[str, ...], Path], ...]:
    """The folders that groups can be made in: ((controllers, folder), …). Empty without memory and pids."""
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
    """v2: a parent folder without processes of its own, since only such a parent may limit its children."""
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
    return _groups_of("self")


def _groups_of(pid: str) -> dict[str, str]:
    """Controller ("" for v2) -> path of the group that a process is in."""
    groups: dict[str, str] = {}
    try:
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
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
