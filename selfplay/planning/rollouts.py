"""Simulated rollouts: groups of episodes in play, and the servers that sample their tokens."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable

from selfplay.planning.events import EventQueue
from selfplay.planning.hardware import ServerSpeed
from selfplay.planning.workload import EpisodeShape, GroupShape

_TINY = 1e-6  # tokens or seconds; a request with less left is finished


class Group:
    """A group that was started.

    parent           the injector group that made the bug; None for injectors and for older bugs
    expected_tokens  tokens that the group counts for until it is complete
    unfinished       episodes that are not judged yet
    unsettled        solver groups of its bugs that are not complete yet
    versions         for each judged episode, the weight version of its first sampled token
    tokens           tokens that the group brings to a batch
    """

    def __init__(self, shape: GroupShape, parent: Group | None) -> None:
        self.shape = shape
        self.parent = parent
        self.expected_tokens = 0.0
        self.unfinished = len(shape.episodes)
        self.unsettled = 0
        self.versions: list[int] = []
        self.tokens = 0.0


class Rollout:
    """One episode in play.

    stretch         index of the current stretch
    context         tokens of the conversation so far
    cached_version  weight version at which the server computed the conversation's KV cache
    first_version   weight version of the first sampled token; None before it
    """

    def __init__(self, shape: EpisodeShape, group: Group, server: RolloutServer) -> None:
        self.shape = shape
        self.group = group
        self.server = server
        self.stretch = 0
        self.context = 0.0
        self.cached_version = 0
        self.first_version: int | None = None


class RolloutServer:
    """Serves requests by continuous batching: each of b running requests samples a token in token_s(b) s.

    Time is kept in "virtual tokens", the number that every running request has sampled. So only the end of a
    request is an event, at O(log b). Prefill delays sampling; `_prefill_s` is the prefill that remains.
    """

    def __init__(
        self,
        events: EventQueue,
        speed: ServerSpeed,
        clears_cache: bool,
        on_sampled: Callable[[Rollout], None],
    ) -> None:
        """on_sampled: called when the current stretch of a rollout is sampled."""
        self._events = events
        self._speed = speed
        self._clears_cache = clears_cache
        self._on_sampled = on_sampled
        self._token_s = [1.0, *(speed.token_s(batch) for batch in range(1, speed.most + 1))]
        self._running: list[tuple[float, int, Rollout]] = []
        self._numbers = itertools.count()
        self._waiting: deque[Rollout] = deque()
        self._virtual_tokens = 0.0
        self._prefill_s = 0.0
        self._last = 0.0  # time of the last `advance`
        self._next_look = math.inf
        self._is_paused = False
        self._version = 0
        self.assigned = 0  # episodes that stay with this server
        self.busy_s = 0.0
        self.load_s = 0.0  # integral of running requests over time

    def advance(self) -> None:
        """Bring the counters up to the current time."""
        passed = self._events.now - self._last
        self._last = self._events.now
        count = len(self._running)
        if not passed or not count or self._is_paused:
            return
        self.busy_s += passed
        self.load_s += count * passed
        prefilling = min(self._prefill_s, passed)
        self._prefill_s -= prefilling
        self._virtual_tokens += (passed - prefilling) / self._token_s[count]

    def ask(self, rollout: Rollout) -> None:
        """Queue the current stretch of a rollout."""
        self.advance()
        self._waiting.append(rollout)
        self._admit()
        self._schedule()

    def pause(self) -> None:
        self.advance()
        self._is_paused = True

    def resume(self, version: int) -> None:
        """Continue with the weights `version`."""
        self.advance()
        self._is_paused = False
        self._version = version
        if self._clears_cache:
            for _, _, rollout in self._running:
                self._prefill(rollout, rollout.context + rollout.shape.stretches[rollout.stretch].prefill)
        self._admit()
        self._schedule()

    def _prefill(self, rollout: Rollout, tokens: float) -> None:
        self._prefill_s += tokens * self._speed.read_s
        rollout.cached_version = self._version

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._speed.most and not self._is_paused:
            rollout = self._waiting.popleft()
            part = rollout.shape.stretches[rollout.stretch]
            is_cold = self._clears_cache and rollout.cached_version < self._version
            self._prefill(rollout, part.prefill + (rollout.context if is_cold else 0.0))
            if rollout.first_version is None:
                rollout.first_version = self._version
            end = self._virtual_tokens + part.sampled
            heapq.heappush(self._running, (end, next(self._numbers), rollout))

    def _schedule(self) -> None:
        """Look again when the next request should be done.

        If more requests join meanwhile, that look comes too early and only schedules the next one.
        """
        if self._running and not self._is_paused:
            left = max(0.0, self._running[0][0] - self._virtual_tokens)
            wait = self._prefill_s + left * self._token_s[len(self._running)]
            if self._events.now + wait < self._next_look:
                self._next_look = self._events.now + wait
                self._events.after(wait, self._look, self._next_look)

    def _look(self, planned: float) -> None:
        if planned != self._next_look:
            return  # an earlier look was scheduled meanwhile
        self._next_look = math.inf
        if self._is_paused:
            return
        self.advance()
        done = []
        while self._has_finished_request():
            done.append(heapq.heappop(self._running)[2])
        self._admit()
        self._schedule()
        for rollout in done:
            self._on_sampled(rollout)

    def _has_finished_request(self) -> bool:
        is_prefilled = self._prefill_s <= _TINY
        return bool(self._running) and is_prefilled and self._running[0][0] <= self._virtual_tokens + _TINY
