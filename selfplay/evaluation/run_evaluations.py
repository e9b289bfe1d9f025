"""The evaluations of one run: when they are due, where they stand, what they measured. Playing the attempts is the evaluator's.

Invariant: nothing of training depends on them. Their seeds, sandboxes, test runs and environments are their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfplay.config import EvaluationSettings
from selfplay.evaluation.comparison import summarise
from selfplay.evaluation.evaluator import Evaluator
from selfplay.evaluation.folder import MODES, Folder, entries_of
from selfplay.evaluation.tasks import Task
from selfplay.metrics import Value


@dataclass(frozen=True)
class RunEvaluations:
    """`folder` holds one evaluation a subfolder, u0000 being that of the untrained policy, as `selfplay eval --output` makes them."""

    folder: Path
    settings: EvaluationSettings
    tasks: Sequence[Task]
    evaluator: Evaluator

    def is_due(self, update: int, last: int) -> bool:
        """Before the first update where that is asked for, after the `last`, and each `every` between them."""
        if update == 0:
            return self.settings.before
        return update >= last or bool(self.settings.every and update % self.settings.every == 0)

    def play(
        self, update: int, policy: Mapping[str, Any], progress: Callable[[int, int], None]
    ) -> dict[str, Value]:
        """Play what is not finished with the engine's weights as they are; the row for the metrics. Raises as `Evaluator.play` does."""
        started = time.monotonic()
        folder = Folder(self.folder / f"u{update:04d}")
        results = self.evaluator.play(
            self.tasks, self.settings.attempts, self.settings.greedy, folder, policy, progress
        )
        summary = summarise(results, entries_of(folder), self.settings.attempts)
        row: dict[str, Value] = {
            "evaluation": update,
            "evaluation/spoiled": summary["spoiled_by_the_machine"],
        }
        for mode in (mode for mode in MODES if mode in summary):
            row |= {f"evaluation/{mode}/{name}": value for name, value in summary[mode]["all"].items()}
        return row | {"seconds/evaluating": round(time.monotonic() - started, 3)}
