"""Mixtures of experts: they train, their routers' load is measured, servers get the checkpoint's names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from selfplay.engines.models import load_causal_model
from selfplay.training.batch import Sample
from selfplay.training.conformance import SETTINGS, made_samples
from selfplay.training.torch_trainer import TorchTrainer
from selfplay.weights.checkpoint_names import CheckpointNames
from selfplay.weights.native_transfer import Receivers, WeightSource
from selfplay.weights.weight_sync import FileWeightSync
from tiny_model import make_tiny_shape


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_shape(tmp_path_factory.mktemp("experts") / "model", "qwen3_moe")


def opened(folder: Path, **changes: Any) -> TorchTrainer:
    settings = SETTINGS.model_copy(update={"warmup_updates": 0, **changes})
    trainer = TorchTrainer(folder, settings, 128, seed=0)
    trainer.threads = 1  # threads of tiny products only wait for each other
    return trainer


@pytest.mark.parametrize("changes", [{}, {"bf16": True, "activation_checkpointing": True}, {"packing": True}])
def test_rewarded_tokens_become_likelier_and_routers_and_experts_learn(
    folder: Path, changes: dict[str, Any]
) -> None:
    trainer = opened(folder, **changes)
    before = trainer.export_weights()
    ids = list(range(1, 20))
    good = Sample(ids, [0] + [1] * 18, [-3.9] * 19, 1.0, "solver")
    ratios = [trainer.step([good, good])["solver/ratio"] for _ in range(3)]
    assert ratios[-1] > ratios[0]
    after = trainer.export_weights()
    for part in ("mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"):
        assert not torch.equal(before[f"model.layers.0.{part}"], after[f"model.layers.0.{part}"])


@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True}, {"packing": True}])
def test_the_load_of_the_routers_is_that_of_the_update_s_tokens(
    folder: Path, changes: dict[str, Any]
) -> None:
    samples = made_samples(0)
    metrics = opened(folder, **changes).step(samples)
    model = load_causal_model(folder, torch.float32)
    counts = torch.zeros(2, 4)
    for sample in samples:
        with torch.no_grad():
            output = model(torch.tensor([sample.token_ids]), output_router_logits=True)
        for layer, logits in enumerate(output.router_logits):  # (tokens, experts)
            counts[layer] += torch.bincount(logits.topk(2, -1).indices.flatten(), minlength=4)
    shares = counts / counts.sum(-1, keepdim=True)
    entropy = (torch.special.entr(shares).sum(-1) / torch.tensor(4.0).log()).mean()
    assert metrics["router/load_entropy"] == pytest.approx(float(entropy), abs=1e-5)
    assert metrics["router/max_share"] == pytest.approx(float(shares.max()), abs=1e-5)
    assert metrics["router/idle_share"] == float((shares == 0).float().mean())


def test_a_dense_model_has_no_router_metrics(tmp_path: Path) -> None:
    trainer = opened(make_tiny_shape(tmp_path / "model", "granite"))
    assert not any(name.startswith("router/") for name in trainer.step(made_samples(0)))


def test_servers_get_each_expert_under_the_name_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    """By files and by transfer: the names and values that transformers saves."""
    trainer = opened(folder)
    trainer.step(made_samples(0))
    trainer.save(tmp_path / "checkpoint")
    saved = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert "model.layers.0.mlp.experts.3.down_proj.weight" in saved

    weights = trainer.export_weights()
    sync = FileWeightSync(
        folder, torch.float32, folder=tmp_path, names=CheckpointNames.of_folder(str(folder))
    )
    sync.write(weights, 1)
    written: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("selfplay-*/1/*.safetensors"):
        with safe_open(file, "pt") as tensors:
            written |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    sync.close()

    sources: list[WeightSource] = []
    sender = trainer._sender
    sender.send = lambda receivers, source: sources.append(source)  # type: ignore[method-assign,assignment]
    trainer.send_weights(Receivers("gloo", (), "float32", 1.0))
    sent = dict(sources[0])
    assert {info.name: info.shape for info in sources[0].metadata()} == {
        name: tuple(value.shape) for name, value in sent.items()
    }
    for found in (written, sent):
        assert found.keys() == saved.keys()
        assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_an_adapter_goes_on_the_attention_and_its_checkpoint_loads(folder: Path, tmp_path: Path) -> None:
    trainer = opened(folder, lora_rank=4)
    trainer.step(made_samples(0))
    trainer.save(tmp_path / "checkpoint")
    merged = trainer.export_weights()
    loaded = load_causal_model(tmp_path / "checkpoint", torch.float32).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in merged.items())


def test_a_run_of_experts_continues_as_if_never_stopped(folder: Path, tmp_path: Path) -> None:
    trainer = opened(folder)
    trainer.step(made_samples(0))
    trainer.save(tmp_path / "checkpoint")
    trainer.step(made_samples(1))
    again = opened(folder)
    again.load(tmp_path / "checkpoint")
    again.step(made_samples(1))
    straight, resumed = trainer.export_weights(), again.export_weights()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
