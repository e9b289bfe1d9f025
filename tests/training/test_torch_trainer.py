import importlib.util
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from selfplay.engines import precision
from selfplay.errors import EngineError, PrerequisiteError, RunError
from selfplay.settings.learning import TrainerSettings
from selfplay.training import conformance, torch_trainer
from selfplay.training.batch import Sample
from selfplay.training.ranks.model import deepspeed_settings
from selfplay.training.torch_trainer import TorchTrainer
from tiny_model import make_tiny_model

SETTINGS = TrainerSettings(
    learning_rate=1e-2, warmup_updates=3, bf16=False, batch_tokens=256, weight_decay=0.1
)


def samples(seed: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(6):
        length = 10 + 5 * i
        ids = torch.randint(50, (length,), generator=generator).tolist()
        made.append(
            Sample(
                ids,
                [0] * 5 + [1] * (length - 5),
                [-3.9] * length,
                (-1.0) ** i,
                "injector" if i < 2 else "solver",
            )
        )
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = make_tiny_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_continuing_after_load_equals_not_having_stopped(model: Path, tmp_path: Path) -> None:
    straight = TorchTrainer(model, SETTINGS, 128, seed=1)
    straight.step(samples(0))
    straight.save(tmp_path / "checkpoint")
    straight.step(samples(1))
    resumed = TorchTrainer(model, SETTINGS, 128, seed=2)
    resumed.load(tmp_path / "checkpoint")
    resumed.step(samples(1))
    assert resumed.weight_version == straight.weight_version == 2
    a, b = straight.export_weights(), resumed.export_weights()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_is_a_model_folder_with_its_tokenizer(model: Path, tmp_path: Path) -> None:
    trainer = TorchTrainer(model, SETTINGS, 128, seed=1)
    trainer.save(tmp_path / "checkpoint")
    assert {p.name for p in (tmp_path / "checkpoint").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "trainer.pt",
    }
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]
    TorchTrainer(tmp_path / "checkpoint", SETTINGS, 128, seed=1)


SAVE = """
import sys
from pathlib import Path
from selfplay.settings.learning import TrainerSettings
from selfplay.training.torch_trainer import TorchTrainer
TorchTrainer(sys.argv[1], TrainerSettings(bf16=False), 128, seed=1).save(Path(sys.argv[2]))
"""


