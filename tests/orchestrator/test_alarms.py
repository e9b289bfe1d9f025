"""The alarm that stops a run, in the real loop with a trainer that only reports figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfplay.curriculum.store import Store
from selfplay.errors import RunError
from simulated_game import Script, SimulatedTrainer, simulate


def test_a_gap_between_trainer_and_rollout_stops_the_run_and_keeps_nothing_of_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = {1: 0.01, 2: 0.4}
    real = SimulatedTrainer.step

    def step(trainer: SimulatedTrainer, samples: Sequence[Any]) -> dict[str, float]:
        real(trainer, samples)
        gap = gaps.get(trainer.weight_version, 0.01)
        return {"rollout_logprob_diff": 0.02, "solver/rollout_logprob_diff": gap}

    monkeypatch.setattr(SimulatedTrainer, "step", step)
    limit = {"trainer": {"max_rollout_logprob_diff": 0.1}}
    with pytest.raises(
        RunError, match=r"update 2: .* solver's tokens .* by 0\.4 nats .* is 0\.1\..*--resume"
    ):
        simulate(tmp_path, Script(), max_lag=0, sections=limit, updates=3)
    run = next(tmp_path.glob("*/selfplay.db"))
    with Store.open(run, writer=False) as store:
        assert store.last_update() == 1
    gaps.clear()  # the fault is gone
    assert simulate(tmp_path, Script(), max_lag=0, sections=limit, updates=3).trainer.weight_version == 3


def test_without_a_limit_nothing_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SimulatedTrainer.step

    def step(trainer: SimulatedTrainer, samples: Sequence[Any]) -> dict[str, float]:
        return {**real(trainer, samples), "injector/rollout_logprob_diff": float("nan")}

    monkeypatch.setattr(SimulatedTrainer, "step", step)
    simulate(tmp_path, Script(), max_lag=0, updates=1)
    limit = {"trainer": {"max_rollout_logprob_diff": 9.0}}
    with pytest.raises(RunError, match="by nan nats"):
        simulate(tmp_path / "limited", Script(), max_lag=0, sections=limit, updates=1)
