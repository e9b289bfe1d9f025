import io
import json
import re
import shlex
import unicodedata
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from selfplay.agent.episode import Role
from selfplay.cli import app
from selfplay.curriculum.rows import VerdictRow
from selfplay.curriculum.store import Store
from selfplay.errors import RunError, StoreError, UsageError
from selfplay.evaluation.folder import AttemptResult
from selfplay.metrics import read_metrics
from selfplay.viewing.bug_page import show_bug
from selfplay.viewing.changes import diffstat
from selfplay.viewing.duplicates import repeated_bugs
from selfplay.viewing.episode_search import find_episode
from selfplay.viewing.inspect import BugFilter, select_bugs, show_bugs
from selfplay.viewing.rejections import rejections, show_rejections
from selfplay.viewing.replay import replay
from selfplay.viewing.summary import print_summary, solve_rate_bins
from store_rows import INJECT, WEAKEN, a_group, an_episode, an_episode_value, recorded_run


def a_console(width: int = 80, terminal: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, legacy_windows=False
    )


def printed(console: Console) -> str:
    return console.file.getvalue()


def hidden_characters(text: str) -> set[str]:
    return {
        character for character in text if unicodedata.category(character) == "Cc" and character not in "\n\t"
    }


# -- inspect


def test_bugs_are_listed_with_whole_ids_at_80_columns(store):
    console = a_console()
    show_bugs(store, BugFilter(), console)
    text = printed(console)
    assert "u0001-sol0-m1-bug2" in text
    assert "1/3" in text
    assert max(map(len, text.splitlines()[:-1])) <= 80


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_each_bug_takes_one_line_with_its_function_and_change(store, width):
    console = a_console(width)
    show_bugs(store, BugFilter(), console)
    rows = [line for line in printed(console).splitlines() if line.startswith("u0001-")]
    assert len(rows) == 3 and max(map(len, rows)) <= width
    assert all("m.py" in row and "x = 1 → x = 2" in row for row in rows)


def test_bugs_are_sorted_the_other_way_round_and_limited(store):
    wanted = BugFilter(sort="solve_rate", reverse=True, limit=2)
    console = a_console()
    show_bugs(store, wanted, console)
    rows = [line.split()[0] for line in printed(console).splitlines() if line.startswith("u0001-")]
    assert rows == ["u0001-sol0-m1-bug2", "u0001-inj0-m1-bug"]
    assert "2 of 3 bugs" in printed(console)


def test_names_that_look_like_markup_are_shown_as_they_are(store):
    console = a_console(width=120)
    show_bugs(store, BugFilter(), console)
    assert "[red]evil[/red]" in printed(console)


def test_bugs_are_filtered_by_order_status_and_solve_rate(store):
    def chosen(**wanted):
        return [bug.bug_id for bug in select_bugs(store, BugFilter(**wanted))]

    assert chosen(order=2) == ["u0001-sol0-m1-bug2"]
    assert chosen(strategy="history", status="measured") == ["u0001-inj0-m1-bug"]
    assert chosen(min_solve_rate=0.1, max_solve_rate=0.9) == ["u0001-inj0-m0-bug"]
    assert chosen(sort="solve_rate") == ["u0001-inj0-m0-bug", "u0001-inj0-m1-bug", "u0001-sol0-m1-bug2"]


def test_a_sort_key_or_status_that_does_not_exist_lists_those_that_do(store):
    with pytest.raises(UsageError, match=r"--sort 'size'.*solve_rate"):
        select_bugs(store, BugFilter(sort="size"))
    with pytest.raises(UsageError, match=r"--status 'lost'.*measured"):
        select_bugs(store, BugFilter(status="lost"))


def test_an_empty_choice_says_so(store):
    console = a_console()
    show_bugs(store, BugFilter(repository="nowhere"), console)
    assert "none of the 3 bug(s) fits" in printed(console)


def test_one_bug_is_shown_in_full(store):
    console = a_console(width=120)
    show_bug(store, "u0001-inj0-m0", console)
    text = printed(console)
    for part in (
        "+x = 2",
        "-assert x == 1",
        "test_m.py::test_x",
        "assert 2 == 1",
        "u0001-sol0-m2",
        "└── u0001-sol0-m1-bug2",
    ):
        assert part in text


def test_a_bug_that_does_not_exist_is_an_error(store):
    with pytest.raises(StoreError, match="nothing"):
        show_bug(store, "nothing", a_console())


