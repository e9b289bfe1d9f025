"""The grade of a repair attempt, by its tests in fresh sandboxes. Solve rates and rewards are left to others.

Invariants: tests, runner files and other protected files are the original's when an attempt is graded. Script
and parser are the house's, and each run has changes without meaning: nothing that is graded knows the phase.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selfplay.errors import PatchError
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import judge_repair
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.house import house_of, status_belies
from selfplay.verdicts.perturbation import FIRST_GRADING, noisy
from selfplay.verdicts.repairs import graded_trees
from selfplay.verdicts.second_grading import SecondGrader
from selfplay.verdicts.test_runs import TestRunner

if TYPE_CHECKING:
    from selfplay.repositories.environment import Environment


@dataclass(frozen=True)
class Grade:
    """Whether an attempt repaired its bug. `restored`: the protected paths whose change did not count."""

    passed: bool
    reason: str
    failed_tests: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    confirmation: Confirmation = Confirmation.NOT_NEEDED
    duration_s: float = 0.0


def grade(
    bug: BugState, patch: str, environment: Environment, runner: TestRunner, confirm: bool = True
) -> Grade:
    """Grade an attempt: each test of F2P and P2P must pass on the solver's start with `patch` applied.

    confirm: grade a pass a second time (`second_grading`). A pass that is not confirmed does not count.
    Raises SandboxUnavailable.
    """
    started = time.monotonic()
    found = _grade(bug, patch, environment, runner, confirm)
    return replace(found, duration_s=round(time.monotonic() - started, 6))


def _grade(bug: BugState, patch: str, environment: Environment, runner: TestRunner, confirm: bool) -> Grade:
    original, artifact = environment.tree, bug.artifact
    states = build_states(original, bug)
    test_files = (*artifact.test_files, *environment.test_files)
    fixed = (*artifact.test_files, *environment.fixed_files(original.changed_paths(states.buggy)))
    try:
        trees = graded_trees(states, patch, fixed, runner.settings.max_patch_bytes)
    except PatchError as error:
        return Grade(False, f"the patch cannot be applied: {error}")
    predicted, final, restored = trees.predicted, trees.final, trees.restored
    if predicted == states.solver_start:
        return Grade(False, "only protected files changed" if restored else "no change", restored=restored)
    house = house_of(bug, environment, runner, states)
    if house is None:
        reason = "the bug is void: the house's script no longer shows it"
        return Grade(False, reason, restored=restored, confirmation=Confirmation.NOT_CONFIRMED)
    touched = {*original.changed_paths(states.buggy), *states.solver_start.changed_paths(predicted)}
    code = sorted(touched.difference(test_files))
    again = noisy(original, final, code, runner.secret, FIRST_GRADING, final.digest)
    first = runner.run(environment, again, house.script, house.parser)
    failed = judge_repair(first.outcomes, house.fail_to_pass, house.pass_to_pass)
    if first.error or failed:
        return Grade(False, first.error or f"{len(failed)} test(s) do not pass", failed, restored)
    if problem := status_belies(first, house, environment, runner):
        return Grade(False, problem, restored=restored, confirmation=Confirmation.FORGED)
    if not confirm:
        return Grade(True, "", restored=restored)
    second = SecondGrader(environment, runner, states, house, final, code, test_files).grade()
    found = second.confirmation
    return Grade(found.is_pass, second.reason, second.failed_tests, restored, found)
