"""Adapters (LoRA) in the torch trainer: what is trained and exported, and which checkpoints load."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfplay.engines.models import load_causal_model
from selfplay.errors import ConfigError, RunError
from selfplay.settings.learning import TrainerSettings
from selfplay.training import conformance
from selfplay.training.adapter import add_adapter
from selfplay.training.batch import Sample
from selfplay.training.conformance import CONTEXT_TOKENS, SETTINGS, largest_difference, made_samples
from selfplay.training.torch_trainer import TorchTrainer
from tiny_model import make_tiny_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed; get it with: pip install 'selfplay-swe[lora]'",
)

RANK = 4


def adapted(settings: TrainerSettings = SETTINGS, **more: Any) -> TrainerSettings:
    return TrainerSettings.model_validate(
        settings.model_dump() | {"lora_rank": RANK, "lora_alpha": 16, **more}
    )


def opened(model: Path, seed: int = 0, **more: Any) -> TorchTrainer:
    trainer = TorchTrainer(model, adapted(**more), CONTEXT_TOKENS, seed)
    trainer.threads = 1
    return trainer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("policy") / "model")


def factors(trainer: TorchTrainer, folder: Path) -> dict[str, torch.Tensor]:
    trainer.save(folder)
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("check", conformance.ALL_CHECKS, ids=lambda check: check.__name__)
def test_the_torch_trainer_with_an_adapter(check: conformance.Check, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check(
        lambda folder, settings: TorchTrainer(folder, adapted(settings), CONTEXT_TOKENS, seed=0),
        make_tiny_model(tmp_path / "model"),
        tmp_path / "empty",
    )


def test_before_the_first_step_the_merged_weights_are_the_base_exactly(model: Path, tmp_path: Path) -> None:
    trainer = opened(model)
    base = load_causal_model(model, torch.float32).state_dict()
    exported = trainer.export_weights()
    assert exported.keys() == base.keys() - {"lm_head.weight"}  # tied to the embedding
    assert all(torch.equal(value, base[name]) for name, value in exported.items())
    made = factors(trainer, tmp_path / "checkpoint")
    assert all(bool(value.any()) == ("lora_A" in name) for name, value in made.items())


def test_an_update_changes_linear_layers_alone_and_by_no_more_than_the_adapters_rank(model: Path) -> None:
    trainer = opened(model)
    before = trainer.export_weights()
    trainer.step(made_samples(0))
    trainer.step(made_samples(1))
    for name, value in trainer.export_weights().items():
        change = value - before[name]
        if "_proj" in name:
            assert 1 <= torch.linalg.matrix_rank(change, atol=1e-5) <= RANK, name
        else:
            assert not change.any(), name


def test_the_engine_gets_what_the_trainer_computes_with(model: Path, tmp_path: Path) -> None:
    """The exported policy has the log-probabilities of the trainer's own forward pass, after a step."""
    trainer = opened(model)
    for seed in range(3):
        trainer.step(made_samples(seed))
    trainer.save(tmp_path / "checkpoint")
    policy = load_causal_model(tmp_path / "checkpoint", torch.float32)
    policy.load_state_dict(trainer.export_weights(), strict=False)
    ids = list(range(1, 40))
    with torch.inference_mode():
        scores = torch.log_softmax(policy(torch.tensor([ids])).logits[0], -1)
    logprobs = [0.0, *scores[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]
    metrics = trainer.step([Sample(ids, [0] + [1] * 38, logprobs, 1.0, "solver")])
    assert metrics["rollout_logprob_diff"] < 1e-5


@pytest.mark.parametrize(
    "more",
    [{}, {"activation_checkpointing": True}, {"shared_prompts": False}],
    ids=["plain", "again", "rows"],
)
def test_the_base_of_an_adapter_serves_as_the_reference_policy(model: Path, more: dict[str, bool]) -> None:
    alone, beside_a_copy = (opened(model, kl_coef=2.0, **more) for _ in range(2))
    beside_a_copy._reference = load_causal_model(model, torch.float32).eval()
    for seed in range(3):
        metrics, wanted = (trainer.step(made_samples(seed)) for trainer in (alone, beside_a_copy))
        assert metrics["kl"] == wanted["kl"] and metrics["grad_norm"] == wanted["grad_norm"]
    assert metrics["kl"] > 0
    assert largest_difference(alone.export_weights(), beside_a_copy.export_weights()) == 0


def test_the_optimiser_holds_the_adapters_moments_alone(model: Path, tmp_path: Path) -> None:
    trainer = opened(model)
    trainer.step(made_samples(0))
    made = factors(trainer, tmp_path / "checkpoint")
    state = torch.load(tmp_path / "checkpoint" / "trainer.pt", weights_only=True)["optimizer"]["state"]
    assert sorted(entry["exp_avg"].shape for entry in state.values()) == sorted(
        value.shape for value in made.values()
    )


def test_an_adapter_depends_on_its_seed_and_not_on_earlier_random_numbers(model: Path) -> None:
    def initial(seed: int, before: int) -> dict[str, torch.Tensor]:
        loaded = load_causal_model(model, torch.float32)
        torch.manual_seed(before)
        state = torch.get_rng_state()
        add_adapter(loaded, adapted(), seed)
        assert torch.equal(state, torch.get_rng_state())
        return {name: value.detach() for name, value in loaded.named_parameters()}

    assert largest_difference(initial(5, before=1), initial(5, before=2)) == 0
    assert largest_difference(initial(5, before=1), initial(6, before=1)) > 0


def test_only_the_layers_that_are_named_have_an_adapter(model: Path) -> None:
    trainer = opened(model, lora_layers=["v_proj", "q_proj"])
    before = trainer.export_weights()
    trainer.step(made_samples(0))
    changed = {
        name.split(".")[-2]
        for name, value in trainer.export_weights().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"q_proj", "v_proj"}


def test_a_layer_that_the_model_does_not_have_is_named_beside_those_it_has(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"no linear layer 'c_attn'\. It has \['down_proj', .*'v_proj'\]"):
        opened(model, lora_layers=["q_proj", "c_attn"])
    with pytest.raises(ConfigError, match=r"no linear layer 'lm_head'"):
        opened(model, lora_layers=["lm_head"])


@pytest.mark.parametrize(
    ("made_with", "opened_with", "message"),
    [
        (
            {"lora_rank": 8},
            {},
            r"made with trainer\.lora_rank = 8, and this trainer has trainer\.lora_rank = 4",
        ),
        (
            {},
            {"lora_rank": 0},
            r"made with trainer\.lora_rank = 4, and this trainer has trainer\.lora_rank = 0",
        ),
        (
            {"lora_rank": 0},
            {},
            r"made with trainer\.lora_rank = 0, and this trainer has trainer\.lora_rank = 4",
        ),
        (
            {"lora_alpha": 5},
            {},
            r"made with trainer\.lora_alpha = 5, and this trainer has trainer\.lora_alpha = 16",
        ),
        (
            {"lora_layers": ["q_proj"]},
            {},
            r"made with trainer\.lora_layers = \['q_proj'\], .* has trainer\.lora_layers = \[\]",
        ),
    ],
)
def test_a_checkpoint_of_another_adapter_is_refused(
    model: Path, tmp_path: Path, made_with: dict[str, Any], opened_with: dict[str, Any], message: str
) -> None:
    opened(model, **made_with).save(tmp_path / "checkpoint")
    trainer = opened(model, **opened_with)
    before = trainer.export_weights()
    with pytest.raises(RunError, match=message):
        trainer.load(tmp_path / "checkpoint")
    assert largest_difference(before, trainer.export_weights()) == 0


def swap_the_base(checkpoint: Path, model: Path) -> Path:
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 0.01
    other = shutil.copytree(model, checkpoint.parent / "other")
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    return other


def swap_the_adapter(checkpoint: Path, model: Path) -> Path:
    file = checkpoint / "adapter" / "adapter_model.safetensors"
    save_file({name: value + 0.5 for name, value in load_file(file).items()}, file, {"format": "pt"})
    return model


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        (swap_the_base, r"made over another model: its model\.layers\.1\.mlp\.up_proj"),
        (swap_the_adapter, "do not belong"),
    ],
)
def test_a_checkpoint_continues_over_its_own_base_and_adapter_alone(
    model: Path, tmp_path: Path, swap: Callable[[Path, Path], Path], message: str
) -> None:
    trainer = opened(model)
    trainer.step(made_samples(0))
    trainer.save(tmp_path / "checkpoint")
    other = swap(tmp_path / "checkpoint", model)
    with pytest.raises(RunError, match=message):
        opened(other).load(tmp_path / "checkpoint")


def test_peft_loads_the_adapter_of_a_checkpoint_over_the_base(model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    trainer = opened(model)
    trainer.step(made_samples(0))
    trainer.save(tmp_path / "checkpoint")
    ids = torch.arange(1, 40)[None]
    with torch.inference_mode():
        wanted = load_causal_model(tmp_path / "checkpoint", torch.float32)(ids).logits
        base = load_causal_model(model, torch.float32)
        plain = base(ids).logits
        got = PeftModel.from_pretrained(base, str(tmp_path / "checkpoint" / "adapter"))(ids).logits
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(plain, wanted, atol=1e-2)
