"""How the processor time of some work grows with the size of its input."""

import time
from collections.abc import Callable

STEPS = 8  # times as much input
# Linear work grows 8 times, quadratic work 64 times. Caches and other processes cost less than a factor of 3.
MOST_GROWTH = 26.0
MEASURABLE_S = 0.004


def growth(work: Callable[[int], object], size: int) -> float:
    """Processor time for STEPS times `size`, in that for `size`: the smallest of three measurements each.

    The size is doubled until the time can be measured, so that the result does not depend on the machine.
    """
    while (small := _least_s(work, size)) < MEASURABLE_S:
        size *= 2
    return _least_s(work, STEPS * size) / small


def _least_s(work: Callable[[int], object], size: int) -> float:
    taken = []
    for _ in range(3):
        started = time.process_time()
        work(size)
        taken.append(time.process_time() - started)
    return min(taken)
