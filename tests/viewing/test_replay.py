"""What follows the turns of a replay, and its JSON form. Finding, stepping and turns: test_viewing.py."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from selfplay.agent.episode import FinishReason, Role
from selfplay.cli import app
from selfplay.curriculum.rows import VerdictRow
from selfplay.curriculum.store import Store
from selfplay.evaluation.folder import AttemptResult, Identity, TaskEntry
from selfplay.evaluation.tasks import Task, find_tasks, write_tasks
from selfplay.repositories.scripts import standard_parser, standard_script
from selfplay.source.diffs import reverse_patch
from selfplay.viewing.episode_search import find_episode
from selfplay.viewing.replay import replay
from store_rows import INJECT, WEAKEN, a_bug, a_group, an_episode, an_episode_value

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e"
ATTEMPT = INJECT.replace("m.py", "n.py").replace("x = 2", "x = 3")


def replayed(folder: Path, wanted: str, width: int = 100, terminal: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    replay(find_episode(folder, wanted), console)
    return console.file.getvalue()


def section(text: str, title: str) -> str:
    """The lines of a plain replay below the heading that begins with `title`."""
    return text.partition(f"── {title}")[2].partition("\n── ")[0]


def as_json(folder: Path, wanted: str) -> dict:
    result = CliRunner().invoke(app, ["replay", wanted, "--runs", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


# -- the submission of an injector


def an_artifact(**files: str) -> dict[str, str]:
    return {
        "bug_inject.diff": INJECT,
        "test_files.txt": "test_m.py\n",
        "test_parser.py": standard_parser(),
        "test_script.sh": standard_script(["test_m.py"], "-o addopts="),
        "test_weaken.diff": WEAKEN,
        **files,
    }


def an_injector(run: Path, submission: dict[str, str], name: str = "u0001-inj0-m0", **values) -> None:
    values = {"group": "u0001-inj0", "role": Role.INJECTOR, "bug_id": "", **values}
    replace(an_episode_value(), episode_id=name, submission=submission, **values).write(run / "episodes")


def test_both_diffs_come_first_and_our_own_script_and_parser_are_a_line_each(run):
    an_injector(run, an_artifact())
    shown = section(replayed(run, "u0001-inj0-m0"), "submission").strip().splitlines()
    assert shown[0] == "bug_inject.diff" and "+x = 2" in shown
    rest = shown[shown.index("test_weaken.diff") :]
    assert rest[-4:] == [
        "test_files.txt",
        "test_m.py",
        "test_script.sh: the standard script for test_m.py",
        "test_parser.py: the standard parser",
    ]
    assert "+pass" in rest and "+x = 2" not in rest


def test_options_of_the_standard_script_are_named(run):
    script = standard_script(["test_m.py"], "-o addopts=  --hypothesis-profile=ci")
    an_injector(run, an_artifact(**{"test_script.sh": script}))
    shown = section(replayed(run, "u0001-inj0-m0"), "submission")
    assert (
        "test_script.sh: the standard script for test_m.py, with -o addopts=  --hypothesis-profile=ci"
        in shown
    )


@pytest.mark.parametrize(
    "script",
    [
        standard_script(["test_m.py"]) + "echo PASSED\n",
        standard_script(["test_m.py"], "; echo PASSED;"),
        standard_script(["test_m.py"], "\necho PASSED\n"),
        standard_script(["test_m.py"], "$(echo PASSED)"),
        standard_script(["test_other.py"]),
    ],
)
def test_a_script_that_only_resembles_ours_is_shown(run, script):
    an_injector(run, an_artifact(**{"test_script.sh": script}))
    shown = section(replayed(run, "u0001-inj0-m0"), "submission")
    assert "the standard script" not in shown
    assert "exec python -m pytest" in shown


def test_other_long_files_are_cut_and_the_rest_is_counted(run):
    script = "".join(f"echo {number}\n" for number in range(30))
    parser = f"print({'x' * 5000!r})\n"
    an_injector(run, an_artifact(**{"test_script.sh": script, "test_parser.py": parser}))
    shown = section(replayed(run, "u0001-inj0-m0"), "submission")
    assert "echo 9\n… 20 lines more; --json has all" in shown and "echo 10" not in shown
    assert "x" * 1000 in shown and "x" * 3000 not in shown
    assert "characters more; --json has all" in shown
    assert as_json(run.parent, "u0001-inj0-m0")["submission"]["test_script.sh"] == script


def test_a_diff_is_never_cut_and_an_empty_one_says_so(run):
    long = INJECT + "".join(f"+line {number}\n" for number in range(100))
    an_injector(run, an_artifact(**{"bug_inject.diff": long, "test_weaken.diff": "\n"}))
    shown = section(replayed(run, "u0001-inj0-m0"), "submission")
    assert "+line 99" in shown
    assert "test_weaken.diff\n(empty)" in shown


# -- the checks of an injector


def judge(run: Path, checks: list[dict], failed: str = "", **values) -> None:
    """A new injector group whose one member has this verdict."""
    group = a_group("u0003-inj0", update=2, size=1)
    recorded = {"accepted": not failed, "checks": checks, **values}
    reason = next((check["reason"] for check in checks if check["name"] == failed), "")
    with Store.open(run / "selfplay.db") as store:
        store.add_group(group)
        store.record_episode(an_episode(group))
        row = VerdictRow("u0003-inj0-m0", not failed, failed, reason, json.dumps(recorded), 4.5, 6, 2)
        store.record_verdict(row)
    an_injector(run, an_artifact(), "u0003-inj0-m0", group="u0003-inj0")


def a_check(name: str, seconds: float = 0.0, reason: str = "") -> dict:
    return {"name": name, "passed": not reason, "reason": reason, "evidence": {}, "duration_s": seconds}


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_checks_are_passed_failed_or_not_reached_with_seconds_and_the_reason(run):
    judge(run, [a_check("readable", 0.01), a_check("parser", 1.25, f"no test {EVIL}")], "parser")
    text = replayed(run, "u0003-inj0-m0")
    shown = rows(section(text, "checks"))
    assert ["readable", "passed", "0.01"] in shown
    assert ["parser", "failed", "1.25"] in shown
    assert ["determinism", "not", "reached"] in shown
    assert r"parser failed: no test \x1b]0;owned\x07" in section(text, "checks")
    assert "6 test run(s), 2 from the cache, 4.5 s" in section(text, "checks")


def test_an_accepted_artifact_has_the_numbers_of_its_tests(run):
    judge(run, [a_check("readable")], fail_to_pass=["a", "b"], pass_to_pass=["c"])
    text = section(replayed(run, "u0003-inj0-m0"), "checks")
    assert "accepted: 2 fail-to-pass and 1 pass-to-pass tests" in text
    assert ["script_runs_code", "not", "needed"] in rows(text)


def test_an_episode_without_an_artifact_has_no_table_of_checks(run):
    judge(run, [a_check("not_submitted/stuck", 0.0, "nothing was submitted")], "not_submitted/stuck")
    text = replayed(run, "u0003-inj0-m0")
    assert "── checks" not in text
    assert "rejected by not_submitted/stuck: nothing was submitted" in text


def test_an_accepted_artifact_names_the_bug_that_it_became(run):
    an_injector(run, an_artifact())
    assert ["became", "u0001-inj0-m0-bug"] in rows(replayed(run, "u0001-inj0-m0"))


# -- the bug of a solver


def a_solver(run: Path, name: str, **values) -> None:
    replace(an_episode_value(), episode_id=name, **values).write(run / "episodes")


def test_the_true_bug_and_its_tests_come_after_the_submission(run):
    text = replayed(run, "u0001-sol0-m0")
    bug = section(text, "the bug u0001-inj0-m0-bug")
    assert "bug_inject.diff: what the bug changed" in bug and "-x = 1\n+x = 2" in bug
    assert "files  both changed m.py" in bug
    assert "✓ test_m.py::test_x" in section(text, "the tests that it breaks: 1")
    assert text.index("── submission") < text.index("── the bug") < text.index("── the group")


def test_failed_tests_of_the_bug_and_others_are_told_apart_with_what_was_restored(run):
    a_solver(run, "u0001-sol0-m1", member=1, submission={"patch": ATTEMPT})
    with Store.open(run / "selfplay.db") as store:
        store._write(
            "UPDATE attempts SET failed_tests = ?, restored = ? WHERE episode_id = 'u0001-sol0-m1'",
            json.dumps(["test_m.py::test_x", "test_m.py::test_y"]),
            json.dumps(["test_m.py", "conftest.py"]),
        )
    text = replayed(run, "u0001-sol0-m1")
    tests = section(text, "the tests that it breaks: 1").splitlines()[1:]
    assert tests == [
        "✗ test_m.py::test_x",
        "other tests that fail after the repair: 1",
        "✗ test_m.py::test_y",
    ]
    assert "only the bug m.py; only the repair n.py" in section(text, "the bug")
    assert ["restored", "test_m.py,", "conftest.py"] in rows(text)
    assert ["became", "u0001-sol0-m1-bug2,", "a", "second-order", "bug"] in rows(text)


def test_a_repair_that_ran_no_test_has_its_bugs_tests_without_results(run):
    a_solver(run, "u0001-sol0-m2", member=2, submission={"patch": ""})
    with Store.open(run / "selfplay.db") as store:
        store._write("UPDATE attempts SET failed_tests = '[]', reason = 'no change' WHERE passed = 0")
    text = replayed(run, "u0001-sol0-m2")
    assert "test_m.py::test_x\nno results of single tests: no change" in text
    assert "the bug changed m.py; the repair changed nothing" in text


def test_a_repair_that_is_no_diff_is_shown_and_not_compared(run):
    a_solver(run, "u0001-sol0-m1", member=1, submission={"patch": f"garbage {EVIL}"})
    text = replayed(run, "u0001-sol0-m1")
    assert "not compared, a diff cannot be read" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_a_second_order_bug_shows_both_of_its_diffs(run):
    group = a_group("u0002-sol0", "solver", "second", update=2)
    with Store.open(run / "selfplay.db") as store:
        second = a_bug(
            "second",
            "u0001-inj0-m0",
            order=2,
            parent_bug_id="u0001-inj0-m0-bug",
            parent_episode_id="u0001-sol0-m2",
            attempt_patch=ATTEMPT,
        )
        assert store.add_bug(second)
        store.add_group(group)
        store.record_episode(an_episode(group))
    a_solver(run, "u0002-sol0-m0", group="u0002-sol0", bug_id="second", submission={"patch": ATTEMPT})
    bug = section(replayed(run, "u0002-sol0-m0"), "the bug second")
    assert bug.index("+x = 2") < bug.index("attempt.diff: a failed repair") < bug.index("+x = 3")
    assert "both changed n.py; only the bug m.py" in bug
    assert as_json(run.parent, "u0002-sol0-m0")["bug"]["repair"] == reverse_patch(ATTEMPT) + reverse_patch(
        INJECT
    )


# -- an evaluation


def an_evaluation(folder: Path, task: Task, digest: str = "") -> Path:
    episode = replace(an_episode_value(), group=task.instance_id, bug_id=task.instance_id, member=0)
    replace(episode, episode_id="own-m0").write(folder / "episodes")
    greedy = {"group": f"{task.instance_id}-greedy", "episode_id": "own-greedy-m0"}
    replace(episode, **greedy).write(folder / "episodes")
    attempt = AttemptResult(task.instance_id, task.repo, 0, False, "1 test(s) fail", "stuck", 3, 9)
    results = (attempt, replace(attempt, mode="greedy", passed=True, reason="", finish="submitted"))
    lines = [json.dumps(asdict(result)) for result in results]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    entries = {task.instance_id: TaskEntry(digest or task.digest, task.set, task.part, task.repository)}
    (folder / "evaluation.json").write_text(json.dumps(Identity({}, {}, entries).to_json()))
    return folder


def a_task(**values) -> Task:
    task = Task(
        "own-m-1", "pypi:m==1", reverse_patch(INJECT), reverse_patch(WEAKEN), ("test_x",), ("test_y",), {}
    )
    return replace(task, **values)


def test_an_attempt_of_an_evaluation_shows_the_bug_of_the_runs_task_and_the_other_attempts(run):
    task = a_task()
    write_tasks([task], run / "evaluations" / "tasks.jsonl")
    an_evaluation(run / "evaluations" / "u0008", replace(task, set="tasks"))
    text = replayed(run, "own-m0")
    assert "solver in toolz, attempt 0 of evaluation u0008\n" in text
    assert "-x = 1\n+x = 2" in section(text, "the bug own-m-1")
    assert "no results of single tests: 1 test(s) fail" in section(text, "the tests that it breaks: 1")
    assert rows(section(text, "the attempts of this evaluation at own-m-1"))[1:4] == [
        ["member", "finish", "result"],
        ["▸", "0", "stuck", "not", "repaired"],
        ["greedy", "submitted", "repaired"],
    ]
    assert "✓ test_x" in replayed(run, "own-greedy")
    data = as_json(run.parent, "own-m0")
    assert data["grade"]["reason"] == "1 test(s) fail" and data["grade"]["mode"] == "sampled"
    assert data["bug"]["repair"] == task.patch and data["reward"] is None and data["verdict"] is None


def test_the_bug_of_a_frozen_task_is_found_by_its_digest_only(tmp_path):
    task = find_tasks(["own"], limit=1)[0]
    text = replayed(an_evaluation(tmp_path / "one", task), "own-m0")
    assert f"── the bug {task.instance_id}" in text
    text = replayed(an_evaluation(tmp_path / "two", task, digest="of another bug"), "own-m0")
    assert "── the bug" not in text and "── the attempts of this evaluation" in text


# -- the group


def test_the_group_stands_side_by_side_and_this_member_is_marked(run):
    with Store.open(run / "selfplay.db") as store:
        store.consume("u0001-sol0-m0", 1, 1.5)
    assert rows(section(replayed(run, "u0001-sol0-m0"), "the group u0001-sol0"))[1:6] == [
        ["member", "finish", "result", "reward", "advantage"],
        ["▸", "0", "submitted", "repaired", "+1.00", "+1.50"],
        ["1", "submitted", "not", "repaired", "-1.00", "–"],
        ["2", "submitted", "not", "repaired", "-1.00", "–"],
        ["3", "submitted", "not", "graded", "masked", "–"],
    ]


def test_a_group_of_injectors_has_verdicts(run):
    an_injector(run, an_artifact(), "u0001-inj0-m2", member=2)
    shown = rows(section(replayed(run, "u0001-inj0-m2"), "the group u0001-inj0"))
    assert shown[2] == ["0", "submitted", "accepted"]
    assert shown[4] == ["▸", "2", "submitted", "parser"]


# -- JSON


def test_the_json_of_a_solver_has_what_the_database_has_beside_the_episode(run):
    with Store.open(run / "selfplay.db") as store:
        store.consume("u0001-sol0-m0", 1, 1.5)
    data = as_json(run.parent, "u0001-sol0-m0")
    before = json.loads(json.dumps(an_episode_value().to_json()))
    assert {name: data[name] for name in before} == before
    decided = {name: data[name] for name in ("reward", "advantage", "consumed_update", "masked", "note")}
    assert decided == {
        "reward": 1.0,
        "advantage": 1.5,
        "consumed_update": 1,
        "masked": False,
        "note": "repaired",
    }
    assert data["verdict"] is None
    assert data["grade"]["passed"] is True and data["grade"]["confirmed"] is True
    assert data["bug"]["bug_id"] == "u0001-inj0-m0-bug" and data["bug"]["repair"] == reverse_patch(INJECT)
    assert data["bug"]["fail_to_pass"] == ["test_m.py::test_x"]


def test_the_json_of_an_injector_has_the_verdict_with_its_checks(run):
    judge(run, [a_check("readable"), a_check("parser", 1.25, "no test")], "parser")
    verdict = as_json(run.parent, "u0003-inj0-m0")["verdict"]
    assert verdict["accepted"] is False and verdict["failed_check"] == "parser"
    assert [check["name"] for check in verdict["checks"]] == ["readable", "parser"]
    assert verdict["checks"][1]["reason"] == "no test" and verdict["repeats"] == ""


def test_the_verdict_of_an_older_version_is_read_too(run):
    an_injector(run, an_artifact(), "u0001-inj0-m2", member=2)
    verdict = as_json(run.parent, "u0001-inj0-m2")["verdict"]
    assert [check["name"] for check in verdict["checks"]] == ["readable", "parser"]
    assert verdict["fail_to_pass"] is None


# -- looks


def test_a_replay_into_a_file_neither_folds_nor_pads_its_facts(run):
    reason = "no test " * 20 + "at all"
    judge(run, [a_check("parser", 1.25, reason)], "parser")
    text = replayed(run, "u0003-inj0-m0", width=60)
    assert f"\nverdict  rejected by parser: {reason}\n" in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", ["u0001-sol0-m1", "u0003-inj0-m0"])
def test_every_line_fits_the_terminal_and_holds_nothing_that_controls_it(run, name, width):
    judge(run, [a_check("readable"), a_check("parser", 1.25, f"{'no test ' * 20}{EVIL}")], "parser")
    hostile = {f"name{EVIL}": EVIL, **an_artifact(**{"test_script.sh": f"echo {EVIL}" * 50})}
    an_injector(run, hostile, "u0003-inj0-m0", group="u0003-inj0", finish=FinishReason.SUBMITTED)
    a_solver(run, "u0001-sol0-m1", member=1, submission={"patch": ATTEMPT, "restored": f"a{EVIL}\n"})
    with Store.open(run / "selfplay.db") as store:
        store._write("UPDATE attempts SET failed_tests = ?", json.dumps([f"t::{'long_' * 30}{EVIL}"]))
    text = replayed(run, name, width, terminal=True)
    assert max(map(len, text.splitlines())) <= width
    for escape in ("\x1b]0;owned", "\x07", "\x1b[2J", "\u202e"):
        assert escape not in text
