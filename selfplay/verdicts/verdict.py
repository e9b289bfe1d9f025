"""The verdict on an artifact: the result of each check, and what the checks measured.

The checks are run by `validator`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

# The order of the verdict. The first of them that fails is `Verdict.failed_check`.
CHECKS = (
    "readable",
    "patches",
    "protected_paths",
    "test_files",
    "parser",
    "baseline",
    "min_changed_files",
    "repairable",
    "bug_breaks_tests",
    "weakening_hides",
    "inverse_mutation",
    "script_runs_code",
    "exit_status",
    "determinism",
)
FLAKY_CHECK = "determinism"

VerdictKind = Literal["accepted", "invalid", "flaky"]


def verdict_kind(accepted: bool, failed_check: str) -> VerdictKind:
    """The kind of a verdict. "flaky": the only fault is that equal runs differ.

    A failure of the machine is no kind: it gives no verdict and raises SandboxUnavailable.
    """
    if accepted:
        return "accepted"
    return "flaky" if failed_check == FLAKY_CHECK else "invalid"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check. `reason`: why it failed, "" if it passed."""

    name: str
    passed: bool
    reason: str
    evidence: Mapping[str, Any]
    duration_s: float


@dataclass(frozen=True)
class Verdict:
    """The decision on an artifact, with its evidence.

    failed_check  the first check that failed, "" if the artifact is accepted
    buggy_digest  what artifacts of one bug have in common (`bug_digest`), "" if the artifact is rejected. A
                  verdict of an older version has the digest of the tree that a solver gets
    failure       short traceback of one failing test, on the buggy code with the original's tests
    test_runs     runs of the tests that this verdict needed
    cached_runs   runs whose result was known already
    """

    accepted: bool
    checks: tuple[CheckResult, ...]
    failed_check: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    buggy_digest: str
    failure: str
    duration_s: float
    test_runs: int
    cached_runs: int

    @property
    def kind(self) -> VerdictKind:
        return verdict_kind(self.accepted, self.failed_check)

    @property
    def flaky_tests(self) -> tuple[str, ...]:
        """Tests whose outcome differed between equal runs, sorted.

        The evidence holds a limited number of them.
        """
        evidence = next((check.evidence for check in self.checks if check.name == FLAKY_CHECK), {})
        moved: Mapping[str, list[str]] = evidence.get("moved", {})
        return tuple(sorted({test_id for ids in moved.values() for test_id in ids}))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Verdict:
        lists = {name: tuple(value[name]) for name in ("fail_to_pass", "pass_to_pass")}
        return cls(**{**value, **lists, "checks": tuple(CheckResult(**check) for check in value["checks"])})
