"""What to simulate besides the workload: a cluster, and the rules by which updates are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfplay.errors import UsageError
from selfplay.planning.hardware import ServerSpeed, TrainerSpeed
from selfplay.planning.workload import Workload


@dataclass(frozen=True)
class Cluster:
    """The hardware to simulate.

    servers       number of rollout servers
    server        speed of each server
    trainer       speed of the trainer
    slots         sandboxes that may be open at once; episodes and verdicts share them
    in_flight     episodes that may be played at once
    sync_s        seconds of a weight sync; meanwhile the servers pause and the trainer waits
    judges        verdicts and grades that may run at once, within `slots`; 0: as many as there are slots
    clears_cache  a weight sync clears the KV caches, so every conversation is prefilled again
    """

    servers: int
    server: ServerSpeed
    trainer: TrainerSpeed
    slots: int
    in_flight: int
    sync_s: float = 0.0
    judges: int = 0
    clears_cache: bool = True


@dataclass(frozen=True)
class Rules:
    """How updates are made, and how many of them are simulated.

    max_lag         largest age of a trained episode, in updates. 0: synchronous, a batch waits for every
                    started group
    batch_tokens    tokens of an update (kind "overlapped" only)
    kind            "overlapped": groups are played while the trainer trains. An update starts when complete
                    groups with a gradient hold `batch_tokens`. A group starts only while earlier groups fill
                    at most `max_lag` whole batches; later its episodes would be too old
                    "phases": injectors, solvers, second-order verdicts and training run one after the other
    plans           (injector groups, solver groups) of an update, sampled per update (kind "phases" only)
    second_order_s  seconds of the second-order phase, sampled per update (kind "phases" only)
    updates         updates that are measured
    warmup          updates before the measured ones; they fill the pipeline
    """

    max_lag: int = 8
    batch_tokens: float = 0.0
    kind: Literal["overlapped", "phases"] = "overlapped"
    plans: tuple[tuple[int, int], ...] = ()
    second_order_s: tuple[float, ...] = (0.0,)
    updates: int = 20
    warmup: int = 10
    seed: int = 0


def check_scenario(cluster: Cluster, workload: Workload, rules: Rules) -> None:
    """Raises UsageError that names the first value that cannot be simulated."""
    for name in ("servers", "slots", "in_flight"):
        if (value := getattr(cluster, name)) < 1:
            raise UsageError(f"{name} = {value}: a cluster needs at least 1.")
    if rules.updates < 1 or rules.warmup < 0 or rules.max_lag < 0:
        raise UsageError(
            f"updates = {rules.updates}, warmup = {rules.warmup}, max_lag = {rules.max_lag}: "
            "they must be at least 1, 0 and 0."
        )
    if not workload.solvers and not workload.injectors:
        raise UsageError(f"the workload {workload.name} has no groups.")
    if rules.kind != "overlapped":
        return
    if rules.batch_tokens <= 0:
        raise UsageError(
            f"batch_tokens = {rules.batch_tokens:g}: give the tokens of an update, for instance 16800000."
        )
    groups = (*workload.injectors, *workload.solvers)
    if not any(group.has_gradient and group.tokens for group in groups):
        raise UsageError(
            f"no group of the workload {workload.name} has a gradient, so an update would never fill."
        )
