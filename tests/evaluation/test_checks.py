"""What outcomes say of a record's tests, and tasks that are checked by execution before they are played."""

import io
import json
from dataclasses import replace

import pytest
from field_records import (
    make_clones,
    multi_swe_record,
    r2e_record,
    swe_bench_record,
    swe_smith_record,
)
from rich.console import Console

from machine import open_or_skip
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import build_config
from selfplay.evaluation.checks import Checker, judge_buggy, judge_original
from selfplay.evaluation.records import Setup
from selfplay.evaluation.task_environments import prepare_tasks
from selfplay.evaluation.tasks import parse_task
from selfplay.outcomes import TestOutcomes
from selfplay.repositories.prepare import Preparer
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner

CONFIG = build_config({})
MEAN, EVEN = "tests/test_numbers.py::test_mean", "tests/test_numbers.py::test_is_even"


def a_bug(fail_to_pass, pass_to_pass=()):
    return BugState(Artifact("", "", (), "s", "p"), 1, "", tuple(fail_to_pass), tuple(pass_to_pass))


def outcomes(passed, failed=()):
    return TestOutcomes(frozenset(passed), frozenset(failed))


def test_a_record_whose_tests_pass_on_the_original_keeps_its_ids():
    found = judge_original(a_bug(["b", "a"], ["d", "c"]), outcomes("abcde"))
    assert (found.reason, found.fail_to_pass, found.pass_to_pass) == ("", ("b", "a"), ("d", "c"))


def test_an_id_that_was_cut_at_a_space_means_the_tests_that_begin_so():
    """SWE-bench cuts the ids of parametrised tests so."""
    found = judge_original(
        a_bug(["t.py::t[a"], ["t.py::u"]), outcomes(["t.py::t[a b]", "t.py::t[a c]", "t.py::u"])
    )
    assert found.fail_to_pass == ("t.py::t[a b]", "t.py::t[a c]")


def test_an_id_that_was_cut_in_its_parameters_means_the_tests_that_begin_so():
    found = judge_original(a_bug(["t.py::t[log(pho"]), outcomes(["t.py::t[log(photon)]", "t.py::t[log(x)]"]))
    assert found.fail_to_pass == ("t.py::t[log(photon)]",)


def test_ids_of_no_test_are_named():
    found = judge_original(a_bug(["a", "x", "y"]), outcomes("ab"))
    assert found.reason == "2 of 3 ids in FAIL_TO_PASS name no test that ran on the original: x, y"


def test_a_test_that_fails_on_the_original_is_named():
    found = judge_original(a_bug(["a"]), outcomes("b", "a"))
    assert found.reason == "1 of 1 tests in FAIL_TO_PASS do not pass on the original: a"


def test_other_tests_that_do_not_pass_here_are_not_counted():
    found = judge_original(a_bug(["a"], ["b", "c", "x"]), outcomes("ab", "c"))
    assert (found.reason, found.pass_to_pass, found.not_counted) == ("", ("b",), ("c", "x"))


def test_a_test_that_passes_with_the_bug_is_named():
    found = judge_original(a_bug(["a", "b"]), outcomes("ab"))
    assert judge_buggy(found, outcomes("", "a")).reason == ""
    assert (
        judge_buggy(found, outcomes("b", "a")).reason == "1 of 2 tests in FAIL_TO_PASS pass with the bug: b"
    )


# ---- by execution


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    return make_clones(tmp_path_factory.mktemp("clones"))


