"""The simulation against a real run: speeds and distributions of its first half, the seconds of its second half. Nothing is tuned.

Invariant: `predicted_s` uses nothing that was recorded after the first half, the policy's later episodes included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfplay.errors import RunError
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.planning.recorded import PHASES, Recorded, measured_phases, read_run, update_rows
from selfplay.planning.simulation import Cluster, Forecast, Rules, simulate

CHECK_UPDATES = 150  # simulated, so that the prediction's own noise is small beside the run's


@dataclass(frozen=True)
class PhaseCheck:
    """Mean seconds of an update: measured in the first half, predicted from it, measured in the second half.

    informed_s: predicted with the first half's speeds and the second half's episodes, which tells the simulation's error apart from the
    policy's change.
    """

    phase: str
    fitted_s: float
    predicted_s: float
    measured_s: float
    informed_s: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured; 0 where nothing was."""
        return _error(self.predicted_s, self.measured_s)

    @property
    def own_error(self) -> float:
        """The same against the half that speeds and episodes were read from."""
        return _error(self.predicted_s, self.fitted_s)

    @property
    def informed_error(self) -> float:
        return _error(self.informed_s, self.measured_s)


def _error(predicted_s: float, measured_s: float) -> float:
    return predicted_s / measured_s - 1 if measured_s else 0.0


@dataclass(frozen=True)
class Check:
    recorded: Recorded
    last: int
    phases: tuple[PhaseCheck, ...]  # the last is the whole update


def check_run(folder: RunFolder, seed: int = 0) -> Check:
    """Raises RunError when the run has fewer than four updates."""
    rows = update_rows(folder)
    numbers = sorted(rows)
    if len(numbers) < 4:
        raise RunError(
            f"{folder.path.name} has {len(numbers)} finished update(s); a check needs 4 or more, half of them to predict."
        )
    half = numbers[len(numbers) // 2 - 1]
    recorded = read_run(folder, numbers[0], half)
    later = read_run(folder, half + 1, numbers[-1])
    predicted = replay_phases(recorded, seed).phases_s
    informed = replay_phases(
        replace(later, server=recorded.server, trainer=recorded.trainer, sync_s=recorded.sync_s), seed
    ).phases_s
    measured = measured_phases([rows[update] for update in numbers if update > half])
    phases = [
        PhaseCheck(name, recorded.phases_s[name], predicted[name], measured[name], informed[name])
        for name in PHASES
    ]
    sums = [sum(figures[name] for name in PHASES) for figures in (predicted, measured, informed)]
    return Check(recorded, numbers[-1], (*phases, PhaseCheck("update", recorded.update_s, *sums)))


def replay_phases(recorded: Recorded, seed: int = 0, updates: int = CHECK_UPDATES) -> Forecast:
    """The run's own loop on its own resources, which plays one phase after the other."""
    cluster = Cluster(
        servers=recorded.servers,
        server=recorded.server,
        trainer=recorded.trainer,
        slots=recorded.in_flight + recorded.judges,
        in_flight=recorded.in_flight,
        sync_s=recorded.sync_s,
        judges=recorded.judges,
        rereads=False,  # nothing is being played while weights change
    )
    rules = Rules(
        kind="phases",
        plans=recorded.plans,
        second_order_s=recorded.second_order_s,
        updates=updates,
        warmup=0,
        seed=seed,
    )
    return simulate(cluster, recorded.workload, rules)
