"""Finds the best split of N GPUs between trainer and rollouts, and the fewest hosts that do not slow it.

The best split trains on the most episodes per hour. The search tries a coarse grid and then halves the steps.
Invariant: every figure of a plan comes from one simulation of exactly that split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from selfplay.agent.episode import Role
from selfplay.errors import UsageError
from selfplay.planning.forecast import Forecast
from selfplay.planning.hardware import (
    Gpu,
    ModelSize,
    ServerSpeed,
    choose_server_gpus,
    fewest_trainer_gpus,
    server_speed,
    sync_seconds,
    trainer_speed,
)
from selfplay.planning.scenario import Cluster, Rules
from selfplay.planning.simulation import simulate
from selfplay.planning.workload import Workload

# The turns of an episode are merged into this many stretches: the same tokens and seconds, far fewer events.
STRETCHES = 4
_GRID = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75)  # trainer shares that are tried first
_GOOD_ENOUGH = 0.99  # share of the best episodes per hour; with fewer hosts than that, hosts slow the cluster


@dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    batch_tokens                       tokens of an update
    slots                              sandboxes that may be open at once on one host
    server_gpus, trainer_gpus, hosts   0: to be found
    updates                            measured updates of each simulation
    """

    gpus: int
    workload: Workload
    model: ModelSize
    gpu: Gpu
    batch_tokens: float
    max_lag: int = 8
    slots: int = 64
    server_gpus: int = 0
    trainer_gpus: int = 0
    hosts: int = 0
    updates: int = 12
    seed: int = 0


@dataclass(frozen=True)
class Candidate:
    """One simulated split."""

    trainer_gpus: int
    rollout_gpus: int
    hosts: int
    forecast: Forecast


@dataclass(frozen=True)
class Plan:
    """The result of a search.

    splits    splits with more than enough hosts, by rising trainer GPUs
    by_hosts  the best split with different numbers of hosts, by rising hosts
    best      the best of them all
    """

    request: PlanRequest
    server: ServerSpeed
    best: Candidate
    splits: tuple[Candidate, ...]
    by_hosts: tuple[Candidate, ...]


def make_plan(request: PlanRequest, report: Callable[[str], None] = lambda text: None) -> Plan:
    """Search for the best split. report: called with a line before each simulation.

    Raises UsageError that names what is impossible: no GPUs, more trainer GPUs than GPUs, a policy that does
    not fit.
    """
    _check_values(request)
    request = _with_server_gpus(request)
    planner = _Planner(request, report)
    if request.trainer_gpus:
        chosen = request.trainer_gpus
        planner.split(chosen)
    else:
        chosen = planner.best_split()
    splits = tuple(planner.found[key] for key in sorted(planner.found))
    ample = planner.found[chosen]
    by_hosts = planner.fewer_hosts(ample) if not request.hosts else [ample]
    enough = [
        one
        for one in by_hosts
        if one.forecast.trained_per_hour >= _GOOD_ENOUGH * ample.forecast.trained_per_hour
    ]
    best = min(enough, key=lambda one: one.hosts)
    return Plan(request, planner.server, best, splits, tuple(sorted(by_hosts, key=lambda one: one.hosts)))


def _check_values(request: PlanRequest) -> None:
    if request.gpus < 1:
        raise UsageError(f"--gpus {request.gpus}: a cluster needs GPUs; give 2 or more.")
    for name, value in (("--slots", request.slots), ("--updates", request.updates)):
        if value < 1:
            raise UsageError(f"{name} {value}: needs 1 or more.")
    for name, value in (
        ("--hosts", request.hosts),
        ("--trainer-gpus", request.trainer_gpus),
        ("--server-gpus", request.server_gpus),
        ("--max-lag", request.max_lag),
    ):
        if value < 0:
            raise UsageError(f"{name} {value}: needs 0 or more.")
    if request.batch_tokens <= 0:
        raise UsageError(
            f"--batch-tokens {request.batch_tokens:g}: give the tokens of an update, for instance 16800000."
        )
    if request.gpus == 1:
        raise UsageError("--gpus 1: one GPU cannot be split between training and rollouts; give 2 or more.")
    if request.trainer_gpus >= request.gpus:
        raise UsageError(
            f"--trainer-gpus {request.trainer_gpus} leaves none of {request.gpus} GPUs for rollouts. "
            f"Give at most {request.gpus - 1}, or leave it out and the split is searched for."
        )


def _with_server_gpus(request: PlanRequest) -> PlanRequest:
    """The request with the GPUs of a server filled in. Raises UsageError if trainer or server do not fit."""
    fewest = fewest_trainer_gpus(request.gpu, request.model)
    most = max(1, request.gpus - fewest)
    server_gpus = request.server_gpus or choose_server_gpus(
        request.gpu, request.model, request.workload.per_episode(), most
    )
    size = f"{request.model.parameters:.3g} parameters"
    if request.gpus < fewest + server_gpus:
        raise UsageError(
            f"--gpus {request.gpus}: a policy of {size} needs {fewest} GPU(s) to train and {server_gpus} "
            f"for a rollout server. Give --gpus {fewest + server_gpus} or more, or a smaller --parameters."
        )
    if request.trainer_gpus and request.trainer_gpus < fewest:
        raise UsageError(
            f"--trainer-gpus {request.trainer_gpus}: weights, gradients and optimiser states of {size} need "
            f"{fewest} GPUs of {request.gpu.memory / 1e9:.0f} GB."
        )
    if request.trainer_gpus and request.gpus - request.trainer_gpus < server_gpus:
        raise UsageError(
            f"--trainer-gpus {request.trainer_gpus} leaves {request.gpus - request.trainer_gpus} of "
            f"{request.gpus} GPUs, fewer than one rollout server of {server_gpus}. "
            f"Give at most {request.gpus - server_gpus}, or a smaller --server-gpus."
        )
    return replace(request, server_gpus=server_gpus)


