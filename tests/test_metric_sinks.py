"""Rows in TensorBoard and Weights & Biases, read back by the packages themselves."""

import builtins
import json

import pytest

from machine import eventually
from selfplay.errors import PrerequisiteError
from selfplay.metrics import open_sinks, step_of

ROWS = [
    {"evaluation": 0, "evaluation/sampled/pass@1": 0.25, "evaluation/sampled/standard_error": None},
    {"update": 1, "carried_gradient": True, "solver/reward": -0.5, "note": "a text"},
    {"update": 2, "carried_gradient": False, "solver/reward": 0.5},
]


def written(names, run):
    run.mkdir(exist_ok=True)
    sink = open_sinks(names, run)
    for row in ROWS:
        sink.write(row)
    sink.close()


def test_a_row_stands_at_its_update_or_at_the_last_one_before_its_evaluation():
    assert [step_of(row) for row in ROWS] == [0, 1, 2]


@pytest.mark.filterwarnings("default")
def test_tensorboard_draws_every_number_at_its_update(tmp_path):
    pytest.importorskip("tensorboard", reason="no tensorboard (pip install tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written(["jsonl", "tensorboard"], tmp_path / "run")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    scalars = {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert scalars == {
        "evaluation/sampled/pass@1": [(0, 0.25)],
        "carried_gradient": [(1, 1.0), (2, 0.0)],
        "solver/reward": [(1, -0.5), (2, 0.5)],
    }


@pytest.mark.filterwarnings("default")
def test_weights_and_biases_keep_every_row_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="no wandb (pip install wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    written(["jsonl", "wandb"], run)
    (file,) = run.rglob("*.wandb")
    assert (run / "wandb-id").read_text() in file.name

    def missing() -> list[str]:
        kept = file.read_bytes()  # a log of records, whose values are JSON texts
        return [
            name
            for row in ROWS
            for name, value in row.items()
            if value is not None and not (name.encode() in kept and json.dumps(value).encode() in kept)
        ]

    # A process of wandb's own writes the file; on a busy machine it does so a little after the run's end.
    eventually(lambda: not missing(), 120, 0.1)
    assert missing() == []


@pytest.mark.filterwarnings("default")
def test_weights_and_biases_without_an_account_are_refused_with_the_remedy(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="no wandb (pip install wandb)")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **named: False)
    with pytest.raises(PrerequisiteError, match="Run `wandb login`, or set WANDB_MODE=offline"):
        open_sinks(["wandb"], tmp_path)


@pytest.mark.parametrize("name, module", [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_sink_without_its_package_is_refused_with_the_remedy(name, module, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(wanted, *arguments, **named):
        if wanted == module:
            raise ImportError(wanted)
        return real(wanted, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        PrerequisiteError, match=rf"pip install 'selfplay-swe\[{name}\]'. Or leave '{name}' out"
    ):
        open_sinks([name], tmp_path)
