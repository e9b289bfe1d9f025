"""Whether the processor time of some work is what it should be, on any machine.

Invariant: only times of one machine and one moment are compared with each other, never a time with a number
of seconds.
"""

import gc
import os
import time
from collections.abc import Callable

from selfplay.attacks.base import Broken, Held, Outcome

STEPS = 8  # times as much input
MOST_GROWTH = 26.0  # of the time: linear work grows 8 times, quadratic work 64 times
MEASURABLE_S = 0.004
MOST_SIZE = 1 << 19
TRIES = 8  # a busy machine spoils single measurements

Clock = Callable[[], float]


def is_linear(work: Callable[[int], object], size: int) -> bool:
    """Whether STEPS times `size` takes at most MOST_GROWTH times the processor time, in one of TRIES tries.

    The size is doubled until the time can be measured, so that the result does not depend on the machine.
    What cannot be measured at MOST_SIZE is no quadratic work.
    """

    def least_s(size: int) -> float:
        return _least_s(lambda: work(size), time.thread_time)

    while least_s(size) < MEASURABLE_S:
        size *= 2
        if size > MOST_SIZE:
            return True
    return any(least_s(STEPS * size) < MOST_GROWTH * least_s(size) for _ in range(TRIES))


def linear(work: Callable[[int], object], size: int, what: str) -> Outcome:
    """Held if `work` is linear from `size` on. what: the input, for the evidence."""
    if is_linear(work, size):
        return Held(f"linear time: {what}")
    return Broken(f"{STEPS} times as much takes more than {MOST_GROWTH:g} times as long: {what}")


def times_as_long(
    work: Callable[[], object], usual: Callable[[], object], most: float, clock: Clock
) -> float:
    """The processor time of `work` as a multiple of that of `usual`.

    The first value that is not above `most`, or the least of three.
    """
    least = float("inf")
    for _ in range(3):
        least = min(least, _least_s(work, clock) / max(_least_s(usual, clock), 1e-9))
        if least <= most:
            break
    return least


def children_s() -> float:
    """Processor time of the processes that this one started and that ended, in seconds."""
    times = os.times()
    return times.children_user + times.children_system


def _least_s(work: Callable[[], object], clock: Clock) -> float:
    """Without garbage collection: it walks over everything that earlier tests have left in memory."""
    taken = []
    gc.disable()
    try:
        for _ in range(2):
            started = clock()
            work()
            taken.append(clock() - started)
    finally:
        gc.enable()
    return min(taken)
