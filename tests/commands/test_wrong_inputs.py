"""Wrong inputs of many kinds: each gets a message that names it, and no traceback."""

import codecs
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfplay.agent.chat import policy_path
from selfplay.cli import app
from selfplay.commands import doctor
from selfplay.config import load_config
from selfplay.errors import ConfigError, EngineError, SelfplayError, UsageError, path_fault
from selfplay.evaluation.tasks import find_tasks
from selfplay.repositories.specs import read_repository_list
from selfplay.verdicts.artifact import FILE_NAMES
from selfplay.warm_start.settings import read_settings
from store_rows import recorded_run

pytestmark = pytest.mark.slow  # most of these tests start the command as a process, some 2 s each

BINARY = b"\x7fELF\x02\x01\xa7\xff"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a command runs, with a repository list, a run and a binary file."""
    recorded_run(tmp_path / "runs" / "mine")
    (tmp_path / "list.txt").write_text("pypi:toolz==1.0.0\n")
    (tmp_path / "binary").write_bytes(BINARY)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command; a deliberate error counts as the command line would report it."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    if isinstance(result.exception, SelfplayError):
        return result.exception.exit_code, result.output + str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "--workload", "paper", "--gpus", "x"], "'--gpus': needs a whole number, not 'x'"),
        (["replay", "u1", "--speed", "fast"], "'--speed': needs a number, not 'fast'"),
        (
            ["eval", "--tasks", "own", "--attempts", "-1"],
            "'--attempts': needs a number of at least 0, not '-1'",
        ),
        (["inspect-bugs", "--order", "3"], "'--order': needs a number of at most 2, not '3'"),
        (["inspect-bugs", "--min-solve-rate", "2"], "needs a number of at most 1, not '2'"),
        (["plan", "--workload", "paper", "--max-lag", "-1"], "--max-lag -1: needs 0 or more."),
        (["plan", "--workload", "paper", "--hosts", "-2"], "--hosts -2: needs 0 or more."),
        (["inspect-bugs", "mine", "--tasks", "folder"], "cannot write the tasks to folder: it is no file"),
        (
            ["inspect-bugs", "mine", "--tasks", "no/where"],
            "cannot write the tasks to no/where: it is no file",
        ),
        (["inspect-bugs", "--runs", "list.txt"], "--runs list.txt is no folder"),
        (["eval", "--tasks", "folder"], "folder holds no file of task records. Known are .jsonl"),
        (["eval", "--tasks", "own", "--output", "list.txt"], "list.txt is no folder. It is untouched"),
        (["eval", "--tasks", "own", "--output", "list.txt/x"], "list.txt is no folder. It is untouched"),
        (["train", "--resume", ""], "--resume needs the name or folder of a run."),
    ],
)
def test_a_wrong_value_of_an_option_is_named(place, arguments, expected):
    code, output = said(*arguments)
    assert code == 2
    assert expected in output


def test_a_repository_folder_that_is_not_there_is_wrong_usage_for_validate(place):
    artifact = place / "artifact"
    artifact.mkdir()
    for name in FILE_NAMES:
        (artifact / name).write_text("x\n")
    for repo in ("./nowhere", "./list.txt"):
        code, output = said("validate", "artifact", "--repo", repo, "--json")
        assert code == 2
        assert f"'{repo}': there is no folder" in output
        assert '"kind": "usage"' in output


@pytest.mark.parametrize("read", [read_repository_list, load_config, lambda path: read_settings(path, [])])
def test_a_binary_file_is_no_text(place, read):
    with pytest.raises(UsageError, match=r"cannot read .* binary: it is no text in UTF-8 \(byte 6\)"):
        read(Path("binary"))


def test_a_binary_file_holds_no_tasks(place):
    with pytest.raises(UsageError, match="binary: it is no text in UTF-8 .*inspect-bugs --tasks FILE"):
        find_tasks(["binary"])


def test_files_with_a_byte_order_mark_are_read(place):
    for name in ("list.txt", "c.toml"):
        text = (place / name).read_bytes() if name == "list.txt" else b"[train]\nupdates = 3\n"
        (place / name).write_bytes(codecs.BOM_UTF8 + text)
    assert [spec.text for spec in read_repository_list(place / "list.txt")] == ["pypi:toolz==1.0.0"]
    assert load_config(place / "c.toml").train.updates == 3


@pytest.mark.parametrize("text", ["[1]", "3", "null"])
def test_json_without_sections_is_no_configuration(place, text):
    (place / "c.json").write_text(text)
    with pytest.raises(ConfigError, match="c.json holds no settings"):
        load_config(place / "c.json")


def test_a_folder_or_file_that_is_no_model_is_named_although_it_looks_like_an_id(place):
    for name in ("folder", "binary"):
        with pytest.raises(EngineError, match=f"policy.model = '{name}': no config.json"):
            policy_path(name)
    assert policy_path("someone/model") == "someone/model"
    assert policy_path("x" * 300) == "x" * 300


def test_the_doctor_finds_a_file_in_place_of_the_cache(place):
    (finding,) = doctor._disk({"cache": place / "binary" / "inner"})
    assert not finding.ok
    assert finding.detail == f"{place / 'binary'} is a file"
    assert "SELFPLAY_CACHE" in finding.remedy


def test_a_path_that_cannot_be_used_is_reported_and_other_failures_are_not():
    denied = PermissionError(errno.EACCES, "Permission denied", "/some/where")
    assert "cannot use /some/where: Permission denied. Give access to it" in path_fault(denied)
    assert path_fault(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) == ""
    assert path_fault(PermissionError(errno.EPERM, "Operation not permitted")) == ""


def test_a_name_that_is_too_long_for_a_file_has_no_traceback(place):
    command = [sys.executable, "-m", "selfplay.cli", "train", "--repos", "x" * 300]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "999"}, timeout=120
    )
    assert result.returncode == 1
    assert "File name too long. Give access to it, or name another place" in result.stderr
    assert "Traceback" not in result.stderr
