"""What outcomes mean: the decisions behind the consistency checks, as pure functions. Runs nothing.

Invariant: only an explicit pass is a pass; a missing, skipped or erring test never is.
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
    """What one check found; `reason` says what is wrong, "" when it passed."""

    passed: bool
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


def fail(reason: str, **evidence: Any) -> Finding:
    return Finding(False, reason, evidence)


def shown(ids: Iterable[str]) -> list[str]:
    """The first of `ids`, sorted: evidence stays readable whatever was printed."""
    return sorted(ids)[:SHOWN_IDS]


def judge_baseline(original: TestOutcomes, thresholds: Thresholds) -> Finding:
    """Check 3: on the original code enough tests pass and none fails."""
    evidence = {
        "passed": len(original.passed),
        "failed": shown(original.failed),
        "required": thresholds.min_passing_tests,
    }
    if original.failed:
        return Finding(
            False,
            f"{len(original.failed)} test(s) fail on the original code: {', '.join(shown(original.failed)[:3])}",
            evidence,
        )
    if len(original.passed) < thresholds.min_passing_tests:
        reason = f"{len(original.passed)} test(s) pass on the original code; at least {thresholds.min_passing_tests} must"
        return Finding(False, reason, evidence)
    return Finding(True, "", evidence)


def judge_changed_files(changed: Sequence[str], thresholds: Thresholds) -> Finding:
    """Check 4: the bug changes enough files."""
    evidence = {"changed": list(changed)[:SHOWN_IDS], "required": thresholds.min_changed_files}
    if not changed:
        return Finding(False, "bug_inject.diff is empty: it changes no file", evidence)
    if len(changed) < thresholds.min_changed_files:
        return Finding(
            False,
            f"bug_inject.diff changes {len(changed)} file(s); at least {thresholds.min_changed_files} must change",
            evidence,
        )
    return Finding(True, "", evidence)


def broken_tests(original: TestOutcomes, buggy: TestOutcomes) -> frozenset[str]:
    """B: tests that passed on the original and no longer pass."""
    return original.passed - buggy.passed


def judge_bug(original: TestOutcomes, buggy: TestOutcomes, thresholds: Thresholds) -> Finding:
    """Check 5: enough tests of B fail explicitly, and some test still passes."""
    broken = broken_tests(original, buggy)
    explicit = broken & buggy.failed
    kept = original.passed - broken
    evidence = {
        "broken": len(broken),
        "failing": shown(explicit),
        "missing": shown(broken - buggy.failed),
        "still_passing": len(kept),
        "required": thresholds.min_failing_tests,
    }
    if not broken:
        return Finding(False, "no test notices the bug: every test that passed still passes", evidence)
    if len(explicit) < thresholds.min_failing_tests:
        reason = f"{len(explicit)} test(s) fail with the bug; at least {thresholds.min_failing_tests} must (missing tests do not count)"
        return Finding(False, reason, evidence)
    if not kept:
        return Finding(False, "every test stops passing with the bug; some must still pass", evidence)
    return Finding(True, "", evidence)


def judge_weakening(broken: frozenset[str], buggy: TestOutcomes, weakened: TestOutcomes) -> Finding:
    """Check 6: with the weakened tests, a test of B passes again, or failed explicitly and is now gone."""
    again = broken & weakened.passed
    gone = (broken & buggy.failed) - weakened.ids
    evidence = {"passing_again": shown(again), "gone": shown(gone), "hidden": len(again | gone)}
    if not again | gone:
        return Finding(
            False, "test_weaken.diff hides nothing: every test that the bug breaks still shows it", evidence
        )
    return Finding(True, "", evidence)


def judge_reverts(broken: frozenset[str], reverts: Mapping[str, tuple[TestOutcomes, str]]) -> Finding:
    """Check 7: with any one changed file reverted some test of B passes. `reverts`: file -> (outcomes, why there are none)."""
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
    """Verdicts repeat: each state's runs, the first one known to be good, have equal outcomes."""
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
    said = [f"{name}: {', '.join(ids[:3])}" for name, ids in moved.items()] + errors
    reason = f"outcomes change with the hash seed or with changes without meaning ({'; '.join(said)})"
    return Finding(False, reason, evidence | {"moved": moved, "errors": errors})


def judge_empty_log(on_empty: TestOutcomes, on_stripped: TestOutcomes, original: TestOutcomes) -> Finding:
    """A parser reads its log: no test passes in an empty one, nor in one without the lines that name it."""
    if on_empty.passed:
        invented = shown(on_empty.passed)
        return fail(
            f"test_parser.py reports {len(on_empty.passed)} test(s) as passed in an empty log",
            invented=invented,
        )
    invented = shown(on_stripped.passed & original.passed)
    if invented:
        return fail(
            f"test_parser.py reports tests as passed that the log does not name any more, for instance {invented[0]}",
            invented=invented,
        )
    return Finding(True, "", {"tests": len(original.ids)})


def judge_repair(
    outcomes: TestOutcomes, fail_to_pass: Iterable[str], pass_to_pass: Iterable[str]
) -> tuple[str, ...]:
    """The tests of both that do not pass, sorted; () is a repair."""
    return tuple(sorted(frozenset(fail_to_pass).union(pass_to_pass) - outcomes.passed))