def test_a_bug_as_json_holds_attempts_lineage_and_task(store, capsys):
    show_bug(store, "u0001-inj0-m0", a_console(), as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert [attempt["confirmed"] for attempt in data["attempts"]] == [True, None, None]
    assert data["lineage"] == [
        {"parent": "u0001-inj0-m0-bug", "child": "u0001-sol0-m1-bug2", "attempt": "u0001-sol0-m1"}
    ]
    assert data["task"]["FAIL_TO_PASS"] == ["test_m.py::test_x"]


def test_rejections_are_counted_by_check_with_an_example(store):
    first, second = rejections(store)
    assert (first.check, first.count, first.example_episode) == ("parser", 2, "u0001-inj0-m2")
    assert (second.check, second.count, second.example_reason) == ("inverse_mutation", 1, "m.py is padding")


def test_a_rejections_reason_cannot_move_the_cursor(store):
    console = a_console(terminal=True)
    show_rejections(store, console)
    assert r"the output [is] not JSON: \x1b[2J" in printed(console)
    assert "\x1b[2J" not in printed(console)


def test_listings_are_json_when_asked(store, capsys):
    show_bugs(store, BugFilter(order=1), a_console(), as_json=True)
    assert [bug["solve_rate"] for bug in json.loads(capsys.readouterr().out)] == [1 / 3, 1.0]
    show_rejections(store, a_console(), as_json=True)
    assert json.loads(capsys.readouterr().out)["judged"] == 5


def test_a_diffs_size_is_files_and_lines():
    assert diffstat(INJECT) == "1 file(s), +1 −1"
    assert diffstat(INJECT + WEAKEN) == "2 file(s), +2 −2"
    assert diffstat("no diff") == ""
    assert diffstat("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-x\n") == ""


# -- commands that listings print


def printed_commands(text: str) -> list[list[str]]:
    """The words of each command that follows a colon or stands alone on a line, without `selfplay`."""
    return [shlex.split(found) for found in re.findall(r"(?:: |^ +)selfplay (.+)$", text, re.MULTILINE)]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_printed_commands_work_as_printed(store, run, tmp_path, monkeypatch, elsewhere):
    if elsewhere:
        (tmp_path / "other" / "runs").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "other")
    an_injector = replace(an_episode_value(), episode_id="u0001-inj0-m2", role=Role.INJECTOR)
    an_injector.write(run / "episodes")
    recorded_run(run.parent / "newer")
    console = a_console()
    show_bugs(store, BugFilter(), console)
    show_rejections(store, console)
    print_summary(store, run, console)
    commands = [words for words in printed_commands(printed(console)) if words[0] != "train"]
    assert len(commands) == 5, printed(console)
    for words in commands:
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output)


def test_an_unknown_bugs_error_names_the_run_to_list(store):
    with pytest.raises(StoreError, match="selfplay inspect-bugs demo"):
        store.bug("nothing")


# -- duplicates


@pytest.fixture
def with_duplicate(run):
    """The run with one more injector: its buggy tree is the one of the first bug."""
    group = a_group("u0002-inj0", update=2, size=1)
    with Store.open(run / "selfplay.db") as opened:
        opened.add_group(group)
        opened.record_episode(an_episode(group, update=2))
        recorded = {"accepted": True, "buggy_digest": "tree of u0001-inj0-m0-bug", "checks": []}
        opened.record_verdict(VerdictRow("u0002-inj0-m0", True, "", "", json.dumps(recorded), 1.0, 3, 0))
        own = {**recorded, "buggy_digest": "tree of u0001-inj0-m1-bug"}
        opened._write(
            "UPDATE verdicts SET checks_json = ? WHERE episode_id = 'u0001-inj0-m1'", json.dumps(own)
        )
    episode = replace(an_episode_value(), episode_id="u0002-inj0-m0", role=Role.INJECTOR, bug_id="")
    episode.write(run / "episodes")
    with Store.open(run / "selfplay.db", writer=False) as opened:
        yield opened


def test_duplicates_are_counted_beside_bugs_rejections_and_in_the_summary(with_duplicate, run):
    for show in (
        lambda console: show_bugs(with_duplicate, BugFilter(), console),
        lambda console: show_rejections(with_duplicate, console),
        lambda console: print_summary(with_duplicate, run, console),
    ):
        console = a_console()
        show(console)
        assert "1 of 3 accepted artifacts are duplicates" in printed(console)


def test_a_run_without_duplicates_speaks_of_none(store, run):
    console = a_console()
    show_bugs(store, BugFilter(), console)
    print_summary(store, run, console)
    assert "are duplicates" not in printed(console)


