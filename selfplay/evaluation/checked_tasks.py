"""Tasks that were checked, as the episode hosts of other machines prepare them.

They are checked once, on the machine of the evaluation. Invariant: an environment has the same name, tree and
baseline on every machine, so an attempt gets the same grade on each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfplay.errors import RunError
from selfplay.evaluation.checks import Checked
from selfplay.evaluation.task_environments import prepare_tasks
from selfplay.evaluation.tasks import Task, bug_of
from selfplay.outcomes import TestOutcomes
from selfplay.repositories.environment import Environment
from selfplay.repositories.prepare import Preparer
from selfplay.repositories.specs import absolute_line, parse_spec


@dataclass(frozen=True)
class CheckedTasks:
    """Implements `EnvironmentSource`. Names are the tasks' ids.

    tasks      those that passed their checks, with absolute paths
    baselines  what passes on the original, by id
    clones     a folder that every machine has under this path; None: repositories are fetched
    """

    tasks: Sequence[Task]
    baselines: Mapping[str, TestOutcomes]
    clones: Path | None = None

    def prepare(self, preparer: Preparer) -> Mapping[str, Environment]:
        prepared = prepare_tasks(self.tasks, preparer, self.clones)
        environments = {
            task.instance_id: replace(
                bug_of(task, prepared.environments[task.repo])[0],
                baseline=self.baselines[task.instance_id],
            )
            for task in self.tasks
            if task.instance_id not in prepared.left_out
        }
        if not environments:
            name, reason = next(iter(prepared.left_out.items()))
            raise RunError(f"none of {len(self.tasks)} task(s) can be played there; {name}: {reason}")
        return environments


def checked_tasks(tasks: Sequence[Task], checked: Checked, clones: Path | None) -> CheckedTasks:
    """What other machines need to play `tasks`, all of which passed their checks."""
    environments = checked.environments
    return CheckedTasks(
        [replace(task, repo=absolute_line(parse_spec(task.repo))) for task in tasks],
        {task.instance_id: environments[task.instance_id].baseline for task in tasks},
        clones.absolute() if clones else None,
    )
