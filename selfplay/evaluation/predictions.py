"""Predictions of others in SWE-bench's form, graded like a policy's attempts.

Playing is left to `evaluator`, writing predictions to `folder`. Invariant: a task without a prediction is an
attempt that failed, as in SWE-bench, so leaving hard tasks out raises no rate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from selfplay.agent.hosts import SolverWork
from selfplay.config import Config
from selfplay.errors import UsageError
from selfplay.evaluation.checks import Checked, Checker, check_into
from selfplay.evaluation.folder import AttemptResult, Folder, identity_of
from selfplay.runtime.recipes import read_text
from selfplay.verdicts.grading import grade

if TYPE_CHECKING:
    from selfplay.evaluation.task_environments import Prepared
    from selfplay.evaluation.tasks import Task
    from selfplay.repositories.environment import Environment
    from selfplay.verdicts.bug import BugState
    from selfplay.verdicts.grading import Grade
    from selfplay.verdicts.test_runs import TestRunner

FINISH = "prediction"  # how an attempt ended that was not played here
NO_PREDICTION = "no prediction"
FORM = (
    'one object for each task, {"instance_id": …, "model_name_or_path": …, "model_patch": …}: '
    "a JSON list, an object by instance_id, or one on each line"
)


# ---- reading


@dataclass(frozen=True)
class Predictions:
    """patches: those of each instance_id, in the file's order. models: the names in the file."""

    patches: Mapping[str, tuple[str, ...]]
    models: tuple[str, ...]
    digest: str

    @property
    def attempts(self) -> int:
        return max(map(len, self.patches.values()))

    @property
    def policy(self) -> dict[str, Any]:
        """What identifies the author of the patches."""
        return {"model": ", ".join(self.models) or "unknown", "predictions": self.digest}


def read_predictions(path: Path) -> Predictions:
    """Read a file of predictions. Several of one task are attempts. Raises UsageError with each bad one."""
    text = read_text(path, "the predictions", f"Write {FORM}.")
    patches: dict[str, list[str]] = {}
    models: dict[str, None] = {}
    problems: list[str] = []
    for number, entry in enumerate(_entries(text, path), 1):
        try:
            name, patch, model = _prediction(entry)
        except ValueError as error:
            problems.append(f"  prediction {number}: {error}")
            continue
        patches.setdefault(name, []).append(patch)
        models |= {model: None} if model else {}
    if problems:
        raise UsageError(
            f"{path}: {len(problems)} unusable prediction(s), nothing was started:\n"
            + "\n".join(problems[:20])
        )
    if not patches:
        raise UsageError(f"{path} holds no prediction. Write {FORM}.")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Predictions({name: tuple(some) for name, some in patches.items()}, tuple(models), digest)


def _entries(text: str, path: Path) -> list[Any]:
    """The objects of the file, whichever of the three forms it has. Raises UsageError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is neither JSON nor JSON lines: {error}. Write {FORM}.") from error
    if isinstance(found, list):
        return found
    if isinstance(found, dict) and "instance_id" not in found:
        return [
            {"instance_id": name, **entry} if isinstance(entry, dict) else entry
            for name, entry in found.items()
        ]
    return [found]


def _prediction(entry: object) -> tuple[str, str, str]:
    """instance_id, patch and model of an entry. A null patch is an empty one. Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError("is not an object")
    name = entry.get("instance_id")
    if not isinstance(name, str):
        raise ValueError("lacks instance_id" if name is None else "instance_id is not a text")
    key = "model_patch" if "model_patch" in entry else "patch"
    if key not in entry:
        raise ValueError(f"{name}: lacks model_patch")
    patch, model = entry[key], entry.get("model_name_or_path") or ""
    if not isinstance(patch, str | None) or not isinstance(model, str):
        raise ValueError(f"{name}: {key} and model_name_or_path must be texts")
    return name, patch or "", model


# ---- grading


class Grader(Protocol):
    """What decides whether a patch repairs a bug, called by many threads. Every `EpisodeHost` is one."""

    def grade(self, work: SolverWork, patch: str) -> Grade:
        """Raises SandboxUnavailable if the machine fails."""
        ...


@dataclass(frozen=True)
class _Here:
    """Implements `Grader` in this process. environments: by the tasks' ids."""

    environments: Mapping[str, Environment]
    runner: TestRunner

    def grade(self, work: SolverWork, patch: str) -> Grade:
        return grade(work.bug, patch, self.environments[work.repository], self.runner)


@dataclass(frozen=True)
class Grading:
    """Where predictions are graded.

    checker    checks the tasks first, on this machine
    grader_of  what grades these tasks, from their checks and from what grades in this process
    at_a_time  how many patches are graded at the same time; 0 for the checker's number
    """

    checker: Checker
    grader_of: Callable[[Sequence[Task], Checked, Grader], Grader] = lambda _, __, here: here
    at_a_time: int = 0


def grade_predictions(
    tasks: Sequence[Task],
    predictions: Predictions,
    config: Config,
    prepared: Prepared,
    grading: Grading,
    folder: Folder,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[AttemptResult]:
    """Grade the predictions that `folder` does not hold yet, and return the results of all.

    Raises UsageError if no prediction is of a task, or if the folder belongs to another evaluation; RunError
    if no task can be graded here; SandboxUnavailable.
    """
    if not any(task.instance_id in predictions.patches for task in tasks):
        raise UsageError(
            f"no prediction is of one of the {len(tasks)} task(s); its ids begin with "
            f"{next(iter(predictions.patches))!r}, the tasks' with {tasks[0].instance_id!r}."
        )
    identity = identity_of(config, predictions.policy, tasks)
    folder.check(identity)
    checker = grading.checker
    checked = check_into(folder, checker, tasks, prepared.environments, prepared.left_out)
    bugs = checked.bugs
    folder.begin(identity)
    known = {result.key: result for result in folder.results()}
    wanted = [
        (task, number, patch)
        for task in tasks
        if task.instance_id in bugs
        for number, patch in enumerate(predictions.patches.get(task.instance_id, (None,)))
    ]
    unfinished = {
        task.instance_id for task, number, _ in wanted if (task.instance_id, "sampled", number) not in known
    }
    some = [task for task in tasks if task.instance_id in unfinished]
    here = _Here(checked.environments, checker.runner)
    grader = grading.grader_of(some, checked, here) if some else here
    results: list[AttemptResult] = []
    with (
        folder.results_file.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(grading.at_a_time or checker.workers, thread_name_prefix="grade") as pool,
    ):

        def graded(job: tuple[Task, int, str | None]) -> AttemptResult:
            task, number, patch = job
            done = known.get((task.instance_id, "sampled", number))
            return done or _graded(task, number, patch, bugs[task.instance_id][1], grader)

        for done, result in enumerate(pool.map(graded, wanted), 1):
            if result.key not in known:
                file.write(result.to_line())
                file.flush()
            results.append(result)
            progress(done, len(wanted))
    return results


def _graded(task: Task, number: int, patch: str | None, bug: BugState, grader: Grader) -> AttemptResult:
    work = SolverWork(task.instance_id, task.instance_id, bug, task.failure)
    found = None if patch is None else grader.grade(work, patch)
    return AttemptResult(
        instance_id=task.instance_id,
        repo=task.repo,
        attempt=number,
        passed=found.passed if found else False,
        reason=found.reason if found else NO_PREDICTION,
        finish=FINISH,
        turns=0,
        tokens=0,
        seconds=round(found.duration_s, 3) if found else 0.0,
        patch=patch or "",
    )
