"""The command line: errors name the value and the remedy, exit with the promised code, and start nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfplay import __version__
from store_rows import recorded_run

pytestmark = pytest.mark.slow  # most of these tests start the command as a process, some 2 s each

WIDE = {"COLUMNS": "240", "NO_COLOR": "1", "TERM": "dumb"}


def selfplay(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfplay.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, **WIDE}, timeout=120
    )


def assert_refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    message = " ".join(result.stderr.split())
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "command", ["train", "inspect-bugs", "replay", "validate", "eval", "warm-start", "doctor"]
)
def test_every_command_has_help_with_an_example(command):
    result = selfplay(command, "--help")
    assert result.returncode == 0
    assert f"Example: selfplay {command}" in " ".join(result.stdout.split())


def test_help_has_a_short_form_for_each_command_and_for_all():
    assert "--repos" in selfplay("train", "-h").stdout
    assert "inspect-bugs" in selfplay("-h").stdout


def test_the_version_is_printed():
    result = selfplay("--version")
    assert (result.returncode, result.stdout) == (0, f"selfplay {__version__}\n")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--sandbox", "docker", "--clean"], "--clean"),
        (["--attack", "--clean"], "--clean"),
        (["--attack", "--sandbox", "x"], "'x'"),
    ],
)
def test_the_doctor_ignores_no_option(options, word):
    assert_refused(selfplay("doctor", *options), 2, word)


def test_train_without_a_list_points_to_a_first_one():
    assert_refused(selfplay("train"), 2, "--repos FILE is needed", "--repos quickstart-repos")


def test_a_list_with_wrong_lines_reports_all_of_them_and_starts_nothing(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("pypi:toolz==1.0.0\nfoo\nftp://x/y/z\n# fine\npypi:toolz\n")
    result = selfplay("train", "--repos", listed, folder=tmp_path)
    assert_refused(result, 2, "3 unusable line(s), nothing was started", "line 2:", "line 3:", "line 5:")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt"]


def test_a_missing_list_is_named(tmp_path):
    assert_refused(selfplay("train", "--repos", tmp_path / "none.txt"), 2, "none.txt")


def good_list(folder: Path) -> Path:
    (folder / "list.txt").write_text("pypi:toolz==1.0.0\n")
    return folder / "list.txt"


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("train.update=3", 2, ["train.update: unknown setting", "train.updates"]),
        ("train.updates=none", 2, ["train.updates", "'none'"]),
        ("policy.model=./nowhere", 1, ["'./nowhere'", "config.json"]),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_started(tmp_path, setting, code, words):
    result = selfplay("train", "--repos", good_list(tmp_path), "--set", setting, folder=tmp_path)
    assert_refused(result, code, *words)
    assert not (tmp_path / "runs").exists()


def test_broken_toml_names_the_file(tmp_path):
    (tmp_path / "c.toml").write_text("[train\n")
    assert_refused(
        selfplay("train", "--repos", good_list(tmp_path), "--config", tmp_path / "c.toml"),
        2,
        "c.toml is not valid TOML",
    )


def test_resuming_a_run_that_does_not_exist_is_refused(tmp_path):
    recorded_run(tmp_path / "runs" / "mine")
    result = selfplay("train", "--resume", "other", folder=tmp_path)
    assert_refused(result, 1, "no run named 'other'")


def test_a_resumed_run_keeps_its_settings(tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").write_text("{}")
    result = selfplay("train", "--resume", "mine", "--set", "seed=4", folder=tmp_path)
    assert_refused(result, 2, "--set seed", "train.updates")


def test_a_resumed_run_takes_no_list(tmp_path):
    assert_refused(selfplay("train", "--resume", "mine", "--repos", good_list(tmp_path)), 2, "--resume alone")


def test_inspecting_where_there_are_no_runs_says_how_to_start_one(tmp_path):
    assert_refused(selfplay("inspect-bugs", folder=tmp_path), 1, "there are no runs", "selfplay train")


def test_a_corrupt_database_is_named(tmp_path):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "selfplay.db").write_bytes(b"not a database" * 100)
    assert_refused(selfplay("inspect-bugs", "mine", folder=tmp_path), 1, "selfplay.db")


def test_replaying_an_unknown_episode_says_so(tmp_path):
    recorded_run(tmp_path / "runs" / "mine")
    assert_refused(selfplay("replay", "u9999", folder=tmp_path), 1, "u9999")


def test_a_folder_that_is_not_an_artifact_is_named(tmp_path):
    (tmp_path / "bug").mkdir()
    (tmp_path / "bug" / "bug_inject.diff").write_text("")
    result = selfplay("validate", tmp_path / "bug", "--repo", "pypi:toolz==1.0.0")
    assert_refused(result, 2, "test_weaken.diff")
    assert_refused(selfplay("validate", tmp_path / "none", "--repo", "pypi:toolz==1.0.0"), 2, "none")


def test_nothing_to_judge_is_no_rejection_and_json_says_so(tmp_path):
    for folder, word in ((tmp_path, "test_weaken.diff"), (tmp_path / "none", "none")):
        result = selfplay("validate", folder, "--repo", "pypi:toolz==1.0.0", "--json")
        assert_refused(result, 2, word)
        said = json.loads(result.stdout)
        assert (said["kind"], said["accepted"]) == ("usage", None)
        assert word in said["reason"]


def test_a_wrong_repository_is_bad_usage(tmp_path):
    assert_refused(selfplay("validate", tmp_path, "--repo", "ext::sh"), 2, "ext::sh")


def test_every_bad_task_record_is_listed(tmp_path):
    record = {
        "instance_id": "a",
        "repo": "pypi:toolz==1.0.0",
        "patch": "",
        "test_patch": "",
        "FAIL_TO_PASS": "[]",
        "PASS_TO_PASS": [],
    }
    lines = [json.dumps(record), "{", json.dumps({"instance_id": "b"}), json.dumps(record)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    result = selfplay("eval", "--tasks", tmp_path / "tasks.jsonl")
    assert_refused(
        result,
        2,
        "3 unusable task record(s)",
        "line 2:",
        "line 3: lacks repo",
        "line 4: repeats the instance_id 'a'",
    )


def test_the_bugs_of_a_run_are_data_with_json(tmp_path):
    recorded_run(tmp_path / "runs" / "mine")
    result = selfplay("inspect-bugs", "mine", "--json", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bug", "x", "--rejected"], ["--bug and --rejected"]),
        (["--rejected", "--tasks", "f"], ["--rejected and --tasks"]),
        (["--rejected", "--repository", "toolz"], ["--repository", "--rejected"]),
        (["--bug", "x", "--min-solve-rate", "0.5", "--sort", "order"], ["--min-solve-rate, --sort", "--bug"]),
        (["--repository", "tolz"], ["--repository 'tolz': this run has", "toolz. Did you mean toolz?"]),
        (["--strategy", "magic", "--json"], ["--strategy 'magic': this run has", "removal"]),
    ],
)
def test_inspect_bugs_ignores_no_option(tmp_path, options, words):
    recorded_run(tmp_path / "runs" / "mine")
    assert_refused(selfplay("inspect-bugs", "mine", *options, folder=tmp_path), 2, *words)
    assert not (tmp_path / "f").exists()


def test_an_unknown_set_of_tasks_is_reported_with_the_known_ones(tmp_path):
    result = selfplay("eval", "--tasks", "owm", folder=tmp_path)
    assert_refused(result, 2, "no task set and no file named 'owm'", "Sets that come with selfplay:")


def test_evaluating_nothing_says_what_is_needed(tmp_path):
    assert_refused(selfplay("eval", folder=tmp_path), 2, "--tasks SET_OR_FILE is needed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "agent.temperature=0.5"], ["Write --set evaluation.temperature=… instead"]),
        (["--predictions", "none.json"], ["cannot read the predictions none.json", "instance_id"]),
        (["--predictions", "p.json", "--attempts", "2"], ["--predictions plays nothing"]),
        (["--compare", "a", "b", "--clones", "c"], ["--compare A B reads two finished folders"]),
    ],
)
def test_options_of_an_evaluation_that_do_not_fit_are_refused(options, words, tmp_path):
    assert_refused(selfplay("eval", "--tasks", "own", *options, folder=tmp_path), 2, *words)


def test_comparing_folders_that_are_not_there_is_bad_usage(tmp_path):
    assert_refused(selfplay("eval", "--compare", "a", "b", folder=tmp_path), 2, "there is no folder a")


def test_a_run_with_unknown_evaluation_tasks_starts_nothing(tmp_path):
    result = selfplay(
        "train", "--repos", good_list(tmp_path), "--set", 'evaluation.tasks=["owm"]', folder=tmp_path
    )
    assert_refused(result, 2, "'owm'")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [["inspect-bugs", "mine"], ["inspect-bugs", "mine", "--json"], ["train", "--help"], ["--version"]],
)
def test_a_reader_that_goes_away_ends_a_command_quietly(tmp_path, arguments):
    recorded_run(tmp_path / "runs" / "mine")
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` after its last line
    command = [sys.executable, "-m", "selfplay.cli", *arguments]
    try:
        result = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=120
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_an_error_is_reported_though_nobody_reads_the_output(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "selfplay.cli", "inspect-bugs", "none"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    assert result.returncode == 1
    assert "no run named 'none'" in result.stderr
