"""DeepSpeed on two real gloo ranks compared with the torch trainer, by stage.

Nearly all tests share the ranks.
"""

import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfplay.errors import EngineError, PartError, RunError, TrainerError
from selfplay.settings.learning import TrainerSettings
from selfplay.training import conformance
from selfplay.training.conformance import CONTEXT_TOKENS, SETTINGS, largest_difference, made_samples
from selfplay.training.deepspeed_trainer import DeepSpeedTrainer
from selfplay.training.ranks.controller import RankLaunch, Ranks
from selfplay.training.torch_trainer import TorchTrainer
from tiny_model import make_tiny_model, make_tiny_shape

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="DeepSpeed is missing; get it with: DS_BUILD_OPS=0 pip install 'selfplay-swe[deepspeed]'",
    ),
]

UPDATES = 3
# Allowed distance from the torch trainer's weights after UPDATES updates, as a share of the distance that
# these moved.
# AdamW's first updates are nearly signs, so bf16 rounding can turn those of tiny gradients around.
TOLERANCE = {False: 1e-3, True: 0.2}
VARIANTS: dict[str, dict[str, Any]] = {
    "stage 0": {"zero_stage": 0},
    "stage 1": {"zero_stage": 1},
    "stage 2": {"zero_stage": 2},
    "stage 3": {"zero_stage": 3},
    "stage 1 with offload": {"zero_stage": 1, "offload": True},
    "stage 2 with offload": {"zero_stage": 2, "offload": True},
    "stage 3 with offload": {"zero_stage": 3, "offload": True},
    "stage 2 with packing": {"zero_stage": 2, "packing": True},
    "stage 3 with activation checkpointing": {"zero_stage": 3, "activation_checkpointing": True},
    "stage 0 with sequence parallelism": {"zero_stage": 0, "sequence_parallel": 2},
    "stage 1 with sequence parallelism": {"zero_stage": 1, "sequence_parallel": 2},
    "stage 2 with sequence parallelism": {"zero_stage": 2, "sequence_parallel": 2, "logit_tokens": 9},
    "stage 3 with logits in chunks": {"zero_stage": 3, "logit_tokens": 9},
    "stage 3 for long sequences": {
        "zero_stage": 3,
        "sequence_parallel": 2,
        "logit_tokens": 9,
        "activation_checkpointing": True,
        "offload_activations": True,
        "offload": True,
        "offload_weights": True,
    },
}
# Under stage 3 some of the adapter's factors are partitioned. Small ones stay whole on every rank.
ADAPTER = {"lora_rank": 8, "lora_alpha": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("policy") / "model")


needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed; get it with: pip install 'selfplay-swe[lora]'",
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    made = Ranks(2, RankLaunch(tmp_path_factory.mktemp("logs")), deadline_s=300)
    yield made
    made.close()


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Three ranks, which do not divide the model evenly and count what they gather."""
    with pytest.MonkeyPatch.context() as patch:
        # For the module of their worker.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "helpers"), prepend=os.pathsep)
        made = Ranks(
            3,
            RankLaunch(tmp_path_factory.mktemp("logs")),
            deadline_s=300,
            worker="gathering_rank:GatheringRank",
        )
    yield made
    made.close()


def with_ranks(settings: TrainerSettings, count: int = 2, **more: Any) -> TrainerSettings:
    return TrainerSettings.model_validate(
        settings.model_dump() | {"type": "deepspeed", "ranks": count, "deadline_s": 300} | more
    )


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return sum(float((first[name] - second[name]).pow(2).sum()) for name in first) ** 0.5


@cache
def reference(
    model: Path, bf16: bool, **more: Any
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], float]:
    """The torch trainer's metrics and weights, and the distance of these from the start."""
    trainer = TorchTrainer(model, SETTINGS.model_copy(update={"bf16": bf16, **more}), CONTEXT_TOKENS, seed=0)
    before = trainer.export_weights()
    metrics = [trainer.step(made_samples(seed, count=10)) for seed in range(UPDATES)]
    return metrics, trainer.export_weights(), distance(before, trainer.export_weights())


