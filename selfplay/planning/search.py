"""The best split of N GPUs into trainer and rollout, and the fewest sandbox hosts that do not slow it: a coarse grid, then halved steps.

Best is most trained episodes an hour. Invariant: every figure of a plan comes from one simulation of exactly that split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from selfplay.agent.episode import Role
from selfplay.errors import UsageError
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
from selfplay.planning.simulation import Cluster, Forecast, Rules, simulate
from selfplay.planning.workload import Workload

STRETCHES = 4  # turns of an episode are merged into so many: the same tokens and seconds, far fewer events
_GRID = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75)  # trainer shares tried first
_GOOD_ENOUGH = 0.99  # of the best episodes an hour: fewer hosts than that would slow the cluster


@dataclass(frozen=True)
class PlanRequest:
    """What is asked. server_gpus, trainer_gpus, hosts: 0 to be found. slots: sandboxes open at a time on one host."""

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
    trainer_gpus: int
    rollout_gpus: int
    hosts: int
    forecast: Forecast


@dataclass(frozen=True)
class Plan:
    """splits: with hosts in plenty, by trainer GPUs. by_hosts: of the best split, fewer and fewer hosts. best: among all of them."""

    request: PlanRequest
    server: ServerSpeed
    best: Candidate
    splits: tuple[Candidate, ...]
    by_hosts: tuple[Candidate, ...]


def make_plan(request: PlanRequest, tell: Callable[[str], None] = lambda text: None) -> Plan:
    """Raises UsageError naming what cannot be: no GPUs, more trainer GPUs than there are, a policy that does not fit."""
    request = _settle(request)
    planner = _Planner(request, tell)
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


def _settle(request: PlanRequest) -> PlanRequest:
    """The request with what follows from it filled in, checked."""
    if request.gpus < 1:
        raise UsageError(f"--gpus {request.gpus}: a cluster needs GPUs; give 2 or more.")
    for name, value in (("--slots", request.slots), ("--updates", request.updates)):
        if value < 1:
            raise UsageError(f"{name} {value}: needs 1 or more.")
    if request.hosts < 0 or request.trainer_gpus < 0 or request.server_gpus < 0 or request.max_lag < 0:
        raise UsageError(
            f"--hosts {request.hosts}, --trainer-gpus {request.trainer_gpus}, --server-gpus {request.server_gpus}, "
            f"--max-lag {request.max_lag}: none may be below 0."
        )
    if request.batch_tokens <= 0:
        raise UsageError(
            f"--batch-tokens {request.batch_tokens:g}: needs the tokens of an update, for instance 16800000."
        )
    if request.gpus == 1:
        raise UsageError("--gpus 1: one GPU cannot be split between training and rollouts; give 2 or more.")
    if request.trainer_gpus >= request.gpus:
        raise UsageError(
            f"--trainer-gpus {request.trainer_gpus} leaves none of {request.gpus} GPUs for rollouts. "
            f"Give at most {request.gpus - 1}, or leave it out to have the split found."
        )
    fewest = fewest_trainer_gpus(request.gpu, request.model)
    most = max(1, request.gpus - fewest)
    server_gpus = request.server_gpus or choose_server_gpus(
        request.gpu, request.model, request.workload.per_episode(), most
    )
    if request.gpus < fewest + server_gpus:
        raise UsageError(
            f"--gpus {request.gpus}: a policy of {request.model.parameters:.3g} parameters needs {fewest} GPU(s) to train and "
            f"{server_gpus} for a rollout server. Give --gpus {fewest + server_gpus} or more, or a smaller --parameters."
        )
    if request.trainer_gpus and request.trainer_gpus < fewest:
        raise UsageError(
            f"--trainer-gpus {request.trainer_gpus}: weights, gradients and optimiser states of {request.model.parameters:.3g} "
            f"parameters need {fewest} GPUs of {request.gpu.memory / 1e9:.0f} GB."
        )
    if request.trainer_gpus and request.gpus - request.trainer_gpus < server_gpus:
        raise UsageError(
            f"--trainer-gpus {request.trainer_gpus} leaves {request.gpus - request.trainer_gpus} of {request.gpus} GPUs, fewer than one "
            f"rollout server of {server_gpus}. Give at most {request.gpus - server_gpus}, or a smaller --server-gpus."
        )
    return replace(request, server_gpus=server_gpus)


class _Planner:
    def __init__(self, request: PlanRequest, tell: Callable[[str], None]) -> None:
        self._request = request
        self._tell = tell
        self._means = request.workload.per_episode()
        self._workload = request.workload.merged(STRETCHES)
        self._unit = request.server_gpus
        self._fewest = fewest_trainer_gpus(request.gpu, request.model)
        self.server = server_speed(request.gpu, request.model, request.server_gpus, self._means)
        self.found: dict[int, Candidate] = {}

    def split(self, trainer_gpus: int, hosts: int = 0) -> Candidate:
        """One simulation. hosts 0: the asked number, else so many that all servers can be full."""
        request = self._request
        servers = (request.gpus - trainer_gpus) // request.server_gpus
        in_flight = self._in_flight(servers)
        ample = math.ceil(in_flight * (1 + self._judging_share()) / request.slots)
        hosts = hosts or request.hosts or max(1, ample)
        self._tell(f"{trainer_gpus} trainer : {servers * request.server_gpus} rollout GPUs, {hosts} hosts")
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
        made = Candidate(
            trainer_gpus, servers * request.server_gpus, hosts, simulate(cluster, self._workload, rules)
        )
        if hosts == (request.hosts or max(1, ample)):
            self.found[trainer_gpus] = made
        return made

    def best_split(self) -> int:
        """Trainer GPUs of the best split: a grid of shares, then half steps around the best until they are one server wide."""
        low, high = self._at_least(self._fewest), self._request.gpus - self._unit
        grid = {min(high, max(low, self._at_least(round(share * self._request.gpus)))) for share in _GRID} | {
            low
        }
        for trainer_gpus in sorted(grid):
            self.split(trainer_gpus)
        while True:
            places = sorted(self.found)
            at = places.index(self._best())
            neighbours = [places[at - 1]] if at else []
            neighbours += places[at + 1 : at + 2]
            middles = {self._at_least((places[at] + other) // 2) for other in neighbours}
            fresh = {middle for middle in middles if low <= middle <= high} - set(places)
            if not fresh:
                return self._best()
            for middle in sorted(fresh):
                self.split(middle)

    def fewer_hosts(self, ample: Candidate) -> list[Candidate]:
        """Half steps between one host and plenty, towards the fewest that keep the episodes an hour."""
        tried = [ample]
        low, high = 0, ample.hosts  # high is enough, low is not
        while high - low > max(1, high // 16):
            middle = (low + high) // 2
            made = self.split(ample.trainer_gpus, middle)
            tried.append(made)
            if made.forecast.trained_per_hour >= _GOOD_ENOUGH * ample.forecast.trained_per_hour:
                high = middle
            else:
                low = middle
        return tried

    def _best(self) -> int:
        return max(self.found, key=lambda key: self.found[key].forecast.trained_per_hour)

    def _at_least(self, trainer_gpus: int) -> int:
        """As many, rounded so that whole servers are left."""
        spare = self._request.gpus % self._unit
        return max(spare or self._unit, math.ceil((trainer_gpus - spare) / self._unit) * self._unit + spare)

    def _in_flight(self, servers: int) -> int:
        """Episodes that keep all servers full while others wait for their sandboxes (Little's law), a tenth more; or all that may start."""
        full = self.server.token_s(self.server.most)
        drawing = self._means.drawn * full + self._means.tokens * self.server.read_s * self.server.most
        wanted = 1.1 * servers * self.server.most * (1 + self._means.sandbox_s / drawing)
        return max(1, math.ceil(min(wanted, self._may_start())))

    def _may_start(self) -> float:
        """Episodes that fill max_lag + 1 batches, and one group: more are never under way."""
        work = self._request.workload
        groups = [
            (role, weight)
            for role, weight in ((Role.INJECTOR, 1.0), (Role.SOLVER, work.solver_groups))
            if work.groups(role)
        ]
        tokens = sum(weight * work.trained_tokens(role) for role, weight in groups)
        episodes = sum(weight * work.group_size(role) for role, weight in groups)
        return (
            (self._request.max_lag + 1) * self._request.batch_tokens * episodes / tokens + episodes
            if tokens
            else episodes
        )

    def _judging_share(self) -> float:
        """Seconds of judging for each second that an episode is open, at full servers."""
        full = self.server.token_s(self.server.most)
        drawing = self._means.drawn * full + self._means.tokens * self.server.read_s * self.server.most
        return self._means.judge_s / (self._means.sandbox_s + drawing)
