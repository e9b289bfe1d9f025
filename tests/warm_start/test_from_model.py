"""A warm start from a model: its weights or an adapter are trained, in its own chat format."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from selfplay import cli
from selfplay.errors import ConfigError
from selfplay.warm_start.pipeline import warm_start
from selfplay.warm_start.settings import read_settings
from tiny_policy import build_tiny_policy, tiny_warm_start
from tiny_repository import build_tiny_repository

STAGE = [{"name": "one", "steps": 2, "learning_rate": 1e-2, "mix": {"injector": 1, "solver_drill": 1}}]


def start_from(tmp_path: Path, **changes: Any) -> tuple[Path, Path]:
    """(the base, the output) of a warm start from a tiny policy."""
    base = build_tiny_policy(tmp_path / "base")
    repository = str(build_tiny_repository(tmp_path / "tiny"))
    settings = tiny_warm_start(
        repository, base=str(base), stages=STAGE, shown_weight=0.0, train_embeddings=False, **changes
    )
    warm_start(tmp_path / "policy", settings)
    return base, tmp_path / "policy"


def weights(folder: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_all_weights_but_the_embeddings_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    base, policy = map(weights, start_from(tmp_path))
    moved = {name for name in base if not torch.allclose(base[name], policy[name], atol=1e-2, rtol=1e-2)}
    assert "model.embed_tokens.weight" not in moved
    assert any("mlp" in name for name in moved)
    card = (tmp_path / "policy" / "MODEL_CARD.md").read_text()
    assert str(tmp_path / "base") in card
    assert "made from nothing" not in card


def test_an_adapter_is_written_beside_the_merged_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    base, policy = start_from(tmp_path, lora_rank=2)
    assert json.loads((policy / "adapter" / "adapter_config.json").read_text())["r"] == 2
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    together = peft.PeftModel.from_pretrained(model, policy / "adapter").merge_and_unload().state_dict()
    merged, before = weights(policy), weights(base)
    for name, tensor in together.items():
        assert torch.allclose(tensor, merged[name], atol=2e-2), name
    assert any(not torch.equal(merged[name], before[name].bfloat16().float()) for name in merged)


def test_an_adapter_without_a_model_to_start_from_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["selfplay", "warm-start", "--adapter", "--output", str(tmp_path)])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "call it with --from MODEL" in capsys.readouterr().err


def test_the_recipe_of_a_start_from_a_model_is_read() -> None:
    settings = read_settings(Path("warm-start-from"), ['base="some/model"'])
    assert (settings.base, settings.shown_weight, settings.compile) == ("some/model", 0.0, False)
    with pytest.raises(ConfigError, match="lora_rank"):
        read_settings(None, ["lora_rank=4"])