def learns_like_the_torch_trainer(
    model: Path, ranks: Ranks, variant: str, bf16: bool, more: dict[str, Any]
) -> None:
    wanted, weights, way = reference(model, bf16, **more)
    settings = with_ranks(SETTINGS, bf16=bf16, **more, **VARIANTS[variant])
    trainer = DeepSpeedTrainer(model, settings, CONTEXT_TOKENS, seed=0, ranks=ranks)
    for seed in range(UPDATES):
        metrics = trainer.step(made_samples(seed, count=10))
        apart = ["kl"] if settings.kl_coef else []
        for name in (
            "loss",
            "grad_norm",
            "clip_share",
            "entropy",
            "injector/loss",
            "solver/ratio",
            "action_tokens",
            "lr",
            *apart,
        ):
            # In bf16 only the first update starts from equal weights. Adam's first steps are nearly signs.
            rel, least = ((0.05 if seed == 0 else 0.2), 2e-3) if bf16 else (1e-3, 1e-6)
            assert metrics[name] == pytest.approx(wanted[seed][name], rel=rel, abs=least), name
    assert metrics["micro_batches"] > 1
    reached = trainer.export_weights()
    print(
        f"{variant}, bf16 {bf16}: {distance(reached, weights) / way:.2g} of the way, "
        f"{largest_difference(reached, weights):.2g} at most"
    )
    assert distance(reached, weights) < TOLERANCE[bf16] * way


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_reach_what_the_torch_trainer_reaches(
    model: Path, ranks: Ranks, variant: str, bf16: bool
) -> None:
    learns_like_the_torch_trainer(model, ranks, variant, bf16, {})


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        ("cwm", "stage 2 with packing"),
        ("cwm", "stage 0 with sequence parallelism"),
        ("cwm", "stage 3 for long sequences"),
        ("mistral", "stage 1"),
        ("gemma2", "stage 3"),
        ("gemma3_text", "stage 1 with sequence parallelism"),
        ("gemma3_text", "stage 2 with packing"),
        ("granite", "stage 3 with logits in chunks"),
    ],
)
def test_two_ranks_train_windows_caps_and_scales_like_the_torch_trainer(
    kind: str, variant: str, ranks: Ranks, tmp_path: Path
) -> None:
    learns_like_the_torch_trainer(make_tiny_shape(tmp_path / "model", kind), ranks, variant, False, {})


@needs_peft
@pytest.mark.parametrize(
    ("variant", "bf16"),
    [
        ("stage 0", False),
        ("stage 1", True),
        ("stage 2", False),
        ("stage 3", False),
        ("stage 2 with offload", False),
        ("stage 3 with activation checkpointing", True),
    ],
)
def test_two_ranks_with_an_adapter_reach_what_the_torch_trainer_reaches(
    model: Path, ranks: Ranks, variant: str, bf16: bool
) -> None:
    learns_like_the_torch_trainer(model, ranks, variant, bf16, ADAPTER)


@needs_peft
@pytest.mark.parametrize(
    "variant",
    [
        "stage 0",
        "stage 2",
        "stage 2 with sequence parallelism",  # with logits in chunks
        "stage 3",
        "stage 3 with activation checkpointing",
    ],
)
def test_two_ranks_with_an_adapter_have_its_base_as_the_reference_policy(
    model: Path, ranks: Ranks, variant: str
) -> None:
    learns_like_the_torch_trainer(model, ranks, variant, False, ADAPTER | {"kl_coef": 2.0})


@pytest.mark.parametrize(
    ("variant", "bf16"),
    [
        ("stage 0", False),
        ("stage 2 with packing", False),
        ("stage 2 with sequence parallelism", False),  # with logits in chunks
        ("stage 3", False),
        ("stage 3", True),
    ],
)
def test_the_kl_penalty_on_two_ranks_equals_the_torch_trainers(
    model: Path, ranks: Ranks, variant: str, bf16: bool
) -> None:
    learns_like_the_torch_trainer(model, ranks, variant, bf16, {"kl_coef": 2.0})


def test_a_resumed_run_keeps_its_reference_policy(model: Path, ranks: Ranks, tmp_path: Path) -> None:
    settings = with_ranks(SETTINGS, bf16=False, kl_coef=2.0, zero_stage=3)
    straight = DeepSpeedTrainer(model, settings, CONTEXT_TOKENS, seed=0, ranks=ranks)
    for seed in range(2):
        straight.step(made_samples(seed, count=10))
    straight.save(tmp_path / "checkpoint")
    wanted = straight.step(made_samples(2, count=10))
    resumed = DeepSpeedTrainer(model, settings, CONTEXT_TOKENS, seed=0, ranks=ranks)
    resumed.load(tmp_path / "checkpoint")
    metrics = resumed.step(made_samples(2, count=10))
    assert wanted["kl"] > 1e-4
    for name in ("kl", "loss", "grad_norm"):
        assert metrics[name] == pytest.approx(wanted[name], rel=1e-3), name