def test_a_replay_of_a_duplicate_names_the_bug_that_it_repeats(with_duplicate, run):
    assert repeated_bugs(with_duplicate) == {"u0002-inj0-m0": "u0001-inj0-m0-bug"}
    console = a_console()
    replay(find_episode(run, "u0002-inj0-m0"), console)
    assert "accepted, a duplicate: it repeats u0001-inj0-m0-bug" in printed(console)


# -- replay


def test_solved_counts_the_attempts_of_all_measurements(run):
    with Store.open(run / "selfplay.db") as opened:
        opened.set_solve_rate("u0001-inj0-m0-bug", 0.5, 2, 1)  # of a second group, whose attempts follow
        again = a_group("u0002-sol0", "solver", "u0001-inj0-m0-bug", update=2)
        opened.add_group(again)
        for member, passed in enumerate((True, False)):
            opened.record_episode(an_episode(again, member))
            attempt = replace(opened.attempt("u0001-sol0-m1"), episode_id=f"u0002-sol0-m{member}")
            opened.record_attempt(replace(attempt, passed=passed))
        console = a_console(width=120)
        show_bugs(opened, BugFilter(), console)
        show_bug(opened, "u0001-inj0-m0", console)
    text = printed(console)
    assert "2/5" in text and "1/2" not in text
    assert "0.50, 1 of 2 attempts, in the latest measurement; 0.33 in the first; 2 of 5 in all" in text


def test_an_advantage_of_zero_is_not_called_trained_on(run):
    with Store.open(run / "selfplay.db") as opened:
        opened._write(
            "UPDATE episodes SET advantage = 0, consumed_update = 1 WHERE episode_id = 'u0001-sol0-m0'"
        )
    console = a_console()
    replay(find_episode(run, "u0001-sol0-m0"), console)
    assert "0, so no policy gradient from this episode; counted in update 1" in printed(console)
    assert "trained on" not in printed(console)


def test_an_episode_is_found_by_the_start_of_its_id_in_all_runs_and_in_one(run):
    assert find_episode(run.parent, "u0001-sol").episode == an_episode_value()
    assert find_episode(run, "u0001-sol0-m0").path == run / "episodes/u0001-sol0-m0.json.gz"
    assert find_episode(run, str(run / "episodes/u0001-sol0-m0.json.gz")).attempt.passed


def test_an_episode_that_is_not_there_or_not_unique_is_an_error(run, tmp_path):
    with pytest.raises(RunError, match="begins with 'x'.*u0001-sol0-m0"):
        find_episode(run.parent, "x")
    with pytest.raises(RunError, match="selfplay train"):
        find_episode(tmp_path / "empty", "x")
    an_episode_value().write(run.parent / "second" / "episodes")
    with pytest.raises(RunError, match=r"2 runs have an episode.*demo, second.*--run"):
        find_episode(run.parent, "u0001-sol0-m0")


def an_evaluation(folder: Path, passed: bool) -> Path:
    """A folder with two attempts at one task, a sampled and a greedy one."""
    for group, name in (("own-m-1", "own-m-1-abc-m0"), ("own-m-1-greedy", "own-m-1-greedy-def-m0")):
        episode = replace(an_episode_value(), episode_id=name, group=group, bug_id="own-m-1", member=0)
        episode.write(folder / "episodes")
    with (folder / "results.jsonl").open("w") as file:
        for mode, result in (("sampled", passed), ("greedy", not passed)):
            row = AttemptResult(
                "own-m-1", "m", 0, result, "" if result else "1 test(s) fail", "submitted", 3, 9
            )
            file.write(json.dumps({**asdict(row), "mode": mode}) + "\n")
    return folder


def test_an_episode_of_an_evaluation_is_replayed_by_its_id_with_its_grade(run):
    an_evaluation(run / "evaluations" / "u0000", passed=True)
    for folder in (run.parent, run, run / "evaluations" / "u0000"):
        console = a_console(width=120)
        replay(find_episode(folder, "own-m-1-abc"), console)
        assert "repaired (an evaluation's sampled attempt)" in printed(console)
    console = a_console(width=120)
    replay(find_episode(run.parent, "own-m-1-greedy"), console)
    assert "not repaired: 1 test(s) fail (an evaluation's greedy attempt)" in printed(console)


