"""How many processor cores this process may use. What they are used for, others decide."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Those it is bound to (`taskset`, a cpuset), not all that the machine has, where the system tells; at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
