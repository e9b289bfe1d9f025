"""Plays simulated episodes: a sandbox opens, server and sandbox take turns, then a verdict is reached.

Invariant: an episode holds one sandbox slot from start to end, and its verdict holds another one afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import attrgetter

from selfplay.planning.events import EventQueue
from selfplay.planning.forecast import Measurements
from selfplay.planning.rollouts import Group, Rollout, RolloutServer
from selfplay.planning.scenario import Cluster

_assigned = attrgetter("assigned")  # a lambda would take a tenth of the simulation's time


class Player:
    """Rollout servers and sandbox slots, and the episodes that use them."""

    def __init__(
        self,
        events: EventQueue,
        cluster: Cluster,
        measured: Measurements,
        next_group: Callable[[], bool],
        on_judged: Callable[[Rollout], None],
    ) -> None:
        """Build the servers.

        next_group  called when slots are free; it starts a group with `add` and returns True, or returns
                    False
        on_judged   called when an episode has its verdict
        """
        self._events = events
        self._cluster = cluster
        self._measured = measured
        self._open, self._running = measured.open_sandboxes, measured.running_sandboxes
        self._next_group = next_group
        self._on_judged = on_judged
        self.servers = [
            RolloutServer(events, cluster.server, cluster.clears_cache, self._sampled)
            for _ in range(cluster.servers)
        ]
        self._pending: deque[Rollout] = deque()  # they wait for a sandbox
        self._playing = 0
        self._to_judge: deque[Rollout] = deque()
        self._judging = 0

    @property
    def is_idle(self) -> bool:
        """True if no episode is played or judged."""
        return not (self._playing or self._judging or self._to_judge)

    def add(self, group: Group) -> None:
        """Queue the episodes of a group. Each goes to the server with the fewest episodes and stays there."""
        for episode in group.shape.episodes:
            server = min(self.servers, key=_assigned)
            server.assigned += 1
            self._pending.append(Rollout(episode, group, server))

    def fill(self) -> None:
        """Use free slots: verdicts first, then episodes that wait, then new groups."""
        judges = self._cluster.judges or self._cluster.slots
        while self._playing + self._judging < self._cluster.slots:
            if self._to_judge and self._judging < judges:
                rollout = self._to_judge.popleft()
                self._judging += 1
                self._open.add(+1, self._events.now)
                self._running.add(+1, self._events.now)
                self._events.after(rollout.shape.judge_s, self._judged, rollout)
            elif self._playing < self._cluster.in_flight and (self._pending or self._next_group()):
                rollout = self._pending.popleft()
                self._playing += 1
                self._open.add(+1, self._events.now)
                self._running.add(+1, self._events.now)
                self._events.after(rollout.shape.open_s, self._opened, rollout)
            else:
                return

    def _opened(self, rollout: Rollout) -> None:
        self._running.add(-1, self._events.now)
        self._ask_or_end(rollout)

    def _ask_or_end(self, rollout: Rollout) -> None:
        if rollout.stretch < len(rollout.shape.stretches):
            rollout.server.ask(rollout)
        else:
            self._ended(rollout)

    def _sampled(self, rollout: Rollout) -> None:
        part = rollout.shape.stretches[rollout.stretch]
        rollout.context += part.prefill + part.sampled
        self._running.add(+1, self._events.now)
        self._events.after(part.act_s, self._acted, rollout)

    def _acted(self, rollout: Rollout) -> None:
        self._running.add(-1, self._events.now)
        rollout.stretch += 1
        self._ask_or_end(rollout)

    def _ended(self, rollout: Rollout) -> None:
        rollout.server.assigned -= 1
        self._playing -= 1
        self._open.add(-1, self._events.now)
        self._to_judge.append(rollout)
        self.fill()

    def _judged(self, rollout: Rollout) -> None:
        self._judging -= 1
        self._open.add(-1, self._events.now)
        self._running.add(-1, self._events.now)
        self._measured.played += 1
        self._on_judged(rollout)
