"""The decisions of the consistency checks, as pure functions of test outcomes. Nothing here runs a test.

Invariant: only an explicit pass is a pass. A test that is missing, skipped or ends with an error never is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfplay.outcomes import TestOutcomes

SHOWN_IDS = 20


@dataclass(frozen=True)
class Thresholds:
    min_passing_tests: int = 5
    min_failing_tests: int = 1
    min_changed_files: int = 1


@dataclass(frozen=True)
class Finding:
    """The decision of one check. `reason`: why it failed, "" if it passed."""

    passed: bool
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


def fail(reason: str, **evidence: Any) -> Finding:
    return Finding(False, reason, evidence)


def shown(ids: Iterable[str]) -> list[str]:
    """The first SHOWN_IDS of the sorted `ids`, so that evidence stays readable."""
    return sorted(ids)[:SHOWN_IDS]


def judge_baseline(original: TestOutcomes, thresholds: Thresholds) -> Finding:
    """Check 3: on the original code, enough tests pass and none fails."""
    evidence = {
        "passed": len(original.passed),
        "failed": shown(original.failed),
        "required": thresholds.min_passing_tests,
    }
    if original.failed:
        names = ", ".join(shown(original.failed)[:3])
        reason = f"{len(original.failed)} test(s) fail on the original code: {names}"
        return Finding(False, reason, evidence)
    count, required = len(original.passed), thresholds.min_passing_tests
    if count < required:
        reason = f"{count} test(s) pass on the original code; at least {required} must"
        return Finding(False, reason, evidence)
    return Finding(True, "", evidence)


def judge_changed_files(changed: Sequence[str], thresholds: Thresholds) -> Finding:
    """Check 4: the bug changes enough files."""
    required = thresholds.min_changed_files
    evidence = {"changed": list(changed)[:SHOWN_IDS], "required": required}
    if not changed:
        return Finding(False, "bug_inject.diff is empty: it changes no file", evidence)
    if len(changed) < required:
        reason = f"bug_inject.diff changes {len(changed)} file(s); at least {required} must change"
        return Finding(False, reason, evidence)
    return Finding(True, "", evidence)


def broken_tests(original: TestOutcomes, buggy: TestOutcomes) -> frozenset[str]:
    """B: tests that passed on the original and no longer pass."""
    return original.passed - buggy.passed


def judge_bug(original: TestOutcomes, buggy: TestOutcomes, thresholds: Thresholds) -> Finding:
    """Check 5: enough tests of B fail explicitly, and at least one test still passes."""
    broken = broken_tests(original, buggy)
    explicit = broken & buggy.failed
    still_passing = original.passed - broken
    required = thresholds.min_failing_tests
    evidence = {
        "broken": len(broken),
        "failing": shown(explicit),
        "missing": shown(broken - buggy.failed),
        "still_passing": len(still_passing),
        "required": required,
    }
    if not broken:
        return Finding(False, "no test notices the bug: every test that passed still passes", evidence)
    if len(explicit) < required:
        found = f"{len(explicit)} test(s) fail with the bug"
        reason = f"{found}; at least {required} must (missing tests do not count)"
        return Finding(False, reason, evidence)
    if not still_passing:
        return Finding(False, "every test stops passing with the bug; some must still pass", evidence)
    return Finding(True, "", evidence)


def judge_weakening(broken: frozenset[str], buggy: TestOutcomes, weakened: TestOutcomes) -> Finding:
    """Check 6: with the weakened tests, a test of B passes again, or failed explicitly and is now gone.

    Some test must pass: a weakening that leaves none gives the solver nothing to run.
    """
    again = broken & weakened.passed
    gone = (broken & buggy.failed) - weakened.ids
    evidence = {"passing_again": shown(again), "gone": shown(gone), "hidden": len(again | gone)}
    if not weakened.passed:
        reason = (
            "with the weakened tests no test passes; keep the test files that test_script.sh names, "
            "and the tests that the bug does not break"
        )
        return Finding(False, reason, evidence)
    if not again | gone:
        return Finding(
            False, "test_weaken.diff hides nothing: every test that the bug breaks still shows it", evidence
        )
    return Finding(True, "", evidence)


def judge_reverts(broken: frozenset[str], reverts: Mapping[str, tuple[TestOutcomes, str]]) -> Finding:
    """Check 7: if any one changed file is reverted, at least one test of B passes.

    A file without effect is padding.

    reverts: file -> (outcomes with this file reverted, the error of the run or "")
    """
    repaired = {name: broken & outcomes.passed for name, (outcomes, _) in reverts.items()}
    evidence = {"tests_repaired_by_reverting": {name: len(tests) for name, tests in repaired.items()}}
    padding = [name for name, tests in repaired.items() if not tests]
    if not reverts:
        return Finding(False, "no file differs from the original", evidence)
    if padding:
        errors = "; ".join(f"{name}: {error}" for name, (_, error) in reverts.items() if error)
        reason = f"reverting only {', '.join(padding[:5])} repairs no test, so it is padding"
        return Finding(False, f"{reason} ({errors})" if errors else reason, evidence)
    return Finding(True, "", evidence)


def judge_repeats(states: Mapping[str, Sequence[tuple[TestOutcomes, str]]]) -> Finding:
    """Check that all runs of a state have equal outcomes.

    states: name -> (outcomes, error or "") of each run; the first run of a state has no error
    """
    evidence: dict[str, Any] = {"runs": {name: len(runs) for name, runs in states.items()}}
    moved: dict[str, list[str]] = {}
    errors: list[str] = []
    for name, runs in states.items():
        first = runs[0][0]
        ids = {test_id for outcomes, error in runs[1:] if not error for test_id in first.differing(outcomes)}
        errors += [f"{name}: {error}" for _, error in runs[1:] if error]
        if ids:
            moved[name] = shown(ids)
    if not moved and not errors:
        return Finding(True, "", evidence)
    differences = [f"{name}: {', '.join(ids[:3])}" for name, ids in moved.items()] + errors
    reason = f"outcomes change with the hash seed or with changes without meaning ({'; '.join(differences)})"
    return Finding(False, reason, evidence | {"moved": moved, "errors": errors})


def judge_empty_log(on_empty: TestOutcomes, on_stripped: TestOutcomes, original: TestOutcomes) -> Finding:
    """Check that a parser reads its log: it must not report a pass that the log does not show.

    on_empty     outcomes that it reads from an empty log
    on_stripped  outcomes that it reads from the original's log without the lines that name passed tests
    """
    if on_empty.passed:
        reason = f"test_parser.py reports {len(on_empty.passed)} test(s) as passed in an empty log"
        return fail(reason, invented=shown(on_empty.passed))
    invented = shown(on_stripped.passed & original.passed)
    if invented:
        reason = "test_parser.py reports tests as passed that the log does not name any more"
        return fail(f"{reason}, for instance {invented[0]}", invented=invented)
    return Finding(True, "", {"tests": len(original.ids)})


def judge_repair(
    outcomes: TestOutcomes, fail_to_pass: Iterable[str], pass_to_pass: Iterable[str]
) -> tuple[str, ...]:
    """The tests of F2P and P2P that do not pass, sorted. () means that the bug is repaired."""
    return tuple(sorted(frozenset(fail_to_pass).union(pass_to_pass) - outcomes.passed))
