"""Runs several simulations: one after the other, or on every core once they prove to be long.

Invariant: forecasts come in the order of their jobs, and where a simulation runs does not change its figures.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import starmap
from multiprocessing import get_context
from types import TracebackType

from selfplay.planning.forecast import Forecast
from selfplay.planning.scenario import Cluster, Rules
from selfplay.planning.simulation import simulate
from selfplay.planning.workload import Workload
from selfplay.runtime.cores import usable_cores

Job = tuple[Cluster, Workload, Rules]
Simulate = Callable[[Sequence[Job]], Iterable[Forecast]]

# Starting the processes takes about half a second, which shorter simulations do not earn back.
_LONG_S = 0.2


def in_turn(jobs: Sequence[Job]) -> Iterator[Forecast]:
    """Simulate one job after the other, in this process."""
    return starmap(simulate, jobs)


class Simulators:
    """Simulates in this process, until a simulation takes `long_s` CPU seconds; then in one process per core.

    Use it as a context manager, which ends the processes.
    """

    def __init__(self, long_s: float = _LONG_S, cores: int = 0) -> None:
        """cores: 0 takes those that this process may use."""
        self._long_s = long_s
        self._cores = cores or usable_cores()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Simulators:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Forecast]:
        left = list(jobs)
        while left and self._pool is None:
            begun = time.process_time()
            yield simulate(*left.pop(0))
            if self._cores > 1 and time.process_time() - begun >= self._long_s:
                self._start()
        if self._pool is not None:
            yield from self._pool.map(_simulate, left)

    def _start(self) -> None:
        # Not forked: threads of this process (the display's) could hold locks.
        self._pool = ProcessPoolExecutor(
            self._cores, mp_context=get_context("spawn"), initializer=_ignore_interrupts
        )


def _simulate(job: Job) -> Forecast:
    return simulate(*job)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
