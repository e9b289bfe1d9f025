"""Finds the best split of N GPUs between trainer and rollouts, and the fewest hosts that do not slow it.

The best split trains on the most episodes per hour. If there are few splits, all are tried. Else the search
tries a coarse grid and then halves the steps.
Invariant: every split is simulated several times, with the same seeds and workloads as the others. A split
with its hosts has one set of simulations, so a figure is the same wherever it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from selfplay.agent.episode import Role
from selfplay.errors import UsageError
from selfplay.evaluation.statistics import CONFIDENCE, Estimate, estimate, t_quantile
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
from selfplay.planning.simulators import Job, Simulate, in_turn
from selfplay.planning.workload import Workload

# The turns of an episode are merged into this many stretches: the same tokens and seconds, far fewer events.
STRETCHES = 4
GOOD_ENOUGH = 0.99  # share of the episodes per hour; with fewer hosts than that, hosts slow the cluster
SIMULATIONS = 5  # of each split, unless the request says otherwise
_GRID = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75)  # trainer shares that are tried first
_FEW_SPLITS = 8  # so many are all tried

# Called with the simulations that are done and the most that there may be.
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    batch_tokens                       tokens of an update
    slots                              sandboxes that may be open at once on one host
    server_gpus, trainer_gpus, hosts   0: to be found
    updates                            measured updates of each simulation
    simulations                        of each split. Number i has the seed `seed` * simulations + i
    samples                            the workload of each simulation; empty: all play `workload`
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
    updates: int = 8
    simulations: int = SIMULATIONS
    seed: int = 0
    samples: tuple[Workload, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each simulation. Other seeds of a request share none of them."""
        return simulation_seeds(self.seed, self.simulations)


def simulation_seeds(seed: int, simulations: int) -> tuple[int, ...]:
    """The seed of each simulation. Raises UsageError for fewer than two simulations."""
    if simulations < 2:
        raise UsageError(
            f"--simulations {simulations}: give 2 or more, since the uncertainty of each figure comes from "
            "their spread."
        )
    return tuple(seed * simulations + number for number in range(simulations))


@dataclass(frozen=True)
class Candidate:
    """One split and its simulations. `forecasts` holds one entry per seed."""

    trainer_gpus: int
    rollout_gpus: int
    hosts: int
    forecasts: tuple[Forecast, ...]

    def values(self, name: str) -> list[float]:
        """A figure of `Forecast`, one value per simulation."""
        return [float(getattr(forecast, name)) for forecast in self.forecasts]

    def estimate(self, name: str) -> Estimate:
        """Mean and standard error of a figure over the simulations."""
        return estimate(self.values(name))

    @property
    def trained_per_hour(self) -> float:
        return self.estimate("trained_per_hour").mean

    def is_told_apart(self, other: Candidate, comparisons: int = 1) -> bool:
        """True if the interval of the difference in trained episodes per hour excludes 0 (Student's t).

        comparisons: how many such questions are asked. All intervals hold together with a confidence of 95 %
        (Bonferroni's correction), since the best of many splits is often so by chance. The seeds are not
        compared pair by pair: two simulations of a seed are nearly equal or have parted, so their
        differences are far from normal.
        """
        mine, theirs = (one.estimate("trained_per_hour") for one in (self, other))
        error = math.hypot(mine.error or 0.0, theirs.error or 0.0)
        freedom = mine.count + theirs.count - 2
        reach = t_quantile(1 - (1 - CONFIDENCE) / 2 / comparisons, freedom) * error
        return abs(mine.mean - theirs.mean) > reach

    def kept_of(self, ample: Candidate) -> Estimate:
        """Trained episodes per hour as a share of those of `ample`, paired by seed."""
        pairs = zip(self.values("trained_per_hour"), ample.values("trained_per_hour"), strict=True)
        return estimate([mine / theirs if theirs else 1.0 for mine, theirs in pairs])


@dataclass(frozen=True)
class Plan:
    """The result of a search.

    best          the split with the most trained episodes per hour; one of `splits`
    splits        splits with more than enough hosts, by rising trainer GPUs
    by_hosts      the best split with different numbers of hosts, by rising hosts; `best` is among them
    enough_hosts  the fewest of them that keep GOOD_ENOUGH of the best split's trained episodes per hour
    """

    request: PlanRequest
    server: ServerSpeed
    best: Candidate
    splits: tuple[Candidate, ...]
    by_hosts: tuple[Candidate, ...]
    enough_hosts: int

    @property
    def even(self) -> tuple[Candidate, ...]:
        """The splits that cannot be told apart from the best one, which is among them."""
        others = len(self.splits) - 1
        return tuple(
            one for one in self.splits if one is self.best or not one.is_told_apart(self.best, others)
        )


def make_plan(
    request: PlanRequest,
    report: Report = lambda done, at_most: None,
    simulate: Simulate = in_turn,
) -> Plan:
    """Search for the best split. report: called before the first simulation and after each.

    Raises UsageError that names what is impossible: no GPUs, more trainer GPUs than GPUs, a policy that does
    not fit.
    """
    _check_values(request)
    request = _with_server_gpus(request)
    planner = _Planner(request, report, simulate)
    if request.trainer_gpus:
        planner.split([request.trainer_gpus])
        chosen = request.trainer_gpus
    else:
        chosen = planner.best_split()
    splits = tuple(planner.found[key] for key in sorted(planner.found))
    best = planner.found[chosen]
    by_hosts = [best] if request.hosts else planner.fewer_hosts(best)
    enough = min(one.hosts for one in by_hosts if is_enough(one, best))
    return Plan(
        request, planner.server, best, splits, tuple(sorted(by_hosts, key=lambda one: one.hosts)), enough
    )


