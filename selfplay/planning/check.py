"""The simulation against a real run: speeds and distributions of its first half, the seconds of its second half. Nothing is tuned.

Invariant: the prediction uses nothing that was recorded after the first half, the policy's later episodes included.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfplay.errors import RunError
from selfplay.orchestrator.recovery import RunFolder
from selfplay.planning.recorded import PHASES, Recorded, measured_phases, read_run, update_rows
from selfplay.planning.simulation import Cluster, Forecast, Rules, simulate

CHECK_UPDATES = 150  # simulated, so that the prediction's own noise is small beside the run's


@dataclass(frozen=True)
class PhaseCheck:
    """Mean seconds of an update: measured in the first half, predicted from it, measured in the second half."""

    phase: str
    fitted_s: float
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured; 0 where nothing was."""
        return self.predicted_s / self.measured_s - 1 if self.measured_s else 0.0

    @property
    def own_error(self) -> float:
        """The same against the half that it was fitted to: what is the model's own, without the run's change between the halves."""
        return self.predicted_s / self.fitted_s - 1 if self.fitted_s else 0.0


@dataclass(frozen=True)
class Check:
    recorded: Recorded
    last: int
    phases: tuple[PhaseCheck, ...]  # the last is the whole update
    forecast: Forecast


def check_run(folder: RunFolder, seed: int = 0) -> Check:
    """Raises RunError when the run has fewer than four updates."""
    rows = update_rows(folder)
    numbers = sorted(rows)
    if len(numbers) < 4:
        raise RunError(f"{folder.path.name} has {len(numbers)} finished update(s); a check needs 4 or more, half of them to predict.")
    half = numbers[len(numbers) // 2 - 1]
    recorded = read_run(folder, numbers[0], half)
    forecast = replay_phases(recorded, seed)
    measured = measured_phases([rows[update] for update in numbers if update > half])
    phases = [PhaseCheck(name, recorded.phases_s[name], forecast.phases_s.get(name, 0.0), measured[name]) for name in PHASES]
    total = PhaseCheck("update", recorded.update_s, sum(phase.predicted_s for phase in phases), sum(measured.values()))
    return Check(recorded, numbers[-1], (*phases, total), forecast)


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
