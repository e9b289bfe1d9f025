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

    def after(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._numbers), call, arguments))

    def run_next(self) -> bool:
        """Run the next call. Returns False if there is none."""
        if not self._heap:
            return False
        self.now, _, call, arguments = heapq.heappop(self._heap)
        call(*arguments)
        return True
