"""Every format, of a run with hostile texts. ATIF and Parquet are read by their own tools.

mini-swe-agent, asciicast, SWE-bench, SWE-smith and Harbor have no validator that runs here: their packages
have none, or need a newer Python. The checks below stand for them, made from their sources: mini-swe-agent
2.4.6, asciicast v2, swebench 5.0.2, SWE-smith's data set, Harbor 0.25.0.
"""

import gzip
import json
import re
import tomllib
import unicodedata
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from report_run import report_run
from selfplay.agent.episode import Episode
from selfplay.cli import app
from selfplay.curriculum.store import Store
from selfplay.evaluation.tasks import read_tasks
from selfplay.exports.asciicast import asciicast
from selfplay.exports.records import whole_patch
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.parts import names_of
from selfplay.viewing.episode_search import find_episode
from store_rows import INJECT, WEAKEN, a_bug


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunFolder(
        report_run(tmp_path_factory.mktemp("exports") / "runs" / "run0", updates=2, group_size=3)
    )


@pytest.fixture(scope="module")
def store(run):
    with Store.open(run.database, writer=False) as opened:
        yield opened


def exported(run, format_, folder):
    """(what was written, what was printed)."""
    output = folder / "out"
    arguments = ["--runs", str(run.path.parent), "--format", format_, "--output", str(output)]
    result = CliRunner().invoke(app, ["export", "run0", *arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
    return output, result.output


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def known_bugs(store):
    """Those whose repository the run's list names."""
    return [bug for bug in store.bugs() if bug.repository.startswith(("toolz-", "iniconfig-"))]


# -- episodes


def test_atif_has_all_tokens_of_an_episode_and_passes_its_validator(run, store, tmp_path):
    atif = pytest.importorskip("atif", reason="no atif (pip install atif)")
    folder, printed = exported(run, "atif", tmp_path)
    rows = store.episodes()
    assert len(list(folder.iterdir())) == len(rows) and printed.startswith(f"{len(rows)} written to")
    for row in rows:
        found = atif.Trajectory.model_validate_json((folder / f"{row.episode_id}.json").read_text())
        episode = Episode.read(run.path / row.path)
        assert found.schema_version == "ATIF-v1.8" and found.agent.model_name == "carried"
        agent = [step for step in found.steps if step.source == "agent"]
        assert [step.message for step in agent] == [turn.text for turn in episode.turns]
        for step, turn in zip(agent, episode.turns, strict=True):
            begin, end = turn.tokens
            assert step.metrics.completion_token_ids == list(episode.token_ids[begin:end])
            assert step.metrics.logprobs == list(episode.logprobs[begin:end])
            assert step.metrics.extra["weight_version"] == row.update - 1
            assert step.tool_calls[0].function_name == turn.tool
        assert agent[0].metrics.prompt_token_ids == list(episode.token_ids[: episode.turns[0].tokens[0]])
        assert found.extra["loss_mask"] == list(episode.loss_mask) and found.extra["reward"] == row.reward


def test_parquet_has_a_row_for_each_episode(run, store, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="no pyarrow (pip install pyarrow)")
    path, _ = exported(run, "parquet", tmp_path)
    found = parquet.read_table(path).to_pylist()
    assert [one["episode_id"] for one in found] == [row.episode_id for row in store.episodes()]
    episode = Episode.read(run.path / store.episodes()[0].path)
    assert found[0]["token_ids"] == list(episode.token_ids)
    assert found[0]["loss_mask"] == list(episode.loss_mask) and found[0]["logprobs"] == list(episode.logprobs)
    assert found[0]["success"] == store.verdicts()[0].accepted


def test_mini_swe_agent_trajectories_have_its_fields(run, store, tmp_path):
    folder, _ = exported(run, "mini-swe-agent", tmp_path)
    paths = sorted(folder.glob("*/*.traj.json"))
    assert len(paths) == len(store.episodes(role="solver"))
    for path in paths:
        found = json.loads(path.read_text())
        assert found["trajectory_format"] == "mini-swe-agent-1.1"
        info = found["info"]
        assert {"model_stats", "config", "mini_version", "exit_status", "submission"} <= info.keys()
        assert {"instance_cost", "api_calls"} == info["model_stats"].keys()
        names = ("agent", "model", "environment")
        assert set(info["config"]) == {*names, *(f"{name}_type" for name in names)}
        last = found["messages"][-1]
        assert last["role"] == "exit" and last["extra"]["submission"] == info["submission"] == INJECT
        assert all(isinstance(message["content"], str) for message in found["messages"])
        assert re.fullmatch(r"[\w.-]+", path.parent.name) and path.parent.name.isascii()


def test_supervised_lines_have_the_six_fields(run, store, tmp_path):
    path, _ = exported(run, "sft", tmp_path)
    graded = {attempt.episode_id: attempt for attempt in store.attempts()}
    found = lines(path)
    assert {one["traj_id"] for one in found} == graded.keys()
    for one in found:
        assert list(one) == ["messages", "instance_id", "resolved", "model", "traj_id", "patch"]
        assert one["resolved"] is graded[one["traj_id"]].passed
        assert [message["role"] for message in one["messages"]][:3] == ["system", "user", "assistant"]


def test_recordings_play_at_the_episodes_pace_and_control_no_terminal(run, store, tmp_path):
    row = max(store.episodes(), key=lambda row: (row.turns, row.member))  # member 0 has a huge line
    text = asciicast(find_episode(run.path, str(run.path / row.path)))
    header, *events = map(json.loads, text.splitlines())
    assert header["version"] == 2 and header["width"] > 0 and header["height"] > 0
    times = [at for at, _, _ in events]
    assert times == sorted(times) and times[-1] == pytest.approx(1.7 * row.turns, abs=0.3)
    text = "".join(text for _, kind, text in events if kind == "o")
    assert f"turn {row.turns} of {row.turns}" in text and "document.title" in text
    styles_only = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", text)
    hidden = {c for c in styles_only if unicodedata.category(c) in ("Cc", "Cf")} - set("\r\n\t")
    assert hidden == set()


def test_bytes_that_are_no_text_do_not_break_a_format(tmp_path):
    run = RunFolder(report_run(tmp_path / "runs" / "run0", updates=1, group_size=2))
    path = next(run.episodes.glob("*-m1.json.gz"))
    data = json.loads(gzip.decompress(path.read_bytes()))
    data["turns"][0]["text"] = data["messages"][1]["content"] = "caf\udce9 \ud800"
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    for number, name in enumerate(("atif", "mini-swe-agent", "sft")):
        folder = tmp_path / str(number)
        folder.mkdir()
        written, _ = exported(run, name, folder)
        files = [written] if written.is_file() else [one for one in written.rglob("*") if one.is_file()]
        assert not re.search(r"\\ud[89a-f]", "".join(one.read_text() for one in files))


# -- bugs


def test_swe_bench_records_have_its_fields_and_are_read_again(run, store, tmp_path):
    path, _ = exported(run, "swe-bench", tmp_path)
    found = lines(path)
    fields = (
        "repo instance_id base_commit patch test_patch problem_statement hints_text created_at version "
        "FAIL_TO_PASS PASS_TO_PASS environment_setup_commit"
    )
    for record in found:
        assert all(isinstance(record[name], str) for name in fields.split(" "))
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", record["repo"])
        assert all(isinstance(one, str) for one in json.loads(record["FAIL_TO_PASS"]))
    tasks = {task.instance_id: task for task in read_tasks(path)}
    bugs = known_bugs(store)
    assert len(tasks) == len(bugs) == len(found) > 0
    for bug in bugs:
        task = tasks[bug.task_record()["instance_id"]]
        assert task.artifact == bug.artifact and task.attempt_patch == bug.attempt_patch
        assert (task.fail_to_pass, task.order) == (bug.fail_to_pass, bug.order)
    assert {task.repo for task in tasks.values()} <= {"pypi:toolz==1.0.0", "pypi:iniconfig==2.0.0"}


def test_swe_smith_records_have_seven_fields_and_their_patch_is_the_bug(run, store, tmp_path):
    """`selfplay` is the eighth, where no owner and name lead to the repository."""
    path, _ = exported(run, "swe-smith", tmp_path)
    fields = {
        "instance_id",
        "patch",
        "FAIL_TO_PASS",
        "PASS_TO_PASS",
        "image_name",
        "repo",
        "problem_statement",
    }
    found = lines(path)
    assert len(found) == len([bug for bug in known_bugs(store) if bug.order == 1]) > 0
    for record in found:
        assert record.keys() - {"selfplay"} == fields
        assert record["patch"] == INJECT and isinstance(record["FAIL_TO_PASS"], list)
        assert re.fullmatch(r"swesmith/[\w.-]+__[\w.-]+\.[0-9a-f]{8}", record["repo"])
    assert all(task.setup.patch_is_bug for task in read_tasks(path))


def test_a_second_order_bug_is_one_patch_unless_its_diffs_share_a_file():
    other = INJECT.replace("m.py", "n.py")
    bug = a_bug(order=2, parent_bug_id="bug", attempt_patch=other)
    assert whole_patch(bug) == INJECT + other
    assert whole_patch(replace(bug, attempt_patch=INJECT)) is None


def test_a_repository_on_github_needs_no_eighth_field(tmp_path):
    run = RunFolder(report_run(tmp_path / "runs" / "run0", updates=1, group_size=2))
    with Store.open(run.database) as store:
        store._write("UPDATE bugs SET repository = 'toolz-v1'")
    run.repositories_file.write_text("https://github.com/pytoolz/toolz@v1\n")
    path, _ = exported(run, "swe-smith", tmp_path)
    for record in lines(path):
        assert len(record) == 7 and record["repo"] == "swesmith/pytoolz__toolz.00000000"
    assert {task.repo for task in read_tasks(path)} == {"https://github.com/pytoolz/toolz@00000000"}


def test_harbor_tasks_have_its_files_and_no_diff_stays_in_the_image(run, store, tmp_path):
    folder, _ = exported(run, "harbor", tmp_path)
    tasks = sorted(folder.iterdir())
    assert len(tasks) == len(known_bugs(store)) > 0
    for task in tasks:
        config = tomllib.loads((task / "task.toml").read_text())
        assert config["schema_version"] == "1.4"
        assert {"metadata", "verifier", "agent", "environment"} < config.keys()
        assert all(config[name]["timeout_sec"] > 0 for name in ("verifier", "agent"))
        instruction = (task / "instruction.md").read_text()
        assert "+assert x == 1" in instruction and "x = 2" not in instruction
        docker = (task / "environment" / "Dockerfile").read_text()
        assert "COPY" not in docker and "--mount=type=bind,target=/bug" in docker and "==" in docker
        assert (task / "environment" / "test_weaken.diff").read_text() == WEAKEN
        for script in (task / "tests" / "test.sh", task / "solution" / "solve.sh"):
            assert script.stat().st_mode & 0o111 and script.read_text().startswith("#!/bin/bash\n")


# -- the command


def test_a_format_of_ones_own_is_a_function(run, tmp_path, monkeypatch):
    (tmp_path / "my_format.py").write_text(
        "def ids(run, path):\n"
        "    names = [bug.bug_id for bug in run.bugs()]\n"
        "    path.write_text('\\n'.join(names))\n"
        "    return len(names)\n"
    )
    monkeypatch.chdir(tmp_path)
    path, _ = exported(run, "my_format:ids", tmp_path)
    assert "-bug" in path.read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--format NAME is needed: atif, mini-swe-agent"),
        (["--format", "atiff"], "Did you mean 'atif'?"),
        (["--format", "atif"], "--output OUTPUT is needed"),
        (["--format", "atif", "--output", "."], "cannot write the export to .: it exists"),
        (["--format", "atif", "--output", "no/where"], "there is no such folder above it"),
    ],
)
def test_wrong_usage_is_named(run, arguments, message):
    result = CliRunner().invoke(app, ["export", "run0", "--runs", str(run.path.parent), *arguments])
    assert message in str(result.exception)


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    (tmp_path / "broken_format.py").write_text(
        "def half(run, path):\n    path.mkdir()\n    raise ValueError('x')\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["--format", "broken_format:half", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["export", "run0", "--runs", str(run.path.parent), *arguments])
    assert "export = 'broken_format:half' failed: ValueError: x" in str(result.exception)
    assert [
        path.name for path in tmp_path.iterdir() if path.suffix != ".py" and path.name != "__pycache__"
    ] == []


def test_the_page_names_every_format(run):
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "exports.md").read_text(encoding="utf-8")
    assert [name for name in names_of("export") if f"`{name}`" not in page] == []
