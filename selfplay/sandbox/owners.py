"""Names that tell which process made a thing, so that what a dead process left behind can be found and removed.

Invariant: only things of this machine whose process is surely gone count as abandoned; in doubt they stay.
"""

from __future__ import annotations

import itertools
import os
from functools import cache
from pathlib import Path

_counter = itertools.count(1)


def owner() -> str:
    """`machine-boot-pidnamespace-pid-start`, without characters that a file name or a label could not hold."""
    return "-".join((*_place(), str(os.getpid()), _start(os.getpid()) or "0"))


def unique_name() -> str:
    """A name for something of this process; `abandoned` can be asked about it later."""
    return f"selfplay-{owner()}-{next(_counter)}"


def abandoned(name: str) -> bool:
    """Whether the maker of `name` (made by `unique_name`, or an `owner()`) is surely dead."""
    parts = name.removeprefix("selfplay-").split("-")
    if len(parts) < 5:
        return False
    machine, boot, namespace, pid, start = parts[:5]
    here = _place()
    if machine != here[0] or not pid.isdigit():
        return False
    if boot != here[1]:
        return True
    return namespace == here[2] and _start(int(pid)) != start


def _start(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


@cache
def _place() -> tuple[str, str, str]:
    machine = _read("/etc/machine-id") or os.uname().nodename
    boot = _read("/proc/sys/kernel/random/boot_id")
    namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    return machine.replace("-", "")[:12] or "machine", boot.replace("-", "")[:12] or "boot", namespace


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
