"""`policy.adapter`: an adapter's weights on top of a model, as one model folder."""

from pathlib import Path

import pytest

from selfplay.commands.dry_run import dry_run_training
from selfplay.commands.policies import check_model
from selfplay.config import load_config
from selfplay.errors import EngineError
from tiny_policy import build_tiny_policy

peft = pytest.importorskip("peft", reason="the package peft is not installed")


def adapter_of(model: Path, folder: Path) -> Path:
    """An adapter with random weights, as peft saves it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def test_the_policy_computes_what_model_and_adapter_compute_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    model = build_tiny_policy(tmp_path / "model")
    adapter = adapter_of(model, tmp_path / "adapter")
    config = load_config(None, [f"policy.model={model}", f"policy.adapter={adapter}"])
    folder = check_model(config)
    assert folder != str(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    together = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    with torch.no_grad():
        wanted = together(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(model)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert torch.allclose(merged, wanted, atol=1e-4)
    assert not torch.allclose(merged, plain, atol=1e-2)
    assert check_model(config) == folder


def test_a_dry_run_looks_for_the_adapter(tmp_path: Path) -> None:
    repositories = tmp_path / "list.txt"
    repositories.write_text("pypi:toolz==1.0.0\n")
    with pytest.raises(EngineError, match=r"no adapter_config\.json at"):
        dry_run_training(repositories, None, [f"policy.adapter={tmp_path}"])


def test_the_carried_adapter_belongs_to_one_model(tmp_path: Path) -> None:
    repositories = tmp_path / "list.txt"
    repositories.write_text("pypi:toolz==1.0.0\n")
    with pytest.raises(EngineError, match="trained on policy.model = 'smollm2', not on 'carried'"):
        dry_run_training(repositories, None, ["policy.model=carried", "policy.adapter=carried"])


def test_a_folder_without_an_adapter_and_one_of_another_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    model = build_tiny_policy(tmp_path / "model")
    with pytest.raises(EngineError, match=r"no adapter_config\.json at"):
        check_model(load_config(None, [f"policy.model={model}", f"policy.adapter={tmp_path}"]))
    adapter = adapter_of(model, tmp_path / "adapter")
    with pytest.raises(EngineError, match="does not fit on"):
        check_model(load_config(None, ["policy.model=carried", f"policy.adapter={adapter}"]))
