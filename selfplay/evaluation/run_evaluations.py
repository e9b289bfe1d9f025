"""The evaluations of a run: when they are due, their folders, their metrics.

Playing the attempts is left to `evaluator`. Invariant: training does not depend on them. They have their own
seeds, sandboxes, test runs and environments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.evaluation.comparison import compare, opposite_sets
from selfplay.evaluation.folder import MODES, Folder, entries_of
from selfplay.evaluation.rates import summarise, timeouts_warning
from selfplay.metrics import Value

if TYPE_CHECKING:
    from selfplay.evaluation.evaluator import Evaluator
    from selfplay.evaluation.tasks import Task
    from selfplay.settings.learning import EvaluationSettings


@dataclass(frozen=True)
class RunEvaluations:
    """The evaluations below `folder`, each in a subfolder as `selfplay eval --output` makes it.

    u0000 is the evaluation of the untrained policy.
    """

    folder: Path
    settings: EvaluationSettings
    tasks: Sequence[Task]
    evaluator: Evaluator

    def is_due(self, update: int, last: int) -> bool:
        """True before the first update (setting `before`), after each `every` updates, after the `last`."""
        if update == 0:
            return self.settings.before
        return update >= last or bool(self.settings.every and update % self.settings.every == 0)

    def warnings(self, update: int) -> list[str]:
        """What this evaluation, and its comparison with the first one, warn of."""
        found = self._timeouts(update)
        folders = [path for path in sorted(self.folder.glob("u*")) if Folder(path).results()]
        here = self.folder / f"u{update:04d}"
        if here not in folders[1:]:
            return found
        return [*found, *opposite_sets(compare(Folder(folders[0]), Folder(here)))]

    def _timeouts(self, update: int) -> list[str]:
        results = Folder(self.folder / f"u{update:04d}").results()
        warning = timeouts_warning(summarise(results, {}, 1))
        return [warning] if warning else []

    def play(
        self, update: int, policy: Mapping[str, Any], progress: Callable[[int, int], None]
    ) -> dict[str, Value]:
        """Play the attempts that are not finished, with the engine's current weights.

        Returns the row for the metrics.

        Raises as `Evaluator.play` does.
        """
        started = time.monotonic()
        folder = Folder(self.folder / f"u{update:04d}")
        results = self.evaluator.play(
            self.tasks, self.settings.attempts, self.settings.greedy, folder, policy, progress
        )
        summary = summarise(results, entries_of(folder), self.settings.attempts)
        row: dict[str, Value] = {
            "evaluation": update,
            "evaluation/spoiled": summary["spoiled_by_the_machine"],
            "evaluation/timed_out": summary["timed_out"],
            "evaluation/left_out": len(folder.left_out()[0]),
        }
        for mode in (mode for mode in MODES if mode in summary):
            row |= {f"evaluation/{mode}/{name}": value for name, value in summary[mode]["all"].items()}
        return row | {"seconds/evaluating": round(time.monotonic() - started, 3)}
