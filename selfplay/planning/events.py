"""Simulated time: calls that wait for their moment."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class EventQueue:
    """Runs calls in the order of their simulated time.

    Calls of the same moment run in the order they were added.
    """

    def __init__(self) -> None:
        self.now = 0.0  # simulated seconds
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers = itertools.count()
        self._is_stopped = False

    def after(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._numbers), call, arguments))

    def run(self, most: int) -> int:
        """Run calls until none is left, one has called `stop`, or `most` are done. Returns how many ran."""
        self._is_stopped = False
        heap, pop = self._heap, heapq.heappop
        done = 0
        while heap and done < most and not self._is_stopped:
            self.now, _, call, arguments = pop(heap)
            call(*arguments)
            done += 1
        return done

    def stop(self) -> None:
        self._is_stopped = True
