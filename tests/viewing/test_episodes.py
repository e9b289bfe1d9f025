import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from selfplay.cli import app
from selfplay.curriculum.store import Store
from selfplay.errors import UsageError
from selfplay.viewing.episodes import EpisodeFilter, listed_episodes, show_episodes


def chosen(store, **wanted) -> list[str]:
    return [one.row.episode_id for one in listed_episodes(store, EpisodeFilter(**wanted))]


def listing(store, width: int = 80, **wanted) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show_episodes(store, EpisodeFilter(**wanted), console)
    return console.file.getvalue().splitlines()


def test_episodes_are_filtered_by_role_reward_check_update_bug_and_group(store):
    assert len(chosen(store)) == 9
    assert chosen(store, check="parser") == ["u0001-inj0-m2", "u0001-inj0-m3"]
    assert chosen(store, min_reward=0.5) == ["u0001-sol0-m0"]
    assert chosen(store, max_reward=0) == ["u0001-sol0-m1", "u0001-sol0-m2"]
    assert chosen(store, role="solver", update=1) == [f"u0001-sol0-m{member}" for member in range(4)]
    assert chosen(store, bug="u0001-inj0-m0-bug") == ["u0001-inj0-m0", *chosen(store, role="solver")]
    assert chosen(store, group="u0001-s") == chosen(store, role="solver")
    assert chosen(store, finish="max_turns") == []


def test_a_group_is_shown_with_its_task_its_mean_and_each_members_result(store):
    lines = listing(store, group="u0001-sol0")
    assert "group u0001-sol0: 4 solver episodes, on u0001-inj0-m0-bug, in toolz" in lines[0]
    assert "mean reward -0.33" in " ".join(lines[:3])
    rows = {line.split()[0]: line for line in lines if line.startswith("u0001-sol0-m")}
    assert "repaired" in rows["u0001-sol0-m0"] and "+1.00" in rows["u0001-sol0-m0"]
    assert "not repaired" in rows["u0001-sol0-m1"]
    assert "masked" in rows["u0001-sol0-m3"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_each_episode_takes_one_line_with_its_reward(store, width):
    lines = listing(store, width)
    rows = [line for line in lines if line.startswith("u0001-")]
    assert len(rows) == 9 and max(map(len, rows)) <= width
    assert "reward" in lines[0]


def test_the_limit_keeps_the_newest_and_says_how_many_there_are(store):
    lines = listing(store, limit=2)
    assert [line.split()[0] for line in lines if line.startswith("u")] == ["u0001-sol0-m2", "u0001-sol0-m3"]
    assert any("2 of 9 episodes" in line for line in lines)


def test_episodes_as_json_have_result_reward_and_reason(store, capsys):
    show_episodes(store, EpisodeFilter(check="inverse_mutation"), Console(), as_json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["episode_id"], row["failed_check"]) == ("u0001-inj0-m4", "inverse_mutation")
    assert row["reason"] == "m.py is padding" and row["passed"] is None


def test_a_zero_advantage_is_not_shown_as_trained_on(run):
    with Store.open(run / "selfplay.db") as opened:
        opened.consume("u0001-sol0-m0", 1, 0.0)
        opened.consume("u0001-sol0-m1", 1, -0.5)
        rows = {line.split()[0]: line.split() for line in listing(opened, 120, role="solver")}
    assert rows["u0001-sol0-m0"][-2:] == ["0", "–"]
    assert rows["u0001-sol0-m1"][-2:] == ["-0.50", "1"]


@pytest.mark.parametrize(
    ("option", "name", "there"),
    [
        ("--role", "solvr", "injector, solver. Did you mean solver?"),
        ("--check", "parsr", "inverse_mutation, parser. Did you mean parser?"),
        ("--finish", "late", "submitted"),
        ("--update", "9", "this run has 1."),
        ("--group", "nothing", "u0001-inj0, u0001-sol0"),
    ],
)
def test_a_name_that_the_run_lacks_is_an_error_with_those_that_it_has(run, option, name, there):
    result = CliRunner().invoke(app, ["episodes", option, name])
    assert isinstance(result.exception, UsageError)
    assert there in str(result.exception)


def test_nothing_that_fits_is_said(store):
    assert listing(store, min_reward=5.0) == ["No episodes: none of the 9 fits."]


def test_text_of_a_policy_cannot_move_the_cursor(run):
    with Store.open(run / "selfplay.db") as opened:
        opened._write("UPDATE verdicts SET failed_check = ? WHERE episode_id = 'u0001-inj0-m2'", "\x1b[2J")
        assert not any("\x1b" in line for line in listing(opened))


def test_duplicates_name_the_bug_that_they_repeat(run):
    with Store.open(run / "selfplay.db") as opened:
        first = opened.verdict("u0001-inj0-m1")
        recorded = json.dumps({"accepted": True, "buggy_digest": "tree of u0001-inj0-m0-bug", "checks": []})
        assert first is not None and replace(first, checks_json=recorded)
        opened._write("UPDATE verdicts SET checks_json = ? WHERE episode_id IN ('u0001-inj0-m1')", recorded)
        assert any("repeats u0001-inj0-m0-bug" in line for line in listing(opened, 120))
