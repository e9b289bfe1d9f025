"""Layers compiled for training, by the real compiler: seconds, so not among the fast tests."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from selfplay.errors import PrerequisiteError
from selfplay.training.conformance import CONTEXT_TOKENS, SETTINGS, largest_difference, made_samples
from selfplay.training.torch_trainer import TorchTrainer
from tiny_model import make_tiny_model

pytestmark = pytest.mark.slow
COMPILED = SETTINGS.model_copy(update={"compile": True})


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    return sum(float((first[name] - second[name]).pow(2).sum()) for name in first) ** 0.5


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: apt-get install g++")
# Of the compiler.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_trainer_with_compiled_layers_learns_what_the_plain_one_learns_and_its_checkpoint_is_the_same(
    tmp_path: Path,
) -> None:
    model = make_tiny_model(tmp_path / "model")
    reached = []
    for settings in (SETTINGS, COMPILED):
        trainer = TorchTrainer(model, settings, CONTEXT_TOKENS, seed=0)
        before = trainer.export_weights()
        for seed in range(3):
            trainer.step(made_samples(seed, count=6 + seed))  # shapes that differ
        trainer.save(tmp_path / f"compiled-{settings.compile}")
        reached.append(trainer.export_weights())
    assert reached[0].keys() == reached[1].keys()
    assert distance(*reached) < 1e-3 * distance(before, reached[0])
    plain = TorchTrainer(model, SETTINGS, CONTEXT_TOKENS, seed=1)
    plain.load(tmp_path / "compiled-True")
    assert largest_difference(plain.export_weights(), reached[1]) == 0


def test_without_a_compiler_the_error_has_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(PrerequisiteError, match="apt-get install g"):
        TorchTrainer(make_tiny_model(tmp_path / "model"), COMPILED, CONTEXT_TOKENS, seed=0)