@pytest.fixture(scope="module")
def bubblewrap(tmp_path_factory):
    """The back end, with environments in a cache that the code finds, too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFPLAY_CACHE", str(folder))
        yield open_or_skip("bubblewrap", folder)


def prepare(tasks, backend, clones, console=None):
    preparer = Preparer(backend, CONFIG, sandbox_limits(CONFIG), console or Console(file=io.StringIO()))
    return prepare_tasks(tasks, preparer, clones)


def runner_of(backend):
    return TestRunner(backend, CONFIG.validator, sandbox_limits(CONFIG), {"run": "test"})


def check(tasks, backend, clones, cache=None):
    prepared = prepare(tasks, backend, clones)
    assert prepared.left_out == {}
    return Checker(runner_of(backend), cache).check(tasks, prepared.environments)


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.parametrize("shape", [swe_bench_record, swe_smith_record, r2e_record, multi_swe_record])
def test_a_record_of_each_shape_holds_and_its_repair_passes(shape, bubblewrap, clones):
    task = parse_task(shape(clones))
    checked = check([task], bubblewrap, clones)
    assert (checked.left_out, checked.not_counted) == ({}, {})
    environment, bug = checked.bugs[task.instance_id]
    repair = parse_task(swe_bench_record(clones)).patch
    runner = runner_of(bubblewrap)
    assert grade(bug, repair, environment, runner).reason == ""
    assert not grade(bug, "", environment, runner).passed


@pytest.mark.sandbox
@pytest.mark.slow
def test_what_a_record_says_wrongly_is_named_and_left_out(bubblewrap, clones):
    right = parse_task(swe_bench_record(clones))
    wrong = {
        "empty": replace(right, fail_to_pass=(), pass_to_pass=()),
        "junk": replace(right, fail_to_pass=("tests/test_numbers.py::test_nothing",)),
        "passing": replace(right, fail_to_pass=(MEAN,)),
        "misfit": replace(right, patch=right.patch.replace("str(number)", "number")),
        "silent": replace(right, issue="", test_patch=""),
    }
    tasks = [right, *(replace(task, instance_id=name) for name, task in wrong.items())]
    checked = check(tasks, bubblewrap, clones)
    assert list(checked.bugs) == [right.instance_id]
    assert checked.left_out["empty"] == "FAIL_TO_PASS is empty: no test tells a repair from the bug"
    assert "1 of 1 ids in FAIL_TO_PASS name no test that ran" in checked.left_out["junk"]
    assert checked.left_out["passing"] == f"1 of 1 tests in FAIL_TO_PASS pass with the bug: {MEAN}"
    assert checked.left_out["misfit"].startswith("does not fit its repository: ")
    assert checked.left_out["silent"].startswith("it has neither problem_statement nor test_patch")


@pytest.mark.sandbox
@pytest.mark.slow
def test_a_finding_is_cached_and_a_damaged_one_is_found_again(bubblewrap, clones, tmp_path):
    task = parse_task(swe_bench_record(clones, PASS_TO_PASS=[MEAN, "tests/test_numbers.py::test_gone"]))
    first = check([task], bubblewrap, clones, tmp_path)
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert found["not_counted"] == ["tests/test_numbers.py::test_gone"]
    file.write_text(json.dumps(found | {"not_counted": ["kept"]}))
    assert check([task], bubblewrap, clones, tmp_path).not_counted == {task.instance_id: ("kept",)}
    file.write_text("{")
    again = check([task], bubblewrap, clones, tmp_path)
    assert (again.bugs, again.not_counted) == (first.bugs, first.not_counted)


@pytest.mark.sandbox
@pytest.mark.slow
def test_the_commit_of_the_record_is_used_and_not_the_newest(bubblewrap, clones):
    """The newest commit has files that the record's commit lacks."""
    task = parse_task(swe_bench_record(clones))
    environment = prepare([task], bubblewrap, clones).environments[task.repo]
    assert environment.base_commit == swe_bench_record(clones)["base_commit"]
    assert "tiny/report.py" not in environment.tree


@pytest.mark.sandbox
@pytest.mark.slow
def test_an_environment_is_made_once_and_then_found(bubblewrap, clones, monkeypatch):
    task = parse_task(swe_bench_record(clones))
    first = prepare([task], bubblewrap, clones).environments
    for step in ("install", "collect", "run_probe"):
        monkeypatch.delattr(f"selfplay.evaluation.task_environments.{step}")
    assert prepare([task], bubblewrap, clones).environments == first


@pytest.mark.sandbox
@pytest.mark.slow
def test_a_record_of_an_image_is_left_out_where_sandboxes_open_none(bubblewrap, clones):
    task = replace(parse_task(swe_bench_record(clones)), repo="docker:selfplay/base:2#/opt", setup=Setup())
    open_or_skip("docker")
    left_out = prepare([task], bubblewrap, clones).left_out
    assert "needs sandbox.type = 'docker', not 'bubblewrap'" in left_out[task.instance_id]


@pytest.mark.sandbox
@pytest.mark.slow
def test_a_task_whose_repository_cannot_be_had_is_named(bubblewrap, clones):
    other_python = parse_task(swe_bench_record(clones, install_config={"python": "3.4"}))
    missing = parse_task(swe_bench_record(clones, instance_id="missing", base_commit="1" * 40))
    java = parse_task(multi_swe_record(clones, lang="java", number=7))
    setup = Setup(image_only=True, test="go test", parser="pass-fail")
    go = replace(other_python, instance_id="go", repo=f"{other_python.repo[:-1]}", setup=setup)
    prepared = prepare([other_python, missing, java, go], bubblewrap, clones)
    assert prepared.environments == {}
    assert (
        "python=3.4 is older than what environments can be built for"
        in prepared.left_out[other_python.instance_id]
    )
    assert "has no branch, tag or commit '1111111" in prepared.left_out["missing"]
    assert prepared.left_out[java.instance_id].startswith("its tests are in java")
    assert "set sandbox.type = 'docker'" in prepared.left_out["go"]
