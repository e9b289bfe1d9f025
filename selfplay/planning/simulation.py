"""Simulates updates: groups start, complete groups form batches, the trainer trains, weights are synced.

Invariant: one seeded generator makes every random choice and no clock but the simulated one is read, so equal
arguments give an equal forecast.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from selfplay.agent.episode import Role
from selfplay.algorithm.staleness import is_stale
from selfplay.errors import RunError
from selfplay.planning.events import EventQueue
from selfplay.planning.forecast import Forecast, Measurements
from selfplay.planning.player import Player
from selfplay.planning.rollouts import Group, Rollout
from selfplay.planning.scenario import Cluster, Rules, check_scenario
from selfplay.planning.workload import GroupShape, Workload

_MAX_EVENTS = 20_000_000


def simulate(cluster: Cluster, workload: Workload, rules: Rules) -> Forecast:
    """Play `rules.warmup` + `rules.updates` updates and measure the latter.

    Raises UsageError that names a value that cannot be simulated, RunError if the simulation cannot finish.
    """
    check_scenario(cluster, workload, rules)
    kind = _Phases if rules.kind == "phases" else _Overlapped
    return kind(cluster, workload, rules).run()


class _Simulation(ABC):
    """What both kinds of updates share: groups, training and weight syncs.

    version    weight version
    unsettled  groups that were started and are not complete
    ready      complete groups with a gradient, which wait for a batch
    """

    def __init__(self, cluster: Cluster, workload: Workload, rules: Rules) -> None:
        self._cluster = cluster
        self._workload = workload
        self._rules = rules
        self._rng = random.Random(rules.seed)
        self._events = EventQueue()
        self._measured = Measurements()
        self._player = Player(self._events, cluster, self._measured, self._next_group, self._judged)
        self._version = 0
        self._unsettled = 0
        self._ready: deque[Group] = deque()

    @abstractmethod
    def _begin_update(self) -> None:
        """Called at the start, and after each weight sync."""

    @abstractmethod
    def _next_group(self) -> bool:
        """Start a group if the rules allow one now. Returns False otherwise."""

    @abstractmethod
    def _proceed(self) -> None:
        """Take the next step of the update, if it is due. Called after each verdict."""

    def run(self) -> Forecast:
        total = self._rules.warmup + self._rules.updates
        commits = self._measured.commits
        if not self._rules.warmup:
            self._measured.begin(0.0, self._player.servers)
        self._begin_update()
        events = self._events.run(_MAX_EVENTS)
        if len(commits) < total and events < _MAX_EVENTS:
            raise RunError(
                f"the simulation is stuck after {len(commits)} of {total} updates: nothing runs and no "
                "batch is full. Raise --max-lag or the number of sandboxes, or lower --batch-tokens."
            )
        if len(commits) < total:
            raise RunError(
                f"the simulation did not end after {_MAX_EVENTS:,} events. Give fewer --updates than "
                f"{self._rules.updates}, or lower --batch-tokens."
            )
        return self._measured.forecast(self._events.now, self._cluster, self._player.servers)

    # -- groups

    def _start_group(self, shape: GroupShape, parent: Group | None = None) -> Group:
        group = Group(shape, parent)
        self._unsettled += 1
        self._player.add(group)
        return group

    def _judged(self, rollout: Rollout) -> None:
        group = rollout.group
        first = rollout.first_version
        group.versions.append(self._version if first is None else first)
        group.unfinished -= 1
        if not group.unfinished:
            self._group_judged(group)
        self._player.fill()
        self._proceed()

    def _group_judged(self, group: Group) -> None:
        if not group.unsettled:
            self._settle(group)

    def _settle(self, group: Group) -> None:
        """The group is complete, with the solver groups of its bugs."""
        self._unsettled -= 1
        if group.shape.has_gradient:
            group.tokens = group.shape.tokens
            self._add_ready(group)
        parent = group.parent
        if parent is not None:
            parent.unsettled -= 1
            if not parent.unsettled:
                self._settle(parent)

    def _add_ready(self, group: Group) -> None:
        self._ready.append(group)

    # -- training

    def _train(self, batch: Sequence[Group], tokens: float) -> None:
        for group in batch:
            self._measured.add_lags(group.versions, self._version)
        squares = sum(episode.tokens**2 for group in batch for episode in group.shape.episodes)
        seconds = self._cluster.trainer.seconds(tokens, squares)
        self._measured.train_s += seconds
        self._measured.trained += sum(len(group.versions) for group in batch)
        self._measured.trained_tokens += tokens
        self._events.after(seconds, self._begin_sync)

    def _begin_sync(self) -> None:
        for server in self._player.servers:
            server.pause()
        self._measured.sync_s += self._cluster.sync_s
        self._events.after(self._cluster.sync_s, self._end_sync)

    def _end_sync(self) -> None:
        self._version += 1
        for server in self._player.servers:
            server.resume(self._version)
        commits = self._measured.commits
        commits.append(self._events.now)
        if len(commits) == self._rules.warmup:
            self._measured.begin(self._events.now, self._player.servers)
        if len(commits) < self._rules.warmup + self._rules.updates:
            self._begin_update()
        else:
            self._events.stop()


class _Overlapped(_Simulation):
    """Groups are played while the trainer trains.

    A group may start while the tokens before it fill at most `max_lag` whole batches. These are the tokens
    that the trainer holds, the tokens of complete groups, and the expected tokens of the others.
    """

    def __init__(self, cluster: Cluster, workload: Workload, rules: Rules) -> None:
        super().__init__(cluster, workload, rules)
        self._mean_tokens = {role: workload.trained_tokens(role) for role in Role}
        # A synchronous batch holds injectors together with the solvers of their bugs. So each bug reserves
        # room for its solver group from the start.
        self._reserved_tokens = self._mean_tokens[Role.SOLVER] if rules.max_lag == 0 else 0.0
        self._expected_tokens = 0.0
        self._ready_tokens = 0.0
        self._training_tokens = 0.0
        # Bugs that wait for a solver group, each as the injector group that made it.
        self._fresh_bugs: deque[Group] = deque()
        self._due_injectors = 1.0  # injector groups that should start now, in proportion to solver groups

    def _begin_update(self) -> None:
        self._training_tokens = 0.0
        self._drop_stale()
        self._player.fill()
        self._proceed()

    def _next_group(self) -> bool:
        ahead = self._expected_tokens + self._ready_tokens + self._training_tokens
        has_room = ahead < (self._rules.max_lag + 1) * self._rules.batch_tokens
        # Fresh bugs go first, unless an injector group is due. An injector group is complete only with the
        # solvers of its bugs, so these must not wait for room that only that group would free.
        must_start = self._rules.max_lag == 0 or self._player.is_idle
        is_due = self._due_injectors >= 1 and len(self._fresh_bugs) <= 2 * self._workload.solver_groups
        if self._fresh_bugs and ((has_room and not is_due) or (not has_room and must_start)):
            self._expected_tokens -= self._reserved_tokens
            self._start_solvers(self._fresh_bugs.popleft())
            return True
        if not has_room:
            return False
        if self._workload.injectors and (self._due_injectors >= 1 or not self._workload.solvers):
            self._due_injectors -= 1
            self._start_group(self._rng.choice(self._workload.injectors))
        else:
            self._start_solvers(None)
        return True

    def _start_solvers(self, parent: Group | None) -> None:
        """Start a solver group on a fresh bug of `parent`; without a parent on an older bug."""
        if self._workload.injectors:
            self._due_injectors += 1 / max(self._workload.solver_groups, 1e-9)
        self._start_group(self._rng.choice(self._workload.solvers), parent)

    def _start_group(self, shape: GroupShape, parent: Group | None = None) -> Group:
        group = super()._start_group(shape, parent)
        group.expected_tokens = self._mean_tokens[shape.role]
        if shape.role is Role.INJECTOR:
            group.expected_tokens += self._workload.bugs * self._reserved_tokens
        self._expected_tokens += group.expected_tokens
        return group

    def _group_judged(self, group: Group) -> None:
        if group.shape.role is Role.INJECTOR:
            group.unsettled = group.shape.bugs
            self._fresh_bugs.extend([group] * group.shape.bugs)
            # From now on each real bug reserves its own tokens, and the group only counts its own.
            self._expected_tokens += (group.shape.bugs - self._workload.bugs) * self._reserved_tokens
            group.expected_tokens -= self._workload.bugs * self._reserved_tokens
        super()._group_judged(group)

    def _settle(self, group: Group) -> None:
        self._expected_tokens -= group.expected_tokens
        super()._settle(group)

    def _add_ready(self, group: Group) -> None:
        self._ready_tokens += group.tokens
        super()._add_ready(group)
        if is_stale(min(group.versions), self._version, self._rules.max_lag):
            self._drop_stale()

    def _drop_stale(self) -> None:
        """Drop episodes that are too old from complete groups.

        Drop the group if at most half of them are left.
        """
        kept: deque[Group] = deque()
        for group in self._ready:
            fresh = [
                version
                for version in group.versions
                if not is_stale(version, self._version, self._rules.max_lag)
            ]
            if 2 * len(fresh) <= len(group.shape.episodes):
                fresh = []
            group.tokens *= len(fresh) / len(group.versions)
            self._measured.dropped += len(group.versions) - len(fresh)
            group.versions = fresh
            if fresh:
                kept.append(group)
        self._ready = kept
        self._ready_tokens = sum(group.tokens for group in kept)

    def _proceed(self) -> None:
        """Train when a batch is full and the trainer is free."""
        is_synchronous = self._rules.max_lag == 0
        if self._training_tokens or self._ready_tokens < self._rules.batch_tokens:
            return
        if is_synchronous and self._unsettled:
            return
        batch: list[Group] = []
        tokens = 0.0
        # A synchronous batch takes every complete group: the rest would be too old for the next batch.
        while self._ready and (tokens < self._rules.batch_tokens or is_synchronous):
            group = self._ready.popleft()
            tokens += group.tokens
            batch.append(group)
        self._ready_tokens -= tokens
        self._training_tokens = max(tokens, self._rules.batch_tokens)
        self._train(batch, tokens)


class _Phases(_Simulation):
    """Injectors, solvers, second-order verdicts, training: each phase ends before the next begins."""

    def __init__(self, cluster: Cluster, workload: Workload, rules: Rules) -> None:
        super().__init__(cluster, workload, rules)
        self._phase = ""
        self._phase_began = 0.0
        self._solver_groups = 0

    def _begin_update(self) -> None:
        injector_groups, self._solver_groups = self._rng.choice(self._rules.plans)
        self._phase, self._phase_began = "injecting", self._events.now
        self._begin_groups(self._workload.injectors, injector_groups)

    def _begin_groups(self, shapes: Sequence[GroupShape], count: int) -> None:
        for _ in range(count):
            self._start_group(self._rng.choice(shapes))
        self._player.fill()
        self._proceed()

    def _next_group(self) -> bool:
        return False  # a phase starts all its groups at once

    def _proceed(self) -> None:
        if self._unsettled:
            return
        if self._phase == "injecting":
            self._end_phase()
            self._phase = "solving"
            self._begin_groups(self._workload.solvers, self._solver_groups)
        elif self._phase == "solving":
            self._end_phase()
            self._phase = "second order"
            self._events.after(self._rng.choice(self._rules.second_order_s), self._train_all)

    def _train_all(self) -> None:
        self._end_phase()
        self._phase = "training"
        batch = list(self._ready)
        self._ready.clear()
        self._train(batch, sum(group.tokens for group in batch))

    def _end_sync(self) -> None:
        self._end_phase()
        super()._end_sync()

    def _end_phase(self) -> None:
        if len(self._measured.commits) >= self._rules.warmup:
            seconds = self._events.now - self._phase_began
            self._measured.phases.setdefault(self._phase, []).append(seconds)
        self._phase_began = self._events.now