def test_an_episode_of_two_evaluations_is_chosen_by_what_the_error_names(run):
    for name in ("u0000", "u0008"):
        an_evaluation(run / "evaluations" / name, passed=True)
    for folder in (run.parent, run):
        with pytest.raises(RunError, match="2 evaluations have an episode 'own-m-1-abc-m0'") as caught:
            find_episode(folder, "own-m-1-abc")
        chosen = str(caught.value).rpartition("--run ")[2]
        assert chosen == "demo/evaluations/u0000"
        assert find_episode(run.parent / chosen, "own-m-1-abc").result.passed


def test_a_torn_episode_file_is_an_error_not_a_traceback(run):
    path = run / "episodes" / "torn.json.gz"
    path.write_bytes(b"\x1f\x8b half")
    with pytest.raises(RunError, match="cannot be read as an episode"):
        find_episode(run, "torn")


def test_a_replay_shows_prompt_turns_submission_and_what_was_decided(run):
    console = a_console()
    replay(find_episode(run, "u0001-sol0-m0"), console)
    text = printed(console)
    for part in (
        "You repair bugs.",
        "turn 1 of 3 · bash",
        "after 2 rejected sample(s)",
        "exit 0",
        "refused",
        "+x = 2",
        "repaired",
        "+1.00",
    ):
        assert part in text


@pytest.mark.parametrize("terminal", [True, False])
def test_recorded_escapes_never_reach_the_terminal(run, terminal):
    console = a_console(terminal=terminal)
    replay(find_episode(run, "u0001-sol0-m0"), console, plain=not terminal)
    text = printed(console)
    assert r"\x1b]0;owned\x07\x1b[2J[bold]not markup[/bold]" in text
    for escape in ("\x1b]0;owned", "\x07", "\x1b[2J", "\x1b[31mthis"):
        assert escape not in text
    if not terminal:
        assert hidden_characters(text) == set()


# -- summary


@pytest.mark.parametrize("width", [80, 120])
def test_a_summary_fits_its_width_and_ends_with_what_to_type(store, run, width):
    console = a_console(width)
    print_summary(store, run, console)
    text = printed(console)
    body, _, commands = text.partition("Next\n")
    assert max(map(len, body.splitlines())) <= width
    for part in (
        "3 of 5 artifacts were rejected",
        "1 with a gradient, 1 without",
        "solving",
        "the machine failed 1 time(s)",
    ):
        assert part in body
    for command in (
        "inspect-bugs demo",
        "replay u0001-sol0-m0 --run demo",
        "train --resume demo --set train.updates=6",
    ):
        assert f"selfplay {command}\n" in commands


def rates_by_update(store, run) -> list[dict]:
    """The recorded rows with the rates of injectors, for a run whose second update played no injector."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{**rows[0], "injector/valid": 0.4, "injector/duplicate": 0.25, "lag/max": 2}, rows[1]]


def test_the_summary_shows_valid_and_duplicate_shares_of_each_update_beside_the_repository(store, run):
    console = a_console()
    print_summary(store, run, console, rates_by_update(store, run))
    rows = [line.split() for line in printed(console).splitlines()]
    assert ["update", "repository", "valid", "duplicate", "injector", "solver", "bugs", "step"] in rows
    assert ["1", "toolz", "40%", "25%", "-0.40", "+0.25", "3", "yes"] in rows
    assert ["2", "–", "–", "–", "-0.40", "+0.25", "3", "no"] in rows
    assert "lag: at most 2 update(s)" in printed(console)


def test_at_60_columns_the_table_of_updates_becomes_two_that_fit(store, run):
    console = a_console(width=60)
    print_summary(store, run, console, rates_by_update(store, run))
    body = printed(console).partition("Next\n")[0]
    assert max(map(len, body.splitlines())) <= 60
    rows = [line.split() for line in body.splitlines()]
    assert ["1", "toolz", "40%", "25%"] in rows
    assert ["1", "-0.40", "+0.25", "3", "yes"] in rows


def test_a_summary_of_nothing_is_printed_too(tmp_path):
    console = a_console()
    with Store.open(tmp_path / "selfplay.db") as store:
        print_summary(store, tmp_path, console)
    assert "no update was committed yet" in printed(console)


def test_the_ends_of_the_solve_rates_stand_alone():
    bins = dict(solve_rate_bins([0, 0, 0.125, 0.5, 0.875, 1]))
    assert bins == {"0": 2, "0.0–0.2": 1, "0.2–0.4": 0, "0.4–0.6": 1, "0.6–0.8": 0, "0.8–1.0": 1, "1": 1}


def test_a_torn_metrics_line_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n{"upda')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"update": 1}]