def is_enough(one: Candidate, ample: Candidate) -> bool:
    """True if the hosts of `one` keep GOOD_ENOUGH of the trained episodes per hour of `ample`."""
    return one.kept_of(ample).mean >= GOOD_ENOUGH


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
            f"Give at most {request.gpus - 1}, or a larger --gpus; without it the split is searched for."
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

    def __init__(self, request: PlanRequest, report: Report, simulate: Simulate) -> None:
        self._request = request
        self._report = report
        self._simulate = simulate
        self._means = request.workload.per_episode()
        samples = request.samples or (request.workload,)
        merged = [sample.merged(STRETCHES) for sample in samples]
        self._workloads = [merged[index % len(merged)] for index in range(request.simulations)]
        self._unit = request.server_gpus
        self._fewest = fewest_trainer_gpus(request.gpu, request.model)
        self.server = server_speed(request.gpu, request.model, request.server_gpus, self._means)
        self.found: dict[int, Candidate] = {}
        self._done = 0  # simulations
        self._at_most: int | None = None

    def split(self, trainer_gpus: Sequence[int], later: int = 0) -> None:
        """Simulate splits with the requested hosts, else with enough to keep all servers full.

        later: the most splits that may still be tried afterwards, before hosts are.
        """
        shapes = [(gpus, self._request.hosts or self._ample(gpus)) for gpus in trainer_gpus]
        hosts = max([hosts for _, hosts in shapes] + [one.hosts for one in self.found.values()])
        later += 0 if self._request.hosts else hosts.bit_length()
        for one in self._candidates(shapes, later):
            self.found[one.trainer_gpus] = one

    def best_split(self) -> int:
        """Trainer GPUs of the best split.

        It tries a grid of shares, then halves the steps around the best split until they are one server wide.
        """
        gpus = self._request.gpus
        low, high = self._rounded(self._fewest), gpus - self._unit
        every = range(low, high + 1, self._unit)
        if len(every) <= _FEW_SPLITS:
            self.split(every)
            return self._best()
        grid = sorted({min(high, max(low, self._rounded(round(share * gpus)))) for share in _GRID} | {low})
        widest = max((after - before for before, after in pairwise(grid)), default=0)
        self.split(grid, self._halvings(widest))
        while True:
            tried = sorted(self.found)
            best = tried.index(self._best())
            neighbours = [tried[best - 1]] if best else []
            neighbours += tried[best + 1 : best + 2]
            middles = {self._rounded((tried[best] + other) // 2) for other in neighbours}
            fresh = {middle for middle in middles if low <= middle <= high} - set(tried)
            if not fresh:
                return self._best()
            widest = max(abs(tried[best] - other) for other in neighbours)
            self.split(sorted(fresh), self._halvings(widest) - 2)

    def fewer_hosts(self, ample: Candidate) -> list[Candidate]:
        """Search by bisection for the fewest hosts that keep the episodes per hour of `ample`."""
        tried = [ample]
        low, high = 0, ample.hosts  # high is enough, low is not
        while high - low > max(1, high // 16):
            middle = (low + high) // 2
            (candidate,) = self._candidates([(ample.trainer_gpus, middle)], (middle - low).bit_length())
            tried.append(candidate)
            if is_enough(candidate, ample):
                high = middle
            else:
                low = middle
        return tried

    def _candidates(self, shapes: Sequence[tuple[int, int]], later: int) -> list[Candidate]:
        """Simulate (trainer GPUs, hosts) of each shape. later: the most shapes that may still follow."""
        count = self._request.simulations
        jobs = [job for trainer_gpus, hosts in shapes for job in self._jobs(trainer_gpus, hosts)]
        at_most = self._done + len(jobs) + count * max(0, later)
        # The total never grows, but to what is certain.
        self._at_most = at_most if self._at_most is None else min(self._at_most, at_most)
        self._at_most = max(self._at_most, self._done + len(jobs))
        forecasts: list[Forecast] = []
        self._report(self._done, self._at_most)
        for forecast in self._simulate(jobs):
            forecasts.append(forecast)
            self._done += 1
            self._report(self._done, self._at_most)
        return [
            Candidate(
                trainer_gpus,
                self._servers(trainer_gpus) * self._unit,
                hosts,
                tuple(forecasts[index * count : (index + 1) * count]),
            )
            for index, (trainer_gpus, hosts) in enumerate(shapes)
        ]

    def _jobs(self, trainer_gpus: int, hosts: int) -> list[Job]:
        """The simulations of one split, one per seed."""
        request = self._request
        cluster = Cluster(
            servers=self._servers(trainer_gpus),
            server=self.server,
            trainer=trainer_speed(request.gpu, request.model, trainer_gpus),
            slots=hosts * request.slots,
            in_flight=self._in_flight(self._servers(trainer_gpus)),
            sync_s=sync_seconds(request.gpu, request.model),
        )
        rules = Rules(
            max_lag=request.max_lag,
            batch_tokens=request.batch_tokens,
            updates=request.updates,
            warmup=request.max_lag + 2,
        )
        return [
            (cluster, workload, replace(rules, seed=seed))
            for workload, seed in zip(self._workloads, request.seeds, strict=True)
        ]

    def _servers(self, trainer_gpus: int) -> int:
        return (self._request.gpus - trainer_gpus) // self._unit

    def _ample(self, trainer_gpus: int) -> int:
        """Hosts that keep all servers full."""
        in_flight = self._in_flight(self._servers(trainer_gpus))
        return max(1, math.ceil(in_flight * (1 + self._judging_share()) / self._request.slots))

    def _halvings(self, step: int) -> int:
        """The most splits that halving this step on both sides may try."""
        return 2 * math.ceil(math.log2(max(1, step / self._unit)))

    def _best(self) -> int:
        return max(self.found, key=lambda key: self.found[key].trained_per_hour)

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
