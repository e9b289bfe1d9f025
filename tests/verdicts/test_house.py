"""The house's own script, and what its exit status must show. Nothing here runs a test."""

from dataclasses import replace

import pytest

from bare_environment import an_environment
from selfplay.outcomes import TestOutcomes
from selfplay.repositories.scripts import standard_parser, standard_script
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.house import house_script, is_house_made, judge_exit_status
from selfplay.verdicts.test_runs import TestRun

A, B = "tests/test_a.py", "tests/test_b.py"
PASSING = (f"{A}::test_one", f"{A}::test_two[1]")


def environment(*excluded, command=""):
    found = an_environment(standard_script((A, B)), standard_parser())
    baseline = TestOutcomes(frozenset(PASSING))
    return replace(
        found, test_files=(A, B), baseline=baseline, excluded_ids=frozenset(excluded), command=command
    )


def artifact(script=None, parser=None, files=(A,)):
    return Artifact("", "", files, script or standard_script(files), parser or standard_parser())


def test_a_script_for_the_named_files_or_for_all_is_the_houses():
    for script in (standard_script((A,)), standard_script((A, B))):
        assert is_house_made(artifact(script), environment())
        assert house_script(environment(), artifact(script)) == script
    assert not is_house_made(artifact("true"), environment())
    assert not is_house_made(artifact(parser="print({})"), environment())
    assert house_script(environment(), artifact("true")) == standard_script((A,))


def test_a_test_command_runs_as_it_is():
    found = environment(f"{A}::test_fails", command="make check")
    assert house_script(found, artifact("true")) == found.script_for((A,))


def test_tests_that_fail_on_the_original_are_left_out_so_that_the_status_says_something():
    failing = (f"{A}::test_fails", f"{B}::test_elsewhere")
    script = house_script(environment(*failing), artifact())
    assert script == standard_script((A,), f" --deselect={A}::test_fails")
    unreadable = house_script(environment(B), artifact(files=(A, B)))
    assert unreadable == standard_script((A,))


def test_a_failing_test_whose_name_begins_a_passing_one_is_not_left_out():
    """pytest would leave out the passing one too."""
    script = house_script(environment(f"{A}::test_t", f"{A}::test_two[1"), artifact())
    assert script == standard_script((A,))


def a_run(passed=(), failed=(), status=0, error=""):
    return TestRun(TestOutcomes(frozenset(passed), frozenset(failed)), b"", error, exit_code=status)


RIGHT, WRONG = a_run("ab"), a_run("a", "b", status=1)


def test_a_status_that_tells_the_bug_passes():
    found = judge_exit_status(RIGHT, WRONG)
    assert found.passed and found.evidence == {"original": 0, "buggy": 1, "broken": ["b"]}


@pytest.mark.parametrize(
    ("original", "buggy", "reason"),
    [
        (RIGHT, a_run("a", "b", status=0), "ends with status 0 with the bug too"),
        (a_run("ab", status=1), WRONG, "ends with status 1 on the original code, not 0"),
        (RIGHT, a_run("ab", status=1), "no test that passed before fails"),
        (RIGHT, a_run(error="took too long", status=1), "with the bug: took too long"),
        (a_run(error="took too long"), WRONG, "with the original code: took too long"),
    ],
)
def test_a_status_that_tells_nothing_rejects_with_the_reason(original, buggy, reason):
    found = judge_exit_status(original, buggy)
    assert not found.passed and reason in found.reason
