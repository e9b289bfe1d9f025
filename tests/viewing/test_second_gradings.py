"""What second gradings found, as people see it: of one attempt, of a bug, of a run."""

import io
import json
import sqlite3

import pytest
from rich.console import Console

from selfplay.curriculum.store import Store
from selfplay.viewing.bug_page import show_bug
from selfplay.viewing.summary import print_summary, summary_data

WITHOUT_DISGUISE, FORGED, NOT_REPEATED = 2, 3, 4  # as the database keeps them


@pytest.fixture
def tricked(run):
    """The recorded run, whose three graded attempts had these second gradings; a bug of it is void."""
    database = sqlite3.connect(run / "selfplay.db")
    for member, value in enumerate((WITHOUT_DISGUISE, FORGED, NOT_REPEATED)):
        database.execute(
            "UPDATE attempts SET confirmed = ? WHERE episode_id = ?", (value, f"u0001-sol0-m{member}")
        )
    database.execute("UPDATE bugs SET status = 'void' WHERE bug_id = 'u0001-inj0-m1-bug'")
    database.commit()
    database.close()
    return run


def wide_console():
    return Console(file=io.StringIO(), width=160)


def test_an_attempt_says_that_it_was_confirmed_without_disguise(tricked, capsys):
    with Store.open(tricked / "selfplay.db", writer=False) as store:
        console = wide_console()
        show_bug(store, "u0001-inj0-m0", console)
        text = console.file.getvalue()
        assert "repaired (confirmed without disguise)" in text
        assert "not repaired (forged)" in text and "not repaired (not repeated)" in text
        show_bug(store, "u0001-inj0-m0", console, as_json=True)
    attempts = json.loads(capsys.readouterr().out)["attempts"]
    assert [(found["confirmed"], found["confirmation"]) for found in attempts] == [
        (True, "confirmed without disguise"),
        (False, "forged"),
        (False, "not repeated"),
    ]


def test_a_run_counts_what_judging_found(tricked):
    with Store.open(tricked / "selfplay.db", writer=False) as store:
        counts = summary_data(store, tricked)["tricks"]
        console = wide_console()
        print_summary(store, tricked, console)
    assert counts == {
        "void bugs": 1,
        "control runs that moved": 0,
        "attempts that forge results": 1,
        "attempts that passed once and not again": 1,
        "repairs confirmed without disguise": 1,
    }
    shown = console.file.getvalue()
    assert "Tricks" in shown and "attempts that forge results" in shown and "moved" not in shown


def test_a_run_without_tricks_shows_no_section_on_them(run, store):
    console = wide_console()
    print_summary(store, run, console)
    assert "Tricks" not in console.file.getvalue()