@pytest.mark.parametrize("check", conformance.ALL_CHECKS, ids=lambda check: check.__name__)
def test_a_trainer_of_two_ranks(check: conformance.Check, ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check(
        lambda folder, settings: DeepSpeedTrainer(
            folder, with_ranks(settings), CONTEXT_TOKENS, seed=0, ranks=ranks
        ),
        make_tiny_model(tmp_path / "model"),
        tmp_path / "empty",
    )


@pytest.mark.parametrize(("stage", "bf16"), [(0, False), (1, False), (2, False), (3, True)])
def test_every_stage_continues_from_its_own_checkpoint_and_from_another_stages(
    model: Path, ranks: Ranks, tmp_path: Path, stage: int, bf16: bool
) -> None:
    settings = with_ranks(SETTINGS, bf16=bf16, zero_stage=stage)
    first = DeepSpeedTrainer(model, settings, CONTEXT_TOKENS, seed=0, ranks=ranks)
    first.step(made_samples(0))
    first.save(tmp_path / "checkpoint")
    first.step(made_samples(1))
    straight = first.export_weights()
    for other, tolerance in ((stage, 0.0), (3 - stage, 1e-2 if bf16 else 5e-5)):
        resumed = DeepSpeedTrainer(
            model, with_ranks(settings, zero_stage=other), CONTEXT_TOKENS, seed=1, ranks=ranks
        )
        resumed.load(tmp_path / "checkpoint")
        resumed.step(made_samples(1))
        assert largest_difference(straight, resumed.export_weights()) <= tolerance


@pytest.mark.parametrize("adapter", [{}, pytest.param(ADAPTER, marks=needs_peft)], ids=["weights", "adapter"])
def test_a_checkpoint_of_two_ranks_continues_on_three_which_do_not_divide_the_model_evenly(
    model: Path, ranks: Ranks, three_ranks: Ranks, tmp_path: Path, adapter: dict[str, int]
) -> None:
    first = DeepSpeedTrainer(
        model, with_ranks(SETTINGS, zero_stage=3, **adapter), CONTEXT_TOKENS, seed=0, ranks=ranks
    )
    first.step(made_samples(0))
    first.save(tmp_path / "checkpoint")
    first.step(made_samples(1))
    straight = first.export_weights()
    for stage in (3, 1):
        resumed = DeepSpeedTrainer(
            model,
            with_ranks(SETTINGS, 3, zero_stage=stage, **adapter),
            CONTEXT_TOKENS,
            seed=1,
            ranks=three_ranks,
        )
        resumed.load(tmp_path / "checkpoint")
        resumed.step(made_samples(1))
        assert largest_difference(straight, resumed.export_weights()) < 5e-5


@pytest.mark.parametrize("adapter", [{}, pytest.param(ADAPTER, marks=needs_peft)], ids=["weights", "adapter"])
def test_weights_are_yielded_layer_by_layer_in_the_precision_of_the_computation(
    model: Path, ranks: Ranks, adapter: dict[str, int]
) -> None:
    trainer = DeepSpeedTrainer(
        model, with_ranks(SETTINGS, zero_stage=3, bf16=True, **adapter), CONTEXT_TOKENS, seed=0, ranks=ranks
    )
    trainer.step(made_samples(0))
    masters = list(trainer.weights())
    computed = list(trainer.weights(as_computed=True))
    assert [sorted(group) for group in masters] == [sorted(group) for group in computed]
    assert len(masters) == 4  # the embedding, two layers, the last norm
    for wanted, got in zip(masters, computed, strict=True):
        for name, value in got.items():
            assert value.dtype == (torch.bfloat16 if "proj" in name else torch.float32), name
            assert torch.equal(wanted[name].to(value.dtype), value), name
    assert (
        largest_difference(trainer.export_weights(), {k: v for group in masters for k, v in group.items()})
        == 0
    )


@needs_peft
@pytest.mark.parametrize(
    "check",
    [
        conformance.continues_as_if_never_stopped,
        conformance.writes_a_model_folder,
        conformance.saves_before_the_first_update,
        conformance.goes_back_to_a_checkpoint,
        conformance.drops_a_gradient_that_is_not_finite,
    ],
    ids=lambda check: check.__name__,
)
def test_a_trainer_of_two_ranks_with_an_adapter(
    check: conformance.Check, ranks: Ranks, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    check(
        lambda folder, settings: DeepSpeedTrainer(
            folder, with_ranks(settings, **ADAPTER), CONTEXT_TOKENS, seed=0, ranks=ranks
        ),
        make_tiny_model(tmp_path / "model"),
        tmp_path / "empty",
    )


@needs_peft
@pytest.mark.parametrize("stage", [0, 1])
def test_an_adapter_continues_from_its_own_checkpoint_and_from_another_stages(
    model: Path, ranks: Ranks, tmp_path: Path, stage: int
) -> None:
    settings = with_ranks(SETTINGS, bf16=False, zero_stage=stage, **ADAPTER)
    first = DeepSpeedTrainer(model, settings, CONTEXT_TOKENS, seed=0, ranks=ranks)
    first.step(made_samples(0))
    first.save(tmp_path / "checkpoint")
    first.step(made_samples(1))
    straight = first.export_weights()
    for other, tolerance in ((stage, 0.0), (3 - stage, 5e-5)):
        resumed = DeepSpeedTrainer(
            model, with_ranks(settings, zero_stage=other), CONTEXT_TOKENS, seed=1, ranks=ranks
        )
        resumed.load(tmp_path / "checkpoint")
        resumed.step(made_samples(1))
        assert largest_difference(straight, resumed.export_weights()) <= tolerance


@needs_peft
@pytest.mark.parametrize("stage", [1, 3])
def test_before_the_first_step_the_merged_weights_are_the_base_exactly_though_bf16_travels(
    model: Path, ranks: Ranks, stage: int
) -> None:
    trainer = DeepSpeedTrainer(
        model,
        with_ranks(SETTINGS, bf16=True, zero_stage=stage, **ADAPTER),
        CONTEXT_TOKENS,
        seed=0,
        ranks=ranks,
    )
    base = TorchTrainer(model, SETTINGS, CONTEXT_TOKENS, seed=0).export_weights()
    assert largest_difference(trainer.export_weights(), base) == 0
    trainer.step(made_samples(0))
    assert largest_difference(trainer.export_weights(), base) > 0


@needs_peft
def test_a_seed_gives_the_same_adapter_on_every_trainer_and_any_number_of_ranks(
    model: Path, ranks: Ranks, three_ranks: Ranks, tmp_path: Path
) -> None:
    made: dict[str, bytes] = {}
    for name, trainer in {
        "torch": lambda: TorchTrainer(model, SETTINGS.model_copy(update=ADAPTER), CONTEXT_TOKENS, seed=3),
        "two ranks": lambda: DeepSpeedTrainer(
            model, with_ranks(SETTINGS, zero_stage=1, **ADAPTER), CONTEXT_TOKENS, seed=3, ranks=ranks
        ),
        "three": lambda: DeepSpeedTrainer(
            model, with_ranks(SETTINGS, 3, zero_stage=3, **ADAPTER), CONTEXT_TOKENS, seed=3, ranks=three_ranks
        ),
    }.items():
        trainer().save(tmp_path / name)
        made[name] = (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()
        moments = [load_file(file) for file in (tmp_path / name).glob("optimizer/*.safetensors")]
        assert not any(moments), "nothing was learned yet"
    assert made["torch"] == made["two ranks"] == made["three"]


@needs_peft
def test_a_checkpoint_of_another_adapter_is_refused_and_the_trainer_goes_on(
    model: Path, ranks: Ranks, tmp_path: Path
) -> None:
    made = DeepSpeedTrainer(
        model, with_ranks(SETTINGS, zero_stage=1, **ADAPTER), CONTEXT_TOKENS, seed=0, ranks=ranks
    )
    made.step(made_samples(0))
    made.save(tmp_path / "checkpoint")
    held = [name for file in (tmp_path / "checkpoint" / "optimizer").iterdir() for name in load_file(file)]
    assert len(held) == 2 * 2 * 14
    assert all("lora_" in name for name in held)
    for rank in (0, 4):
        adapter = ADAPTER | {"lora_rank": rank}
        other = DeepSpeedTrainer(
            model, with_ranks(SETTINGS, zero_stage=1, **adapter), CONTEXT_TOKENS, seed=0, ranks=ranks
        )
        with pytest.raises(
            RunError,
            match=rf"made with trainer\.lora_rank = 8, and this trainer has trainer\.lora_rank = {rank}",
        ):
            other.load(tmp_path / "checkpoint")
        other.step(made_samples(0))


@needs_peft
def test_recomputing_with_an_adapter_keeps_no_more_than_a_layer_gathered(
    tmp_path: Path, three_ranks: Ranks
) -> None:
    """Frozen weights have no gradient hook that frees them.

    Some releases of DeepSpeed kept them all to the end.
    """
    model = make_tiny_model(tmp_path / "model", layers=5)
    settings = with_ranks(SETTINGS, 3, zero_stage=3, activation_checkpointing=True, **ADAPTER)
    DeepSpeedTrainer(model, settings, CONTEXT_TOKENS, seed=0, ranks=three_ranks).step(
        made_samples(0, count=3)
    )
    for elements in three_ranks.call("gathered"):
        assert 0 < elements["forward"] < elements["layer"]
        assert 0 < elements["recomputing"] <= elements["layer"]
        assert elements["left"] == 0


@needs_peft
def test_a_checkpoint_over_another_model_is_refused(model: Path, three_ranks: Ranks, tmp_path: Path) -> None:
    """The last test of the three ranks, which end here."""
    settings = with_ranks(SETTINGS, 3, zero_stage=3, **ADAPTER)
    DeepSpeedTrainer(model, settings, CONTEXT_TOKENS, seed=0, ranks=three_ranks).save(tmp_path / "checkpoint")
    other = make_tiny_model(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 0.01
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    trainer = DeepSpeedTrainer(other, settings, CONTEXT_TOKENS, seed=0, ranks=three_ranks)
    with pytest.raises(RunError, match=r"made over another model: its model\.layers\.1\.mlp\.up_proj"):
        trainer.load(tmp_path / "checkpoint")


def test_a_model_that_does_not_load_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no model folder .*config\.json"):
        DeepSpeedTrainer(tmp_path / "nowhere", with_ranks(SETTINGS, 1), CONTEXT_TOKENS, seed=0)


def test_a_part_of_ones_own_is_loaded_in_every_rank(model: Path, ranks: Ranks) -> None:
    own, ours = (
        DeepSpeedTrainer(
            model, with_ranks(SETTINGS, aggregation=name), CONTEXT_TOKENS, seed=0, ranks=ranks
        ).step(made_samples(0, count=10))
        for name in ("selfplay.algorithm.loss:token", "token")
    )
    assert own["loss"] == ours["loss"] != 0


def test_a_part_that_a_rank_cannot_load_stops_the_start_with_its_name(model: Path) -> None:
    """With ranks of its own, since they end."""
    settings = with_ranks(SETTINGS, clipping="nowhere:clip")
    with pytest.raises(PartError, match=r"trainer\.clipping = 'nowhere:clip' cannot be loaded"):
        DeepSpeedTrainer(model, settings, CONTEXT_TOKENS, seed=0)


def test_a_rank_killed_in_a_step_is_named_and_no_rank_is_left(model: Path, ranks: Ranks) -> None:
    """The last test: the ranks of all others end here."""
    trainer = DeepSpeedTrainer(model, with_ranks(SETTINGS, zero_stage=2), CONTEXT_TOKENS, seed=0, ranks=ranks)
    trainer.step(made_samples(0))
    pids = trainer.rank_pids
    killer = threading.Timer(0.3, lambda: os.kill(pids[1], signal.SIGKILL))
    killer.start()
    with pytest.raises(TrainerError, match=r"rank 1 of 2 was killed by SIGKILL") as caught:
        for seed in range(1000):
            trainer.step(made_samples(seed, count=40))
    assert caught.value.rank == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(TrainerError, match="ranks are gone"):
        trainer.step(made_samples(1))


def test_the_torch_trainer_refuses_a_checkpoint_that_is_not_its_own(model: Path, tmp_path: Path) -> None:
    (tmp_path / "trainer.json").write_text("{}")
    with pytest.raises(RunError, match="cannot continue from the checkpoint"):
        TorchTrainer(model, SETTINGS, CONTEXT_TOKENS, seed=0).load(tmp_path)
