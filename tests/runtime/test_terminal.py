"""Terminals that lack characters, and streams that are closed: every command works."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from selfplay.config import Config
from selfplay.evaluation.folder import AttemptResult, Folder, identity_of
from selfplay.evaluation.tasks import Task
from selfplay.runtime.terminal import in_ascii
from store_rows import recorded_run

pytestmark = pytest.mark.slow  # most of these tests start the command as a process, some 2 s each

ASCII_TERMINALS = {
    "PYTHONIOENCODING": {"PYTHONIOENCODING": "ascii"},
    "the C locale": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
REPO = "pypi:toolz==1.0.0"


def evaluation(folder: Folder, model: str, passed: tuple[bool, ...]) -> Folder:
    """The output of `selfplay eval`: a sampled attempt at each of some tasks."""
    tasks = [Task(f"t{number}", REPO, "", "", (), (), {}) for number in range(len(passed))]
    folder.begin(identity_of(Config(), {"model": model}, tasks))
    results = [
        AttemptResult(task.instance_id, REPO, number % 2, good, "", "submitted", 3, 30)
        for task, good in zip(tasks, passed, strict=True)
        for number in range(2)
    ]
    lines = "".join(f"{json.dumps(asdict(result))}\n" for result in results)
    folder.results_file.write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a repository list and two evaluations."""
    folder = tmp_path_factory.mktemp("place")
    recorded_run(folder / "runs" / "mine")
    (folder / "list.txt").write_text(f"{REPO}\n")
    evaluation(Folder(folder / "A"), "größer", (True, False, False, True, True, False, False))
    evaluation(Folder(folder / "B"), "–", (True, True, False, True, True, True, False))
    return folder


def selfplay(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "selfplay.cli", *arguments]
    surroundings = {**os.environ, "COLUMNS": "200", "TERM": "dumb", **environment}
    return subprocess.run(command, capture_output=True, cwd=place, env=surroundings, timeout=300)


@pytest.mark.parametrize("terminal", ASCII_TERMINALS)
@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["inspect-bugs", "mine"], 0, "bug(s)."),
        (["inspect-bugs", "mine", "--rejected"], 0, "rejected"),
        (["train", "--repos", "list.txt", "--dry-run"], 0, "| together "),
        (["eval", "--compare", "A", "B"], 0, "+- is one standard error"),
        (["eval", "--compare", "A", "B", "--json"], 0, '"verdict"'),
        (["--help"], 0, "doctor"),
        (["eval", "--tasks", "größe…"], 2, "named 'gr"),
        (["inspect-bugs", "größe…"], 1, "no run named"),
    ],
)
def test_what_an_ascii_terminal_lacks_is_replaced(place, terminal, arguments, code, expected):
    result = selfplay(place, *arguments, **ASCII_TERMINALS[terminal])
    output = (result.stdout + result.stderr).decode("ascii")
    assert result.returncode == code, output
    assert expected in output
    assert "Traceback" not in output


@pytest.mark.sandbox
def test_the_doctor_reports_to_an_ascii_terminal(place):
    result = selfplay(place, "doctor", **ASCII_TERMINALS["the C locale"])
    output = (result.stdout + result.stderr).decode("ascii")
    assert "Traceback" not in output
    assert "\n+  git " in output


def test_a_terminal_that_has_the_characters_gets_them(place):
    result = selfplay(place, "eval", "--compare", "A", "B", PYTHONIOENCODING="utf-8")
    assert "± is one standard error" in result.stdout.decode("utf-8")
    assert "größer" in result.stdout.decode("utf-8")


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "code"), [(["inspect-bugs", "mine"], 0), (["inspect-bugs", "other"], 1), (["--version"], 0)]
)
def test_a_closed_stream_changes_no_exit_code(place, closed, arguments, code):
    command = f'exec "$0" -m selfplay.cli {" ".join(arguments)} {closed}'
    result = subprocess.run(
        ["sh", "-c", command, sys.executable], capture_output=True, text=True, cwd=place, timeout=120
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("character", "form"),
    [
        ("–", "-"),
        ("±", "+-"),
        ("…", "..."),
        ("█", "#"),
        ("┬", "+"),
        ("ü", "u"),
        ("⠋", "*"),
        ("漢", "?"),
        ("\udce9", "?"),
    ],
)
def test_the_form_in_ascii_reads_alike(character, form):
    assert in_ascii(character) == form


def test_no_form_in_ascii_controls_the_terminal():
    assert all(in_ascii(chr(code)).isprintable() for code in range(0x80, 0x11000))
