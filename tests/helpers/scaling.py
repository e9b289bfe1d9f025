"""Whether the processor time of some work is linear in the size of its input."""

import gc
import time
from collections.abc import Callable

STEPS = 8  # times as much input
MOST_GROWTH = 26.0  # of the time: linear work grows 8 times, quadratic work 64 times
MEASURABLE_S = 0.004
MOST_SIZE = 1 << 19
TRIES = 8  # a busy machine spoils single measurements


def is_linear(work: Callable[[int], object], size: int) -> bool:
    """Whether STEPS times `size` takes at most MOST_GROWTH times the processor time, in one of TRIES tries.

    The size is doubled until the time can be measured, so that the result does not depend on the machine.
    What cannot be measured at MOST_SIZE is no quadratic work.
    """
    while _least_s(work, size) < MEASURABLE_S:
        size *= 2
        if size > MOST_SIZE:
            return True
    return any(_least_s(work, STEPS * size) < MOST_GROWTH * _least_s(work, size) for _ in range(TRIES))


def _least_s(work: Callable[[int], object], size: int) -> float:
    """Without garbage collection: it walks over everything that earlier tests have left in memory."""
    taken = []
    gc.disable()
    try:
        for _ in range(2):
            started = time.thread_time()
            work(size)
            taken.append(time.thread_time() - started)
    finally:
        gc.enable()
    return min(taken)
