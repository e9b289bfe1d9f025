"""Compares the simulation with a real run: the first half predicts the seconds of the second half.

Nothing is tuned. Invariant: `predicted_s` uses nothing that was recorded after the first half, so the later
episodes of the policy are not part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from selfplay.errors import RunError
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.planning.forecast import Forecast
from selfplay.planning.recorded import PHASES, Recorded, measured_phases, read_run, update_rows
from selfplay.planning.scenario import Cluster, Rules
from selfplay.planning.simulation import simulate

CHECK_UPDATES = (
    150  # simulated updates; so many that the noise of the prediction is small beside that of the run
)


@dataclass(frozen=True)
class PhaseCheck:
    """Mean seconds of one phase of an update.

    fitted_s     measured in the first half
    predicted_s  predicted from the first half
    measured_s   measured in the second half
    informed_s   predicted from the speeds of the first half and the episodes of the second half. Its error is
                 that of the simulation; the rest of the prediction's error comes from the policy, which
                 changed
    """

    phase: str
    fitted_s: float
    predicted_s: float
    measured_s: float
    informed_s: float

    @property
    def error(self) -> float:
        """Error of the prediction, as a share of the measured seconds; 0 if nothing was measured."""
        return _error(self.predicted_s, self.measured_s)

    @property
    def own_error(self) -> float:
        """Error of the prediction against the half that it was made from."""
        return _error(self.predicted_s, self.fitted_s)

    @property
    def informed_error(self) -> float:
        return _error(self.informed_s, self.measured_s)


def _error(predicted_s: float, measured_s: float) -> float:
    return predicted_s / measured_s - 1 if measured_s else 0.0


@dataclass(frozen=True)
class Check:
    """The prediction for a run.

    recorded  the first half of the run
    last      last update of the second half
    phases    one entry per phase, then one for the whole update
    """

    recorded: Recorded
    last: int
    phases: tuple[PhaseCheck, ...]


def check_run(
    folder: RunFolder, seed: int = 0, report: Callable[[str, int, int], None] = lambda what, done, total: None
) -> Check:
    """Predict the second half of a run from its first.

    report: called with what is done now, the steps that are done and the steps in all (0: not known yet).

    Raises RunError if the run has fewer than four updates.
    """
    rows = update_rows(folder)
    numbers = sorted(rows)
    if len(numbers) < 4:
        raise RunError(
            f"{folder.path.name} has {len(numbers)} finished update(s); a check needs 4 or more, half of "
            "them to predict."
        )
    half = numbers[len(numbers) // 2 - 1]
    recorded = read_run(folder, numbers[0], half, partial(report, "reading the first half"))
    later = read_run(folder, half + 1, numbers[-1], partial(report, "reading the second half"))
    report("simulating", 0, 2)
    predicted = replay_phases(recorded, seed).phases_s
    report("simulating", 1, 2)
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
    """Simulate the run's loop on its own resources, one phase after the other."""
    cluster = Cluster(
        servers=recorded.servers,
        server=recorded.server,
        trainer=recorded.trainer,
        slots=recorded.in_flight + recorded.judges,
        in_flight=recorded.in_flight,
        sync_s=recorded.sync_s,
        judges=recorded.judges,
        clears_cache=False,  # no episode is played while weights change
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
