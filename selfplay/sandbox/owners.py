"""Names that identify the process that made a thing, so that a sweep can remove what dead processes left.

Invariant: a thing counts as abandoned only when its process has surely ended on this machine. In doubt it
stays.
"""

from __future__ import annotations

import os
import secrets
from functools import cache
from pathlib import Path


def owner() -> str:
    """This process as `machine-boot-pidnamespace-pid-start`. Valid in a file name and in a label."""
    return "-".join((*_pid_scope(), str(os.getpid()), _start(os.getpid()) or "0"))


def unique_name() -> str:
    """A new name for a thing that this process makes; see `abandoned`."""
    return f"selfplay-{owner()}-{secrets.token_hex(8)}"


def abandoned(name: str) -> bool:
    """Whether the process that made a thing has surely ended. name: from `unique_name` or `owner`."""
    parts = name.removeprefix("selfplay-").split("-")
    if len(parts) < 5:
        return False
    machine, boot, namespace, pid, start = parts[:5]
    here = _pid_scope()
    if machine != here[0] or not pid.isdigit():
        return False
    if boot != here[1]:
        return True
    return namespace == here[2] and _start(int(pid)) != start


def _start(pid: int) -> str | None:
    """Start time of a process, in clock ticks since the boot: a pid may be reused. None when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


@cache
def _pid_scope() -> tuple[str, str, str]:
    """Machine, boot and pid namespace: a pid means a process only within all three."""
    machine = _read("/etc/machine-id") or os.uname().nodename
    boot = _read("/proc/sys/kernel/random/boot_id")
    namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    return machine.replace("-", "")[:12] or "machine", boot.replace("-", "")[:12] or "boot", namespace


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
