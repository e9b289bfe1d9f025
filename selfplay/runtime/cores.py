"""The number of processor cores that this process may use, and how many of them others leave free."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_MARGIN = 0.3  # a core that others use less than this counts as free


def usable_cores() -> int:
    """The cores that this process is bound to (`taskset`, a cpuset), or all where the system cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class CoreUse:
    """Seconds since some start: by the clock, of work on the usable cores by anyone, and by this process."""

    clock: float
    busy: float
    own: float


def free_threads(before: CoreUse, after: CoreUse, cores: int) -> int:
    """Threads, at least 1, for which other processes left a core free between two readings."""
    seconds = after.clock - before.clock
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(1, min(cores, int(cores - max(0.0, others) / seconds + _MARGIN)))


class FreeCores:
    """Says how many threads to compute with, while other processes come and go.

    Threads that wait for a busy core at every operation cost far more than they gain.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        self._interval_s = interval_s
        self._cores = usable_cores()
        self._last = read_core_use()
        # Until it is measured: half, since tests run on the others.
        self._threads = max(1, self._cores // 2)

    def threads(self) -> int:
        """The number for now. It is measured anew when the interval has passed since the last time."""
        if self._last is not None and time.monotonic() - self._last.clock >= self._interval_s:
            now = read_core_use()
            if now is not None:
                self._threads = free_threads(self._last, now, self._cores)
            self._last = now
        return self._threads


def read_core_use() -> CoreUse | None:
    """A reading of Linux's /proc/stat; None where there is none."""
    try:
        text = Path("/proc/stat").read_text()
        ticks = busy_ticks(text, os.sched_getaffinity(0))
        return CoreUse(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time())
    except (OSError, AttributeError, ValueError, IndexError):
        return None


def busy_ticks(stat: str, cores: set[int]) -> int:
    """Ticks of work on these cores in the text of /proc/stat: all but idle, waiting for disks, and guests."""
    total = 0
    for line in stat.splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, interrupts, soft_interrupts, steal = map(int, numbers[:8])
            total += user + nice + system + interrupts + soft_interrupts + steal
    return total
