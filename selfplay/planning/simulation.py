"""The cluster as events: servers that slow down as they fill, sandboxes of bounded number, judging, batches, training, weight syncs.

Invariant: one seeded generator decides every draw, so that equal arguments give an equal forecast; no clock but the simulated one.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from selfplay.agent.episode import Role
from selfplay.algorithm.staleness import is_stale, lag
from selfplay.errors import RunError, UsageError
from selfplay.planning.hardware import ServerSpeed, TrainerSpeed
from selfplay.planning.workload import EpisodeShape, GroupShape, Workload

_TINY = 1e-6  # tokens; a request with less left is finished
_MOST_EVENTS = 20_000_000


@dataclass(frozen=True)
class Cluster:
    """servers: rollout servers of one speed. slots: sandboxes open at a time, of episodes and verdicts. in_flight: episodes at a time.

    judges: verdicts and grades at a time, within `slots`; 0: as many as there are slots. sync_s: servers pause, the trainer waits.
    """

    servers: int
    server: ServerSpeed
    trainer: TrainerSpeed
    slots: int
    in_flight: int
    sync_s: float = 0.0
    judges: int = 0
    rereads: bool = True  # after a sync every conversation is read anew


@dataclass(frozen=True)
class Rules:
    """How updates are made up.

    overlapped  everything at once; an update is trained when `batch_tokens` of groups with a gradient are complete. A group starts only
                while what was started before it fills at most `max_lag` whole batches, so that it is not too old when its turn comes. With
                max_lag = 0 a batch also waits for all that was started: synchronous.
    phases      injectors, then solvers, then second-order verdicts, then training, each to its end; `plans` holds (injector groups, solver
                groups) of an update and `second_order_s` seconds of its third phase, both drawn from.
    """

    max_lag: int = 8
    batch_tokens: float = 0.0
    kind: Literal["overlapped", "phases"] = "overlapped"
    plans: tuple[tuple[int, int], ...] = ()
    second_order_s: tuple[float, ...] = (0.0,)
    updates: int = 20  # that are measured
    warmup: int = 10  # before them: the pipeline fills
    seed: int = 0


@dataclass(frozen=True)
class Forecast:
    """What the simulation gave over the measured updates. Shares are of GPU time or slot time; idle ones add up with their busy side to 1.

    trainer_idle   waits for a batch; trainer_sync: hands out weights; the rest trains
    rollout_idle   servers without a running request, paused ones too; rollout_load: running requests ÷ those that fit, on average
    sandbox_idle   slots with no sandbox open; sandbox_running: slots in which something runs (the rest waits for the policy)
    lag_*          updates between an episode's first drawn token and the update that trains on it; dropped: share of episodes too old
    phases_s       seconds of an update's phases (kind "phases" alone)
    update_seconds each measured update
    """

    updates: int
    seconds: float
    episodes_per_hour: float
    trained_per_hour: float
    tokens_per_hour: float
    trainer_idle: float
    trainer_sync: float
    rollout_idle: float
    rollout_load: float
    sandbox_idle: float
    sandbox_running: float
    sandboxes: float
    lag_mean: float
    lag_p95: float
    lag_max: int
    dropped: float
    phases_s: dict[str, float] = field(default_factory=dict)
    update_seconds: tuple[float, ...] = ()

    @property
    def update_s(self) -> float:
        return self.seconds / self.updates


def simulate(cluster: Cluster, workload: Workload, rules: Rules) -> Forecast:
    """Play `rules.warmup` + `rules.updates` updates and measure the last. Raises UsageError naming a value that cannot be simulated."""
    _check(cluster, workload, rules)
    return _Simulation(cluster, workload, rules).run()


def _check(cluster: Cluster, workload: Workload, rules: Rules) -> None:
    for name in ("servers", "slots", "in_flight"):
        if (value := getattr(cluster, name)) < 1:
            raise UsageError(f"{name} = {value}: a cluster needs at least 1.")
    if rules.updates < 1 or rules.warmup < 0 or rules.max_lag < 0:
        raise UsageError(
            f"updates = {rules.updates}, warmup = {rules.warmup}, max_lag = {rules.max_lag}: needs 1, 0 and 0 or more."
        )
    if not workload.solvers and not workload.injectors:
        raise UsageError(f"the workload {workload.name} holds no group to draw from.")
    if rules.kind == "overlapped" and rules.batch_tokens <= 0:
        raise UsageError(
            f"batch_tokens = {rules.batch_tokens:g}: needs the tokens of an update, for instance 16800000."
        )
    if rules.kind == "overlapped" and not any(
        group.carries and group.tokens for group in (*workload.injectors, *workload.solvers)
    ):
        raise UsageError(
            f"no group of the workload {workload.name} carries a gradient: an update would never fill."
        )


class _Gauge:
    """A number over time: its integral since the last reset."""

    def __init__(self) -> None:
        self.value = 0.0
        self.integral = 0.0
        self._since = 0.0

    def add(self, change: float, now: float) -> None:
        self.integral += self.value * (now - self._since)
        self._since = now
        self.value += change

    def reset(self, now: float) -> None:
        self.add(0.0, now)
        self.integral = 0.0


class _Group:
    def __init__(self, shape: GroupShape, parent: _Group | None, expected: float) -> None:
        self.shape = shape
        self.parent = parent  # the injector group whose bug is played
        self.expected = expected  # tokens it is counted for until they are known
        self.unfinished = len(shape.episodes)
        self.unsettled = 0  # solver groups of its bugs
        self.versions: list[int] = []
        self.tokens = 0.0


class _Play:
    """One episode that is being played."""

    def __init__(self, shape: EpisodeShape, group: _Group, server: _Server) -> None:
        self.shape = shape
        self.group = group
        self.server = server
        self.stretch = 0
        self.held = 0.0  # tokens of the conversation so far
        self.synced = 0  # the sync after which its conversation was last read
        self.version = -1  # of the weights that drew its first token


class _Server:
    """Requests of one server share it evenly: all advance by one token in token_s(b) seconds.

    Kept in virtual time (tokens that every running request has drawn), so that an event costs O(log b). Reading prompts holds up
    drawing; what is still to be read is `debt_s`.
    """

    def __init__(self, sim: _Simulation, speed: ServerSpeed) -> None:
        self._sim = sim
        self._speed = speed
        self._token_s = [1.0, *(speed.token_s(batch) for batch in range(1, speed.most + 1))]
        self._running: list[tuple[float, int, _Play]] = []
        self._waiting: deque[_Play] = deque()
        self._virtual = 0.0
        self._debt_s = 0.0
        self._last = 0.0
        self._wakes = math.inf  # when it looks next whether a request is done
        self._paused = False
        self.assigned = 0  # episodes that stay with this server
        self.busy_s = 0.0
        self.load_s = 0.0  # running requests x seconds

    def advance(self) -> None:
        passed = self._sim.now - self._last
        self._last = self._sim.now
        count = len(self._running)
        if not passed or not count or self._paused:
            return
        self.busy_s += passed
        self.load_s += count * passed
        reading = min(self._debt_s, passed)
        self._debt_s -= reading
        self._virtual += (passed - reading) / self._token_s[count]

    def ask(self, play: _Play) -> None:
        self.advance()
        self._waiting.append(play)
        self._admit()
        self._schedule()

    def pause(self) -> None:
        self.advance()
        self._paused = True

    def resume(self) -> None:
        self.advance()
        self._paused = False
        if self._sim.cluster.rereads:
            for _, _, play in self._running:
                self._read(play, play.held + play.shape.stretches[play.stretch].read)
        self._admit()
        self._schedule()

    def _read(self, play: _Play, tokens: float) -> None:
        self._debt_s += tokens * self._speed.read_s
        play.synced = self._sim.syncs

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._speed.most and not self._paused:
            play = self._waiting.popleft()
            part = play.shape.stretches[play.stretch]
            is_cold = self._sim.cluster.rereads and play.synced < self._sim.syncs
            self._read(play, part.read + (play.held if is_cold else 0.0))
            if play.version < 0:
                play.version = self._sim.version
            heapq.heappush(self._running, (self._virtual + part.drawn, self._sim.next_number(), play))

    def _schedule(self) -> None:
        """Look again when the next request is done. A look that comes too early, since others joined, only plans the next one."""
        if self._running and not self._paused:
            left = max(0.0, self._running[0][0] - self._virtual)
            wait = self._debt_s + left * self._token_s[len(self._running)]
            if self._sim.now + wait < self._wakes:
                self._wakes = self._sim.now + wait
                self._sim.after(wait, self._look, self._wakes)

    def _look(self, planned: float) -> None:
        if planned != self._wakes:
            return  # an earlier look was planned since
        self._wakes = math.inf
        if self._paused:
            return
        self.advance()
        done = []
        while self._running and self._running[0][0] <= self._virtual + _TINY and self._debt_s <= _TINY:
            done.append(heapq.heappop(self._running)[2])
        self._admit()
        self._schedule()
        for play in done:
            self._sim.drawn(play)


class _Simulation:
    def __init__(self, cluster: Cluster, workload: Workload, rules: Rules) -> None:
        self.cluster = cluster
        self.now = 0.0
        self.version = 0  # of the servers' weights
        self.syncs = 0
        self._workload = workload
        self._rules = rules
        self._rng = random.Random(rules.seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = 0
        self._servers = [_Server(self, cluster.server) for _ in range(cluster.servers)]
        # episodes
        self._pending: deque[_Play] = deque()  # of started groups, waiting for a sandbox
        self._playing = 0
        self._judging = 0
        self._judge_queue: deque[_Play] = deque()
        self._unsettled = 0  # groups that were started and are not ready
        self._fresh: deque[_Group] = (
            deque()
        )  # bugs that wait for their solvers: the injector groups that made them
        self._owed = 1.0  # injector groups that are due: one for each so many solver groups
        # tokens that stand before a group that starts now
        self._expected = 0.0  # of groups that are not ready
        self._ready: deque[_Group] = deque()
        self._ready_tokens = 0.0
        self._in_training = 0.0
        self._means = {role: workload.trained_tokens(role) for role in Role}
        # A synchronous batch holds injectors together with the solvers of their bugs, so room is kept for these from the start.
        self._kept = self._means[Role.SOLVER] if rules.max_lag == 0 else 0.0
        # measuring
        self._open = _Gauge()
        self._acting = _Gauge()
        self._train_s = 0.0
        self._sync_s = 0.0
        self._began = 0.0
        self._played = 0
        self._trained = 0
        self._trained_tokens = 0.0
        self._dropped = 0
        self._lags: list[int] = []
        self._commits: list[float] = []
        # phases
        self._phase = ""
        self._phase_began = 0.0
        self._solver_groups = 0
        self._phases: dict[str, list[float]] = {}

    # -- the machinery of events

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def after(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (self.now + seconds, self.next_number(), call, arguments))

    def run(self) -> Forecast:
        total = self._rules.warmup + self._rules.updates
        if not self._rules.warmup:
            self._begin_measuring()
        if self._rules.kind == "phases":
            self._begin_update()
        else:
            self._start_groups()
        events = 0
        while len(self._commits) < total:
            if not self._events:
                raise RunError(
                    f"the simulation stands still after {len(self._commits)} of {total} updates: nothing runs and no batch is full. "
                    "A larger --max-lag, more sandboxes or a smaller --batch-tokens lets it go on."
                )
            events += 1
            if events > _MOST_EVENTS:
                raise RunError(
                    f"{_MOST_EVENTS:,} events and no end; give fewer --updates than {self._rules.updates} or a smaller --batch-tokens."
                )
            self.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)
        return self._forecast()

    # -- one episode: sandbox, turns, judging

    def _start_group(self, shape: GroupShape, parent: _Group | None = None) -> None:
        group = _Group(shape, parent, self._means[shape.role])
        if shape.role is Role.INJECTOR:
            group.expected += self._workload.bugs * self._kept
        self._expected += group.expected
        self._unsettled += 1
        for episode in shape.episodes:
            server = (
                min(self._servers, key=lambda one: one.assigned)
                if len(self._servers) > 1
                else self._servers[0]
            )
            server.assigned += 1
            self._pending.append(_Play(episode, group, server))

    def _fill(self) -> None:
        """Open sandboxes while there are slots: verdicts first, then episodes that wait, then new groups."""
        judges = self.cluster.judges or self.cluster.slots
        while True:
            free = self.cluster.slots - self._playing - self._judging
            if free <= 0:
                return
            if self._judge_queue and self._judging < judges:
                play = self._judge_queue.popleft()
                self._judging += 1
                self._open.add(1, self.now)
                self._acting.add(1, self.now)
                self.after(play.shape.judge_s, self._judged, play)
            elif self._playing < self.cluster.in_flight and (self._pending or self._next_group()):
                play = self._pending.popleft()
                self._playing += 1
                self._open.add(1, self.now)
                self._acting.add(1, self.now)
                self.after(play.shape.open_s, self._opened, play)
            else:
                return

    def _opened(self, play: _Play) -> None:
        self._acting.add(-1, self.now)
        if play.shape.stretches:
            play.server.ask(play)
        else:
            self._ended(play)

    def drawn(self, play: _Play) -> None:
        part = play.shape.stretches[play.stretch]
        play.held += part.read + part.drawn
        self._acting.add(1, self.now)
        self.after(part.act_s, self._acted, play)

    def _acted(self, play: _Play) -> None:
        self._acting.add(-1, self.now)
        play.stretch += 1
        if play.stretch < len(play.shape.stretches):
            play.server.ask(play)
        else:
            self._ended(play)

    def _ended(self, play: _Play) -> None:
        play.server.assigned -= 1
        self._playing -= 1
        self._open.add(-1, self.now)
        self._judge_queue.append(play)
        self._fill()

    def _judged(self, play: _Play) -> None:
        self._judging -= 1
        self._open.add(-1, self.now)
        self._acting.add(-1, self.now)
        self._played += 1
        group = play.group
        group.versions.append(play.version if play.version >= 0 else self.version)
        group.unfinished -= 1
        if not group.unfinished:
            self._judged_group(group)
        self._fill()
        self._proceed()

    # -- groups and batches

    def _judged_group(self, group: _Group) -> None:
        if group.shape.role is Role.INJECTOR and self._rules.kind == "overlapped":
            group.unsettled = group.shape.bugs
            self._fresh.extend([group] * group.shape.bugs)
            # From now on its bugs are counted one by one, and the group for its own tokens.
            self._expected += (group.shape.bugs - self._workload.bugs) * self._kept
            group.expected -= self._workload.bugs * self._kept
        if not group.unsettled:
            self._settled(group)

    def _settled(self, group: _Group) -> None:
        self._expected -= group.expected
        self._unsettled -= 1
        if group.shape.carries:
            group.tokens = group.shape.tokens
            self._ready_tokens += group.tokens
            self._ready.append(group)
            if self._rules.kind == "overlapped" and is_stale(
                min(group.versions), self.version, self._rules.max_lag
            ):
                self._drop_stale()
        parent = group.parent
        if parent is not None:
            parent.unsettled -= 1
            if not parent.unsettled:
                self._settled(parent)

    def _next_group(self) -> bool:
        """Start a group, if the rules let one start now."""
        if self._rules.kind == "phases":
            return False
        ahead = self._expected + self._ready_tokens + self._in_training
        has_room = ahead < (self._rules.max_lag + 1) * self._rules.batch_tokens
        # Bugs go before everything but injectors that are due; what an injector group waits for may not wait for it in turn.
        must_start = self._rules.max_lag == 0 or not (self._playing or self._judging or self._judge_queue)
        is_due = self._owed >= 1 and len(self._fresh) <= 2 * self._workload.solver_groups
        if self._fresh and ((has_room and not is_due) or (not has_room and must_start)):
            self._expected -= self._kept
            self._start_solvers(self._fresh.popleft())
            return True
        if not has_room:
            return False
        if self._workload.injectors and (self._owed >= 1 or not self._workload.solvers):
            self._owed -= 1
            self._start_group(self._rng.choice(self._workload.injectors))
        else:
            self._start_solvers(None)
        return True

    def _start_solvers(self, parent: _Group | None) -> None:
        """On a fresh bug of `parent`, or without one on an older bug."""
        if self._workload.injectors:
            self._owed += 1 / max(self._workload.solver_groups, 1e-9)
        self._start_group(self._rng.choice(self._workload.solvers), parent)

    def _start_groups(self) -> None:
        self._fill()
        self._proceed()

    def _proceed(self) -> None:
        if self._rules.kind == "phases":
            if not self._unsettled and self._phase in ("injecting", "solving"):
                self._next_phase()
            return
        if self._in_training or self._ready_tokens < self._rules.batch_tokens:
            return
        if self._rules.max_lag == 0 and self._unsettled:
            return
        batch: list[_Group] = []
        tokens = 0.0
        # A synchronous batch takes all that is complete: what it leaves would be too old for the next.
        while self._ready and (tokens < self._rules.batch_tokens or self._rules.max_lag == 0):
            group = self._ready.popleft()
            tokens += group.tokens
            self._lags += [lag(version, self.version) for version in group.versions]
            batch.append(group)
        self._ready_tokens -= tokens
        self._train(batch, tokens)

    def _drop_stale(self) -> None:
        """Of groups that wait, leave out what grew too old; one that keeps no more than half of its episodes goes as a whole."""
        kept: deque[_Group] = deque()
        for group in self._ready:
            fresh = [
                version
                for version in group.versions
                if not is_stale(version, self.version, self._rules.max_lag)
            ]
            size = len(group.shape.episodes)
            if 2 * len(fresh) <= size:
                fresh = []
            group.tokens *= len(fresh) / len(group.versions)
            self._dropped += len(group.versions) - len(fresh)
            group.versions = fresh
            if fresh:
                kept.append(group)
        self._ready = kept
        self._ready_tokens = sum(group.tokens for group in kept)

    def _train(self, batch: Sequence[_Group], tokens: float) -> None:
        self._in_training = max(tokens, self._rules.batch_tokens)
        squares = sum(episode.tokens**2 for group in batch for episode in group.shape.episodes)
        seconds = self.cluster.trainer.seconds(tokens, squares)
        self._train_s += seconds
        self._trained += sum(len(group.versions) for group in batch)
        self._trained_tokens += tokens
        self.after(seconds, self._trained_update)

    def _trained_update(self) -> None:
        for server in self._servers:
            server.pause()
        self._sync_s += self.cluster.sync_s
        self.after(self.cluster.sync_s, self._synced)

    def _synced(self) -> None:
        if self._rules.kind == "phases":
            self._end_phase("training")
        self.version += 1
        self.syncs += 1
        self._in_training = 0.0
        for server in self._servers:
            server.resume()
        self._commits.append(self.now)
        if len(self._commits) == self._rules.warmup:
            self._begin_measuring()
        if len(self._commits) == self._rules.warmup + self._rules.updates:
            return
        if self._rules.kind == "phases":
            self._begin_update()
        else:
            self._drop_stale()
            self._fill()
            self._proceed()

    # -- phases, one after the other

    def _begin_update(self) -> None:
        injector_groups, self._solver_groups = self._rng.choice(self._rules.plans)
        self._phase, self._phase_began = "injecting", self.now
        self._begin_groups(self._workload.injectors, injector_groups)

    def _begin_groups(self, shapes: Sequence[GroupShape], count: int) -> None:
        for _ in range(count):
            self._start_group(self._rng.choice(shapes))
        self._fill()
        self._proceed()

    def _next_phase(self) -> None:
        self._end_phase(self._phase)
        if self._phase == "injecting":
            self._phase = "solving"
            self._begin_groups(self._workload.solvers, self._solver_groups)
        else:
            self._phase = "second order"
            self.after(self._rng.choice(self._rules.second_order_s), self._train_phase)

    def _train_phase(self) -> None:
        self._end_phase("second order")
        self._phase = "training"
        batch = list(self._ready)
        self._ready.clear()
        self._lags += [lag(version, self.version) for group in batch for version in group.versions]
        self._train(batch, sum(group.tokens for group in batch))

    def _end_phase(self, phase: str) -> None:
        if len(self._commits) >= self._rules.warmup:
            self._phases.setdefault(phase, []).append(self.now - self._phase_began)
        self._phase_began = self.now

    # -- what came of it

    def _begin_measuring(self) -> None:
        self._began = self.now
        for gauge in (self._open, self._acting):
            gauge.reset(self.now)
        for server in self._servers:
            server.advance()
            server.busy_s = server.load_s = 0.0
        self._train_s = self._sync_s = self._trained_tokens = 0.0
        self._played = self._trained = self._dropped = 0
        self._lags.clear()

    def _forecast(self) -> Forecast:
        seconds = max(self.now - self._began, 1e-9)
        for gauge in (self._open, self._acting):
            gauge.add(0.0, self.now)
        for server in self._servers:
            server.advance()
        served = seconds * len(self._servers)
        commits = [self._began, *self._commits[self._rules.warmup :]]
        lags = sorted(self._lags)
        per_hour = 3600 / seconds
        return Forecast(
            updates=self._rules.updates,
            seconds=seconds,
            episodes_per_hour=self._played * per_hour,
            trained_per_hour=self._trained * per_hour,
            tokens_per_hour=self._trained_tokens * per_hour,
            trainer_idle=max(0.0, 1 - (self._train_s + self._sync_s) / seconds),
            trainer_sync=self._sync_s / seconds,
            rollout_idle=max(0.0, 1 - sum(server.busy_s for server in self._servers) / served),
            rollout_load=sum(server.load_s for server in self._servers) / served / self.cluster.server.most,
            sandbox_idle=max(0.0, 1 - self._open.integral / seconds / self.cluster.slots),
            sandbox_running=self._acting.integral / seconds / self.cluster.slots,
            sandboxes=self._open.integral / seconds,
            lag_mean=sum(lags) / len(lags) if lags else 0.0,
            lag_p95=float(lags[min(len(lags) - 1, int(0.95 * len(lags)))]) if lags else 0.0,
            lag_max=lags[-1] if lags else 0,
            dropped=self._dropped / max(1, self._dropped + len(lags)),
            phases_s={name: sum(values) / len(values) for name, values in self._phases.items()},
            update_seconds=tuple(end - begin for begin, end in pairwise(commits)),
        )
