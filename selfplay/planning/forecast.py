"""What a simulation predicts, and the counters from which it is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from selfplay.algorithm.staleness import lag
from selfplay.planning.rollouts import RolloutServer
from selfplay.planning.scenario import Cluster


@dataclass(frozen=True)
class Forecast:
    """Averages over the measured updates. Shares are of GPU time or of slot time.

    trainer_idle    the trainer waits for a batch
    trainer_sync    the trainer sends weights; in the remaining share it trains
    rollout_idle    servers without a running request, paused servers included
    rollout_load    running requests ÷ requests that fit
    sandbox_idle    slots without an open sandbox
    sandbox_running slots in which something runs; in the remaining share an open sandbox waits for the policy
    sandboxes       open sandboxes
    lag_*           updates between the first sampled token of an episode and the update that trains on it
    dropped         share of episodes that were too old to train on
    phases_s        seconds of each phase of an update (kind "phases" only)
    update_seconds  seconds of each measured update
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


class Gauge:
    """A number that changes over time, and its integral since the last reset."""

    __slots__ = ("_since", "integral", "value")

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


class Measurements:
    """Counters of a running simulation. `begin` resets them, `forecast` averages them.

    commits  time of each finished update, from the start of the simulation
    phases   seconds of each phase, one value per measured update
    """

    def __init__(self) -> None:
        self.open_sandboxes = Gauge()
        self.running_sandboxes = Gauge()
        self.train_s = 0.0
        self.sync_s = 0.0
        self.played = 0
        self.trained = 0
        self.trained_tokens = 0.0
        self.dropped = 0
        self.commits: list[float] = []
        self.phases: dict[str, list[float]] = {}
        self._lags: list[int] = []
        self._began = 0.0
        self._first_commit = 0

    def begin(self, now: float, servers: Iterable[RolloutServer]) -> None:
        """Measure from now on."""
        self._began = now
        self._first_commit = len(self.commits)
        self.open_sandboxes.reset(now)
        self.running_sandboxes.reset(now)
        for server in servers:
            server.advance()
            server.busy_s = server.load_s = 0.0
        self.train_s = self.sync_s = self.trained_tokens = 0.0
        self.played = self.trained = self.dropped = 0
        self._lags.clear()

    def add_lags(self, versions: Iterable[int], version: int) -> None:
        """Count episodes of these weight versions as trained at `version`."""
        self._lags += [lag(sampled, version) for sampled in versions]

    def forecast(self, now: float, cluster: Cluster, servers: Sequence[RolloutServer]) -> Forecast:
        seconds = max(now - self._began, 1e-9)
        self.open_sandboxes.add(0.0, now)
        self.running_sandboxes.add(0.0, now)
        for server in servers:
            server.advance()
        served = seconds * len(servers)
        commits = self.commits[self._first_commit :]
        lags = sorted(self._lags)
        per_hour = 3600 / seconds
        return Forecast(
            updates=len(commits),
            seconds=seconds,
            episodes_per_hour=self.played * per_hour,
            trained_per_hour=self.trained * per_hour,
            tokens_per_hour=self.trained_tokens * per_hour,
            trainer_idle=max(0.0, 1 - (self.train_s + self.sync_s) / seconds),
            trainer_sync=self.sync_s / seconds,
            rollout_idle=max(0.0, 1 - sum(server.busy_s for server in servers) / served),
            rollout_load=sum(server.load_s for server in servers) / served / cluster.server.most,
            sandbox_idle=max(0.0, 1 - self.open_sandboxes.integral / seconds / cluster.slots),
            sandbox_running=self.running_sandboxes.integral / seconds / cluster.slots,
            sandboxes=self.open_sandboxes.integral / seconds,
            lag_mean=sum(lags) / len(lags) if lags else 0.0,
            lag_p95=float(lags[min(len(lags) - 1, int(0.95 * len(lags)))]) if lags else 0.0,
            lag_max=lags[-1] if lags else 0,
            dropped=self.dropped / max(1, self.dropped + len(lags)),
            phases_s={name: sum(values) / len(values) for name, values in self.phases.items()},
            update_seconds=tuple(end - begin for begin, end in pairwise([self._began, *commits])),
        )
