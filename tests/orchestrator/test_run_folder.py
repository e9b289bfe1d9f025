import json
from datetime import datetime
from pathlib import Path

import pytest

from selfplay.config import Config, load_config
from selfplay.curriculum.rows import UpdateRow
from selfplay.errors import RunError
from selfplay.orchestrator.run_folder import create_run, open_run
from selfplay.verdicts.randomness import SECRET_FILE, Secret

NOW = datetime(2026, 1, 2, 3, 4, 5)


def config(folder: Path, name: str = "") -> Config:
    return load_config(None, [f'run.folder="{folder}"', *([f"run.name={name}"] if name else [])])


def test_two_runs_in_the_same_second_get_different_names(tmp_path):
    first, _ = create_run(config(tmp_path), "", NOW)
    second, _ = create_run(config(tmp_path), "", NOW)
    assert first.path.name == "20260102-030405"
    assert second.path.name == "20260102-030405-2"


def test_a_taken_name_says_how_to_continue(tmp_path):
    create_run(config(tmp_path, "mine"), "", NOW)
    with pytest.raises(RunError, match="--resume mine"):
        create_run(config(tmp_path, "mine"), "", NOW)


def test_the_folder_keeps_the_resolved_configuration_with_its_name(tmp_path):
    folder, resolved = create_run(config(tmp_path), "pypi:toolz==1.0.0\n", NOW)
    assert folder.config() == resolved
    assert resolved.run.name == folder.path.name
    assert folder.repositories_file.read_text() == "pypi:toolz==1.0.0\n"


def test_an_unwritable_place_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"run\.folder"):
        create_run(config(tmp_path / "file" / "runs"), "", NOW)


def test_the_newest_run_is_opened_by_default_and_others_by_name_or_path(tmp_path):
    first, _ = create_run(config(tmp_path, "one"), "", NOW)
    assert open_run("", tmp_path) == first
    assert open_run("one", tmp_path) == first
    assert open_run(str(tmp_path / "one"), Path("elsewhere")) == first


def test_an_unknown_run_lists_those_there_are(tmp_path):
    create_run(config(tmp_path, "one"), "", NOW)
    with pytest.raises(RunError, match=r"no run named 'two'.*one"):
        open_run("two", tmp_path)
    with pytest.raises(RunError, match="selfplay train"):
        open_run("", tmp_path / "empty")


def test_a_policy_beside_the_runs_is_no_run(tmp_path):
    first, _ = create_run(config(tmp_path, "one"), "", NOW)
    (tmp_path / "policy").mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / "policy" / name).write_text("{}")
    assert open_run("", tmp_path) == first
    with pytest.raises(RunError, match=r"no run named 'policy' .*there are: one\)"):
        open_run("policy", tmp_path)


def test_what_the_database_did_not_commit_is_removed(tmp_path):
    run, _ = create_run(config(tmp_path), "", NOW)
    left = ("update-00003", "update-00004.tmp", ".update-00004.123.partial")
    for name in ("update-00001", "update-00002", *left):
        (run.checkpoints / name).mkdir()
    (run.episodes / "x.123.partial").write_text("torn")
    run.discard_uncommitted("update-00002", keep=2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["update-00001", "update-00002"]
    assert list(run.episodes.iterdir()) == []


def test_a_start_that_was_killed_can_be_made_again(tmp_path):
    (tmp_path / ".mine.killed.partial" / "mine").mkdir(parents=True)
    run, _ = create_run(config(tmp_path, "mine"), "", NOW)
    assert open_run("", tmp_path) == run
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints",
        "config.json",
        "episodes",
        "judging.key",
        "logs",
        "repositories.txt",
    ]


def committed(*updates: int) -> list[UpdateRow]:
    return [
        UpdateRow(
            number, f"update-{number}", number, True, json.dumps({"update": number, "loss": 0.5}), 1.0, 2.0
        )
        for number in updates
    ]


def test_metrics_hold_each_committed_update_and_finished_evaluation_once(tmp_path):
    run, _ = create_run(config(tmp_path), "", NOW)
    written = [
        {"evaluation": 0},
        {"update": 1, "loss": 0.5, "more": 1},
        {"evaluation": 1},
        {"update": 1, "loss": 0.5},
        {"remark": "kept"},
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in written) + '{"update": 2, "lo')
    run.repair_metrics(committed(1, 2), lambda update: update == 0)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert rows == [
        {"evaluation": 0},
        {"update": 1, "loss": 0.5, "more": 1},
        {"remark": "kept"},
        {"update": 2, "loss": 0.5},
    ]


def test_metrics_that_are_whole_are_left_as_they_are(tmp_path):
    run, _ = create_run(config(tmp_path), "", NOW)
    run.repair_metrics([], lambda _: True)
    assert not run.metrics.exists()
    run.metrics.write_text('{"update": 1,  "loss": 0.5}\n')
    before = run.metrics.stat().st_ino
    run.repair_metrics(committed(1), lambda _: True)
    assert run.metrics.stat().st_ino == before


def test_a_run_has_a_secret_of_its_own_that_its_settings_do_not_show(tmp_path):
    given = Secret(b"set by a test, for equal draws..")
    run, _ = create_run(config(tmp_path, "mine"), "", NOW, secret=given)
    other, _ = create_run(config(tmp_path, "other"), "", NOW)
    assert open_run("mine", tmp_path).secret() == given != other.secret() == other.secret()
    shown = "".join(path.read_text() for path in run.path.glob("*.*") if path.name != SECRET_FILE)
    assert given.key.hex() not in shown and given.key.decode() not in shown


def test_a_run_of_an_earlier_version_gets_a_secret(tmp_path):
    run, _ = create_run(config(tmp_path), "", NOW)
    (run.path / SECRET_FILE).unlink()
    assert run.secret() == run.secret()