class _Planner:
    """Simulates splits of one request. found: the splits with more than enough hosts, by trainer GPUs."""

    def __init__(self, request: PlanRequest, report: Callable[[str], None]) -> None:
        self._request = request
        self._report = report
        self._means = request.workload.per_episode()
        self._workload = request.workload.merged(STRETCHES)
        self._unit = request.server_gpus
        self._fewest = fewest_trainer_gpus(request.gpu, request.model)
        self.server = server_speed(request.gpu, request.model, request.server_gpus, self._means)
        self.found: dict[int, Candidate] = {}

    def split(self, trainer_gpus: int, hosts: int = 0) -> Candidate:
        """Simulate one split. hosts 0: the requested number, else enough to keep all servers full."""
        request = self._request
        servers = (request.gpus - trainer_gpus) // request.server_gpus
        in_flight = self._in_flight(servers)
        ample = max(1, math.ceil(in_flight * (1 + self._judging_share()) / request.slots))
        hosts = hosts or request.hosts or ample
        self._report(f"{trainer_gpus} trainer : {servers * request.server_gpus} rollout GPUs, {hosts} hosts")
        cluster = Cluster(
            servers=servers,
            server=self.server,
            trainer=trainer_speed(request.gpu, request.model, trainer_gpus),
            slots=hosts * request.slots,
            in_flight=in_flight,
            sync_s=sync_seconds(request.gpu, request.model),
        )
        rules = Rules(
            max_lag=request.max_lag,
            batch_tokens=request.batch_tokens,
            updates=request.updates,
            warmup=request.max_lag + 2,
            seed=request.seed,
        )
        forecast = simulate(cluster, self._workload, rules)
        candidate = Candidate(trainer_gpus, servers * request.server_gpus, hosts, forecast)
        if hosts == (request.hosts or ample):
            self.found[trainer_gpus] = candidate
        return candidate

    def best_split(self) -> int:
        """Trainer GPUs of the best split.

        It tries a grid of shares, then halves the steps around the best split until they are one server wide.
        """
        gpus = self._request.gpus
        low, high = self._rounded(self._fewest), gpus - self._unit
        grid = {min(high, max(low, self._rounded(round(share * gpus)))) for share in _GRID} | {low}
        for trainer_gpus in sorted(grid):
            self.split(trainer_gpus)
        while True:
            tried = sorted(self.found)
            best = tried.index(self._best())
            neighbours = [tried[best - 1]] if best else []
            neighbours += tried[best + 1 : best + 2]
            middles = {self._rounded((tried[best] + other) // 2) for other in neighbours}
            fresh = {middle for middle in middles if low <= middle <= high} - set(tried)
            if not fresh:
                return self._best()
            for middle in sorted(fresh):
                self.split(middle)

    def fewer_hosts(self, ample: Candidate) -> list[Candidate]:
        """Search by bisection for the fewest hosts that keep the episodes per hour of `ample`."""
        tried = [ample]
        low, high = 0, ample.hosts  # high is enough, low is not
        while high - low > max(1, high // 16):
            middle = (low + high) // 2
            candidate = self.split(ample.trainer_gpus, middle)
            tried.append(candidate)
            if candidate.forecast.trained_per_hour >= _GOOD_ENOUGH * ample.forecast.trained_per_hour:
                high = middle
            else:
                low = middle
        return tried

    def _best(self) -> int:
        return max(self.found, key=lambda key: self.found[key].forecast.trained_per_hour)

    def _rounded(self, trainer_gpus: int) -> int:
        """At least `trainer_gpus`, rounded up so that the other GPUs make whole servers."""
        spare = self._request.gpus % self._unit
        return max(spare or self._unit, math.ceil((trainer_gpus - spare) / self._unit) * self._unit + spare)

    def _in_flight(self, servers: int) -> int:
        """Episodes in flight that keep all servers full, or all that may start if these are fewer.

        Episodes also spend time in their sandboxes (Little's law); 10 % are added.
        """
        wanted = 1.1 * servers * self.server.most * (1 + self._means.sandbox_s / self._generation_s())
        return max(1, math.ceil(min(wanted, self._may_start())))

    def _may_start(self) -> float:
        """Episodes that fill max_lag + 1 batches, plus one group. More are never in flight."""
        workload = self._request.workload
        groups = [
            (role, weight)
            for role, weight in ((Role.INJECTOR, 1.0), (Role.SOLVER, workload.solver_groups))
            if workload.groups(role)
        ]
        tokens = sum(weight * workload.trained_tokens(role) for role, weight in groups)
        episodes = sum(weight * workload.group_size(role) for role, weight in groups)
        if not tokens:
            return episodes
        return (self._request.max_lag + 1) * self._request.batch_tokens * episodes / tokens + episodes

    def _judging_share(self) -> float:
        """Seconds of judging per second of an open episode, with full servers."""
        return self._means.judge_s / (self._means.sandbox_s + self._generation_s())

    def _generation_s(self) -> float:
        """Seconds of generation of a mean episode on a full server."""
        most = self.server.most
        return (
            self._means.sampled * self.server.token_s(most) + self._means.tokens * self.server.read_s * most
        )
