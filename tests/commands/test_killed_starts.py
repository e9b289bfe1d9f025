"""`selfplay train` killed at its start: what is there then is enough to resume."""

from pathlib import Path

import pytest

from selfplay.commands import train
from selfplay.evaluation.tasks import Task, read_tasks, write_tasks
from selfplay.metrics import open_csv
from selfplay.orchestrator.run_folder import RunFolder

TASK = Task("one", "pypi:toolz==1.0.0", "patch", "test_patch", ("a::b",), ("a::c",), {"bug_inject.diff": "x"})

LOSSES = ["update,1,loss,1", "update,2,loss,2"]


class Killed(Exception):
    pass


def killed_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> RunFolder:
    """The run folder of a start in `tmp_path` that ended as soon as the folder had its name."""
    create_run = train.create_run

    def create_and_die(*arguments: object) -> None:
        create_run(*arguments)
        raise Killed

    monkeypatch.setattr(train, "create_run", create_and_die)
    monkeypatch.setattr(train, "open_backend", lambda kind: (None, kind))
    monkeypatch.setattr(train, "check_model", lambda config: "model")
    monkeypatch.setattr(train, "fitted_context", lambda config, model: config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("pypi:toolz==1.0.0\n")
    with pytest.raises(Killed):
        train.start_training(Path("list.txt"), None, ["run.name=mine", *settings])
    return RunFolder(tmp_path / "runs" / "mine")


def test_it_has_the_evaluation_tasks_that_it_began_with(tmp_path, monkeypatch):
    write_tasks([TASK], tmp_path / "tasks.jsonl")
    run = killed_start(tmp_path, monkeypatch, 'evaluation.tasks=["tasks.jsonl"]')
    (tmp_path / "tasks.jsonl").unlink()
    assert [task.instance_id for task in read_tasks(run.evaluation_tasks)] == ["one"]


def test_an_empty_table_of_metrics_still_gets_its_head(tmp_path):
    (tmp_path / "metrics.csv").touch()
    for loss in (1, 2):
        sink = open_csv(tmp_path)
        sink.write({"update": loss, "loss": loss})
        sink.close()
    assert (tmp_path / "metrics.csv").read_text().split() == ["kind,number,name,value", *LOSSES]
