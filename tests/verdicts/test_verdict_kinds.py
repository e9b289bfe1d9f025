"""Flaky, invalid and a failing machine: in verdicts, in `selfplay validate` and in a run's rejections."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from selfplay.commands.validate import NO_VERDICT, judge_folder
from selfplay.curriculum.store import Store
from selfplay.errors import EnvironmentBuildError, PrerequisiteError, SelfplayError
from selfplay.outcomes import TestOutcomes
from selfplay.verdicts.checks import Finding, fail, judge_repeats
from selfplay.verdicts.verdict import CheckResult, Verdict
from selfplay.viewing.rejections import rejections, show_rejections
from selfplay.viewing.verdict import print_verdict
from store_rows import recorded_run

PASSED = TestOutcomes(frozenset({"a", "b"}), frozenset())
MOVED = TestOutcomes(frozenset({"b"}), frozenset({"a"}))


def a_verdict(name: str = "", finding: Finding | None = None) -> Verdict:
    """Rejected by the check `name`, or accepted."""
    finding = finding or Finding(True)
    checks = (
        CheckResult("readable", True, "", {}, 0.0),
        CheckResult(name or "determinism", finding.passed, finding.reason, finding.evidence, 0.1),
    )
    return Verdict(finding.passed, checks, "" if finding.passed else name, (), (), "", "", 0.1, 3, 0)


FLAKY = a_verdict(
    "determinism",
    judge_repeats({"original": [(PASSED, ""), (PASSED, "")], "buggy": [(PASSED, ""), (MOVED, "")]}),
)
INVALID = a_verdict("bug_breaks_tests", fail("no test notices the bug"))


def shown(verdict: Verdict) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_verdict(verdict, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()[-1]


def test_a_verdict_says_whether_it_is_flaky_or_invalid_and_which_tests_moved() -> None:
    assert (a_verdict().kind, FLAKY.kind, INVALID.kind) == ("accepted", "flaky", "invalid")
    assert (a_verdict().flaky_tests, FLAKY.flaky_tests, INVALID.flaky_tests) == ((), ("a",), ())
    assert Verdict.from_json(json.loads(json.dumps(FLAKY.to_json()))).flaky_tests == ("a",)


def test_the_last_line_says_it_too() -> None:
    assert shown(FLAKY).startswith("rejected as flaky: equal runs differ in a; 3 test run(s)")
    assert shown(INVALID).startswith("rejected as invalid by bug_breaks_tests; 3 test run(s)")
    assert shown(a_verdict()).startswith("accepted: ")


@pytest.mark.parametrize(
    "failure",
    [PrerequisiteError("bwrap not found on PATH."), EnvironmentBuildError("tiny: no test passes", "the log")],
)
def test_a_machine_failure_is_not_a_rejection(
    failure: SelfplayError,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("bug_inject.diff", "test_weaken.diff", "test_files.txt", "test_script.sh", "test_parser.py"):
        (tmp_path / name).write_text("x\n")

    def no_backend(kind: str) -> None:
        raise failure

    monkeypatch.setattr("selfplay.commands.validate.open_backend", no_backend)
    assert judge_folder(tmp_path, "pypi:toolz==1.0.0", None, [], as_json=True) == NO_VERDICT
    out, err = capsys.readouterr()
    assert json.loads(out) == {"kind": "machine", "accepted": None, "reason": str(failure)}
    assert "no verdict, the machine failed" in err and getattr(failure, "log_tail", "") in err


@pytest.mark.parametrize("recorded", [FLAKY.to_json(), FLAKY.to_json()["checks"]], ids=["now", "older"])
def test_rejections_of_a_run_distinguish_flaky_from_invalid_and_count_machine_failures_separately(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recorded: object
) -> None:
    folder = recorded_run(tmp_path / "run")
    with Store.open(folder / "selfplay.db") as store:
        checks = json.dumps(recorded)
        store._write(
            "UPDATE verdicts SET failed_check = 'determinism', checks_json = ? "
            "WHERE failed_check = 'inverse_mutation'",
            checks,
        )
        by_check = {found.check: found for found in rejections(store)}
        assert (by_check["parser"].kind, by_check["parser"].flaky_tests) == ("invalid", ())
        assert (by_check["determinism"].kind, by_check["determinism"].flaky_tests) == ("flaky", ("a",))
        console = Console(file=io.StringIO(), width=200)
        show_rejections(store, console)
        show_rejections(store, console, as_json=True)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("The machine failed 1 time(s). This rejects nothing: ")
    assert [line.split()[:3] for line in lines[2:4]] == [
        ["parser", "2", "u0001-inj0-m2"],
        ["determinism", "(flaky)", "1"],
    ], lines
    data = json.loads(capsys.readouterr().out)
    assert (data["machine_failures"], {row["check"]: row["kind"] for row in data["rejected"]}) == (
        1,
        {"parser": "invalid", "determinism": "flaky"},
    )