def test_a_checkpoint_is_written_without_a_word(model: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed, which warns of a missing GPU, is not installed")
    command = [sys.executable, "-c", SAVE, str(model), str(tmp_path / "checkpoint")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "" and "accelerator" not in done.stderr


def test_a_step_makes_rewarded_tokens_likelier(model: Path) -> None:
    trainer = TorchTrainer(model, SETTINGS, 128, seed=1)
    ids = list(range(1, 20))
    good = Sample(ids, [0] + [1] * 18, [-3.9] * 19, 1.0, "solver")
    gaps = [trainer.step([good])["solver/ratio"] for _ in range(4)]
    assert gaps[-1] > gaps[0]


def test_each_token_is_learned_with_its_own_advantage(model: Path) -> None:
    def loss(advantages: list[float]) -> float:
        sample = replace(samples(0)[2], advantage=[0.0] * 5 + advantages)
        return TorchTrainer(model, SETTINGS, 128, seed=1).step([sample])["loss"]

    length = len(samples(0)[2].token_ids) - 5
    first, rest = [1.0] + [0.0] * (length - 1), [0.0] + [-0.5] * (length - 1)
    together = [a + b for a, b in zip(first, rest, strict=True)]
    assert loss(together) == pytest.approx(loss(first) + loss(rest), rel=1e-4)
    assert loss(first) < 0 < loss(rest)


def test_metrics_are_reported_per_role(model: Path) -> None:
    metrics = TorchTrainer(model, SETTINGS, 128, seed=1).step(samples(0))
    for role in ("injector", "solver"):
        assert {
            f"{role}/{name}" for name in ("loss", "entropy", "ratio", "clip_share", "rollout_logprob_diff")
        } <= metrics.keys()
    assert metrics["lr"] == pytest.approx(1e-2 / 3)
    assert metrics["grad_norm"] > 0


def test_one_role_does_not_dilute_the_other(model: Path) -> None:
    both, alone = TorchTrainer(model, SETTINGS, 128, seed=1), TorchTrainer(model, SETTINGS, 128, seed=1)
    injectors = [s for s in samples(0) if s.role == "injector"]
    assert both.step(samples(0))["injector/loss"] == pytest.approx(
        alone.step(injectors)["injector/loss"], rel=1e-4
    )


def test_an_update_without_gradient_changes_no_weight(model: Path) -> None:
    trainer = TorchTrainer(model, SETTINGS, 128, seed=1)
    before = trainer.export_weights()
    trainer.step([Sample([1, 2], [0, 1], [0.0, -1.0], 0.0, "solver")])
    assert all(torch.equal(value, before[name]) for name, value in trainer.export_weights().items())


ANCHORED = SETTINGS.model_copy(update={"kl_coef": 5.0})


def test_the_kl_penalty_keeps_the_policy_near_the_reference_policy(model: Path) -> None:
    free, held = (
        TorchTrainer(model, SETTINGS.model_copy(update={"kl_coef": 1e-9}), 128, seed=1),
        TorchTrainer(model, ANCHORED, 128, 1),
    )
    apart = [[trainer.step(samples(0))["solver/kl"] for _ in range(12)] for trainer in (free, held)]
    assert apart[0][0] == apart[1][0] == pytest.approx(0.0, abs=1e-6)
    assert 0 < apart[1][-1] < apart[0][-1] / 2
    assert "kl" not in TorchTrainer(model, SETTINGS, 128, seed=1).step(samples(0))


def test_the_kl_penalty_counts_in_episodes_without_a_gradient(model: Path) -> None:
    learned = samples(0)
    silent = [replace(sample, advantage=0.0) for sample in learned[3:]]
    counted = TorchTrainer(model, ANCHORED, 128, seed=1).step([*learned[:3], *silent])
    assert counted["action_tokens"] == sum(sample.action_tokens for sample in learned)
    assert (
        TorchTrainer(model, SETTINGS, 128, seed=1).step([*learned[:3], *silent])["action_tokens"]
        < counted["action_tokens"]
    )


def test_a_resumed_run_has_the_same_reference_policy(model: Path, tmp_path: Path) -> None:
    straight = TorchTrainer(model, ANCHORED, 128, seed=1)
    for seed in range(3):
        straight.step(samples(seed))
    straight.save(tmp_path / "checkpoint")
    resumed = TorchTrainer(model, ANCHORED, 128, seed=1)
    resumed.load(tmp_path / "checkpoint")
    assert straight.step(samples(3)) | {"seconds": 0.0, "tokens_per_s": 0.0} == resumed.step(samples(3)) | {
        "seconds": 0.0,
        "tokens_per_s": 0.0,
    }
    a, b = straight.export_weights(), resumed.export_weights()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_whose_weights_were_swapped_is_refused(model: Path, tmp_path: Path) -> None:
    trainer = TorchTrainer(model, SETTINGS, 128, seed=1)
    trainer.save(tmp_path / "checkpoint")
    trainer.step(samples(0))
    trainer.save(tmp_path / "later")
    (tmp_path / "later" / "model.safetensors").rename(tmp_path / "checkpoint" / "model.safetensors")
    with pytest.raises(RunError, match="do not belong"):
        trainer.load(tmp_path / "checkpoint")


def test_a_missing_model_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no model folder .*config\.json"):
        TorchTrainer(tmp_path / "nowhere", SETTINGS, 128, seed=1)


def test_without_peft_an_adapter_is_refused_with_the_remedy(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as where it is not installed
    message = r"lora_rank = 4 needs peft.*pip install 'selfplay-swe\[lora\]'"
    with pytest.raises(PrerequisiteError, match=message):
        TorchTrainer(model, SETTINGS.model_copy(update={"lora_rank": 4}), 128, seed=1)


@pytest.mark.parametrize("check", conformance.ALL_CHECKS, ids=lambda check: check.__name__)
def test_the_torch_trainer(check: conformance.Check, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check(
        lambda folder, settings: TorchTrainer(folder, settings, conformance.CONTEXT_TOKENS, seed=0),
        make_tiny_model(tmp_path / "model"),
        tmp_path / "empty",
    )


def test_frozen_embeddings_stay_and_the_rest_learns(model: Path) -> None:
    trainer = TorchTrainer(model, SETTINGS.model_copy(update={"train_embeddings": False}), 128, seed=1)
    before = trainer.export_weights()
    trainer.step(samples(0))
    changed = {
        name for name, value in trainer.export_weights().items() if not torch.equal(value, before[name])
    }
    assert changed == before.keys() - {"model.embed_tokens.weight"}
    with pytest.raises(ValueError, match="train_embeddings = false is the torch trainer's"):
        TrainerSettings(type="deepspeed", train_embeddings=False)


@pytest.mark.parametrize(("large", "used"), [(True, {1, 3}), (False, {5})])
def test_a_large_model_leaves_cores_to_other_processes(
    model: Path, monkeypatch: pytest.MonkeyPatch, large: bool, used: set[int]
) -> None:
    readings = itertools.cycle([1, 3, 9])
    monkeypatch.setattr(torch_trainer, "LARGE_PARAMETERS", 0 if large else 10**9)
    monkeypatch.setattr(torch_trainer.FreeCores, "threads", lambda _: next(readings))
    trainer = TorchTrainer(model, SETTINGS.model_copy(update={"batch_tokens": 40}), 128, seed=0)
    trainer.threads = 3 if large else 5
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    trainer.step(samples(0))
    assert len(taken) > 3 and set(taken) == used


@pytest.mark.parametrize(
    ("has_bf16", "wanted", "expected"),
    [(True, "auto", True), (False, "auto", False), (True, False, False), (False, True, True)],
)
def test_it_computes_in_bf16_where_the_processor_can(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_bf16: bool,
    wanted: Literal["auto", True, False],
    expected: bool,
):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    seen = []

    def watch(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Linear):
            seen.append(output.dtype == torch.bfloat16)

    trainer = TorchTrainer(model, SETTINGS.model_copy(update={"bf16": wanted}), 128, seed=1)
    with torch.nn.modules.module.register_module_forward_hook(watch):
        trainer.step(samples(1))
    assert set(seen) == {expected}
    assert precision.trains_in_bf16("auto", on_gpu=True)
    settings = deepspeed_settings(SETTINGS.model_copy(update={"bf16": wanted}), 64, on_gpu=False)
    assert settings["torch_autocast"]["enabled"] == expected
