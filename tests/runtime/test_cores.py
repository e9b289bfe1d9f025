import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfplay.runtime.cores import CoreUse, FreeCores, busy_ticks, free_threads, read_core_use, usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_that_is_bound_to_one_core_counts_one():
    bind = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    code = f"{bind}; from selfplay.runtime.cores import usable_cores; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "1\n"
    assert usable_cores() == len(os.sched_getaffinity(0))


STAT = """cpu  100 0 50 1000 7 1 2 0 0 0
cpu0 60 1 20 500 3 1 2 4 9 0
cpu1 40 0 30 500 4 0 0 0 0 0
intr 5
"""


def test_work_of_the_usable_cores_is_counted_without_idle_time_and_guests():
    assert busy_ticks(STAT, {0}) == 60 + 1 + 20 + 1 + 2 + 4
    assert busy_ticks(STAT, {0, 1}) == 88 + 70


@pytest.mark.parametrize(
    ("busy", "own", "threads"),
    [(2.0, 2.0, 2), (1.0, 1.0, 2), (1.2, 1.0, 2), (2.0, 1.0, 1), (2.0, 0.2, 1), (0.9, 1.1, 2)],
)
def test_threads_take_the_cores_that_others_leave(busy, own, threads):
    before, after = CoreUse(5.0, 10.0, 1.0), CoreUse(6.0, 10.0 + busy, 1.0 + own)
    assert free_threads(before, after, cores=2) == threads


def test_this_machine_s_use_of_cores_can_be_read():
    if not Path("/proc/stat").exists():
        pytest.skip("no /proc/stat here")
    first, second = read_core_use(), read_core_use()
    assert first is not None and second is not None and second.busy >= first.busy > 0
    assert 1 <= FreeCores(interval_s=0.0).threads() <= usable_cores()
