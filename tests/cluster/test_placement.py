"""Placements, refusals and the remedies that they name. The memory formulas against real models."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from selfplay.cli import app
from selfplay.cluster.fit import _rank_memory, _rank_remedy
from selfplay.cluster.machines import planned_nodes, policy_shape
from selfplay.cluster.memory import (
    GIB,
    ModelShape,
    activation_bytes,
    adapter_parameters,
    cache_bytes_per_token,
    logit_bytes,
    read_shape,
    server_bytes,
    trainer_bytes,
    trainer_host_bytes,
)
from selfplay.cluster.placement import Placement, fewer, place, tensor_parallel
from selfplay.cluster.seats import Node, Seat
from selfplay.config import Config, build_config, load_config
from selfplay.engines import precision
from selfplay.errors import PlacementError
from selfplay.runtime.resources import resource
from selfplay.settings.learning import TrainerSettings
from selfplay.training.adapter import add_adapter

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed; get it with: pip install 'selfplay-swe[lora]'",
)
SMALL = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
}


SHAPE = ModelShape("m", 1024, 10, 8, 8, 128, 4096, 32000, False)


def recipe(gpus: int, *overrides: str) -> Config:
    return load_config(resource("recipes") / f"cluster-{gpus}.toml", overrides)


def planned(config: Config) -> Placement:
    return place(config, policy_shape(config), planned_nodes(config))


def eight(count: int = 1, gpu_gib: float = 80) -> list[Node]:
    return [Node(f"n{number}", 8, int(gpu_gib * GIB), 128, 1024 * GIB) for number in range(count)]


# -- sizes


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("Qwen3Config", {"num_hidden_layers": 3, "vocab_size": 4096, "tie_word_embeddings": True, **SMALL}),
        ("LlamaConfig", {"num_hidden_layers": 3, "vocab_size": 4096, "tie_word_embeddings": False, **SMALL}),
        ("CwmConfig", {}),  # as published: 32 billion
    ],
)
def test_a_shape_counts_the_parameters_that_the_real_model_has(kind: str, values: dict[str, Any]):
    import transformers

    config = getattr(transformers, kind)(**values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    real = sum(parameter.numel() for parameter in model.parameters())
    assert read_shape(kind, config.to_dict()).parameters == pytest.approx(real, rel=1e-3)


@pytest.mark.parametrize(("gpus", "billions"), [(1, 1.72), (8, 8.19), (512, 32.8)])
def test_the_recipes_describe_models_of_the_size_they_say(gpus: int, billions: float):
    assert policy_shape(recipe(gpus)).parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_carried_policy_is_read_from_its_own_folder():
    assert policy_shape(Config()).vocabulary == 1024


def test_a_mixture_of_experts_is_refused_by_name():
    with pytest.raises(PlacementError, match=r"m is a mixture of experts \(num_experts = 64\)"):
        read_shape("m", {"num_experts": 64, "hidden_size": 8})


def test_a_model_that_is_not_here_must_be_described():
    with pytest.raises(PlacementError, match=r"nobody/nothing is not on this machine.*policy\.shape"):
        policy_shape(load_config(None, ["policy.model=nobody/nothing"]))


# -- memory


@pytest.mark.parametrize("rank", [0, pytest.param(16, marks=needs_peft)])
@pytest.mark.parametrize("bf16", [True, False])
def test_activations_are_what_the_backward_pass_really_keeps(bf16: bool, rank: int):
    """Counts tensors that autograd keeps. The difference of two depths cancels head and embedding."""
    import transformers

    tokens = 256

    def kept(layers: int) -> int:
        config = transformers.Qwen3Config(num_hidden_layers=layers, vocab_size=64, **SMALL)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        add_adapter(model, TrainerSettings(lora_rank=rank), seed=0)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        seen: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            held.append(tensor)  # so that no address is used twice
            if storage.data_ptr() not in weights and not isinstance(tensor, torch.nn.Parameter):
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        held: list[torch.Tensor] = []
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            model.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
        # Autocast's copies of weights are kept too. They do not grow with tokens, so they are subtracted.
        copies = 2 * sum(p.numel() for p in model.parameters() if p.dim() == 2) * bf16
        return sum(seen.values()) - copies

    shape = read_shape("small", {"num_hidden_layers": 1, "vocab_size": 64, **SMALL})
    assert activation_bytes(shape, bf16, rank) == pytest.approx((kept(3) - kept(1)) / 2 / tokens, rel=0.2)


def states(settings: dict[str, Any]) -> dict[str, int]:
    config = build_config({"trainer": {"type": "deepspeed", "ranks": 4, **settings}})
    return trainer_bytes(SHAPE, config.trainer, 4096, 0.3)


def test_each_zero_stage_partitions_its_part_of_the_state():
    parameters = SHAPE.parameters
    held = {stage: states({"zero_stage": stage}) for stage in range(4)}
    named = {
        stage: tuple(round(parts[part] / parameters, 2) for part in ("weights", "gradients", "optimiser"))
        for stage, parts in held.items()
    }
    assert named == {0: (4, 4, 8), 1: (4, 4, 3), 2: (4, 1, 3), 3: (1, 1, 2)}


def test_offload_and_checkpointing_reduce_memory_as_computed():
    assert states({"zero_stage": 3, "offload": True})["optimiser"] == 0
    assert states({"activation_checkpointing": True})["activations"] < states({})["activations"] / 5


@needs_peft
@pytest.mark.parametrize("layers", [(), ("q_proj", "down_proj")])
def test_an_adapter_is_counted_as_large_as_the_real_one(layers: tuple[str, ...]):
    import transformers

    values = {"num_hidden_layers": 3, "vocab_size": 64, **SMALL}
    model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(**values))
    settings = TrainerSettings(lora_rank=8, lora_layers=layers)
    add_adapter(model, settings, seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapter_parameters(read_shape("small", values), settings) == trained


def test_with_an_adapter_only_its_weights_have_gradients_and_optimiser_state():
    shape = SHAPE
    factors = adapter_parameters(shape, TrainerSettings(lora_rank=16))
    assert 0 < factors < shape.parameters / 50
    for stage in range(4):
        held, whole = states({"zero_stage": stage, "lora_rank": 16}), states({"zero_stage": stage})
        assert held["weights"] == whole["weights"] + 4 * factors // (4 if stage == 3 else 1)
        for part in ("gradients", "optimiser"):
            assert held[part] / whole[part] == pytest.approx(factors / shape.parameters)
    offloaded = TrainerSettings(type="deepspeed", ranks=4, offload=True, lora_rank=16)
    assert trainer_host_bytes(shape, offloaded) == 4 * factors


def test_a_reference_policy_is_a_second_copy_of_the_weights_without_gradients():
    shape = SHAPE
    for stage in range(4):
        held, free = states({"zero_stage": stage, "kl_coef": 0.1}), states({"zero_stage": stage})
        assert held["weights"] == free["weights"] + 4 * shape.parameters // (4 if stage == 3 else 1)
        assert held["logits"] > free["logits"]
        assert [held[part] for part in ("gradients", "optimiser")] == [
            free[part] for part in ("gradients", "optimiser")
        ]
        adapter = {"zero_stage": stage, "lora_rank": 16}
        assert states(adapter | {"kl_coef": 0.1})["weights"] == states(adapter)["weights"]  # its base serves


def test_the_heads_logits_are_counted_for_action_tokens_alone():
    shape = SHAPE
    assert states({})["logits"] == int(16_384 * 0.3) * logit_bytes(shape)


def test_a_server_shares_its_weights_and_its_heads_over_its_gpus():
    shape = ModelShape("m", 4096, 36, 32, 8, 128, 12288, 151936, False)
    assert (
        cache_bytes_per_token(shape, 1)
        == 8 * cache_bytes_per_token(shape, 8)
        == 8 * cache_bytes_per_token(shape, 16)
        == 147_456
    )
    one, four = (server_bytes(shape, 40 * GIB, width, 64) for width in (1, 4))
    assert one["weights"] == pytest.approx(4 * four["weights"])
    assert sum(one.values()) == sum(four.values()) == 40 * GIB


# -- seats


def test_512_gpus_are_the_papers_64_and_448():
    placement = planned(recipe(512))
    assert len({seat.node for seat in placement.ranks}) == 8
    assert len({(seat.node, seat.gpus) for seat in placement.ranks}) == 64
    assert [seat.gpus for seat in placement.servers] == [tuple(range(8))] * 56
    assert {seat.node for seat in placement.ranks}.isdisjoint(seat.node for seat in placement.servers)
    assert sum(placement.episodes) == 4096
    assert placement.notes == ()


@pytest.mark.parametrize("gpus", [1, 8, 512])
def test_every_cluster_recipe_fits_its_gpus(gpus: int):
    placement = planned(recipe(gpus))
    assert sum(placement.rank_memory.values()) <= placement.rank_budget
    assert placement.cached_tokens >= recipe(gpus).agent.context_tokens


def test_on_one_gpu_trainer_and_server_share_it():
    placement = planned(recipe(1))
    assert placement.shares_gpus
    assert placement.ranks == placement.servers == (Seat(0, (0,)),)


def test_ranks_leave_a_whole_node_to_a_server_that_needs_one():
    config = recipe(
        8, "trainer.ranks=4", "engine.servers=1", 'engine.options=["--tensor-parallel-size", "8"]'
    )
    placement = place(config, policy_shape(config), [*eight(1), Node("half", 4, 80 * GIB, 64, 512 * GIB)])
    assert {seat.node for seat in placement.ranks} == {1}
    assert placement.servers == (Seat(0, tuple(range(8))),)


def test_episodes_go_where_cpus_are_free():
    config = recipe(8)
    placement = place(config, policy_shape(config), [*eight(), Node("sandboxes", 0, 0, 64, 256 * GIB)])
    assert placement.episodes == (82, 46)  # 128 CPUs less 4 ranks and 4 servers of 2, and 64: 116 to 64
    assert sum(placement.episodes) == config.train.episodes_in_flight


def test_without_gpus_everything_is_distributed_round_robin_over_the_nodes():
    config = build_config(
        {"trainer": {"type": "deepspeed", "ranks": 3}, "engine": {"type": "vllm", "servers": 2}}
    )
    placement = place(config, policy_shape(config), [Node(name, 0, 0, 8, 32 * GIB) for name in "ab"])
    assert placement.ranks == (Seat(0), Seat(1), Seat(0))
    assert placement.servers == (Seat(0), Seat(1))


# -- refusals


def test_a_rank_without_gpus_is_counted_in_the_precision_of_its_processor(monkeypatch: pytest.MonkeyPatch):
    def activations(has_bf16: bool, **trainer: Any) -> int:
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
        return _rank_memory(build_config({"trainer": trainer}), SHAPE, on_gpus=False)["activations"]

    assert activations(True) < activations(False)
    assert activations(True) == activations(False, bf16=True)
    assert activations(False) == activations(True, bf16=False)


def test_a_rank_that_does_not_fit_is_refused_with_figures_and_a_change_that_fits():
    config = recipe(8, "trainer.activation_checkpointing=false")
    with pytest.raises(
        PlacementError,
        match=r"needs \d+\.\d GiB \(activations .*a GPU of 80\.0 GiB has 76\.0 GiB "
        r".*activation_checkpointing = true",
    ):
        planned(config)
    assert planned(recipe(8))


def test_a_context_that_one_gpu_cannot_hold_is_refused_with_the_ranks_that_can_share_it():
    long = ("agent.context_tokens=131072", "trainer.batch_tokens=131072")
    with pytest.raises(PlacementError, match=r"It fits with trainer\.sequence_parallel = 8\."):
        planned(recipe(512, *long))
    assert planned(recipe(512, *long, "trainer.sequence_parallel=8"))


def test_the_papers_recipe_fits_its_512_gpus_at_131072_tokens():
    config = load_config(resource("recipes") / "paper.toml")
    assert config.agent.context_tokens == config.trainer.batch_tokens == 131_072
    placement = planned(config)
    assert {node.gpu_bytes for node in placement.nodes} == {80 * GIB}
    assert sum(placement.rank_memory.values()) <= placement.rank_budget
    assert (len(placement.ranks), len(placement.servers)) == (64, 56)


def long_context(**settings: Any) -> dict[str, int]:
    values = {"type": "deepspeed", "ranks": 8, "activation_checkpointing": True, "batch_tokens": 32_768}
    config = build_config({"trainer": values | settings})
    return trainer_bytes(SHAPE, config.trainer, 32_768, 0.3)


def test_ranks_that_share_sequences_share_activations_and_logits():
    alone, shared = long_context(), long_context(sequence_parallel=8)
    exchanged = 2 * 2 * (SHAPE.query + SHAPE.key)  # bytes a token, in bf16
    assert shared["activations"] == alone["activations"] // 8 + 32_768 // 8 * exchanged
    assert shared["logits"] == pytest.approx(alone["logits"] / 8, rel=1e-3)
    for part in ("weights", "gradients", "optimiser"):
        assert shared[part] == alone[part], part


def test_logits_in_chunks_do_not_grow_with_the_context():
    chunked = long_context(logit_tokens=1024)
    actions, head = int(32_768 * 0.3), 2 * SHAPE.vocabulary * SHAPE.hidden
    assert chunked["logits"] == 1024 * logit_bytes(SHAPE) + actions * 8 * SHAPE.hidden + head
    assert chunked["logits"] < long_context()["logits"] / 5


@pytest.mark.parametrize("stage", [2, 3])
def test_a_proposed_change_is_one_that_the_settings_allow(stage: int):
    values = {"type": "deepspeed", "ranks": 2, "zero_stage": stage, "kl_coef": 0.1, "batch_tokens": 32_768}
    values |= {"activation_checkpointing": True}
    config = build_config({"trainer": values, "agent": {"context_tokens": 32_768}})
    proposed = {_rank_remedy(config, SHAPE, budget * GIB // 4) for budget in range(1, 200)}
    assert len(proposed) > 3
    for remedy in proposed:
        changes = re.findall(r"trainer\.(\w+) = (\w+)", remedy)
        build_config({"trainer": values | {name: json.loads(value) for name, value in changes}})
    assert any("trainer.logit_tokens = " in remedy for remedy in proposed) == (stage < 3)


def test_what_is_offloaded_is_counted_in_main_memory_instead():
    inputs = 32_768 * 4 * SHAPE.layers * SHAPE.hidden
    moved = {"offload_activations": True, "offload": True, "offload_weights": True}
    here, there = long_context(), long_context(**moved)
    assert here["activations"] - there["activations"] == inputs
    assert (there["weights"], there["optimiser"], there["gradients"]) == (0, 0, 0)
    settings = TrainerSettings(
        type="deepspeed", ranks=8, batch_tokens=32_768, activation_checkpointing=True, **moved
    )
    share = -(-4 * SHAPE.parameters // 8)
    assert trainer_host_bytes(SHAPE, settings, 4096) == 5 * share + inputs


@pytest.mark.parametrize(("heads", "kv_heads", "fits"), [(8, 8, True), (8, 2, True), (6, 2, False)])
def test_ranks_that_cannot_share_the_heads_are_refused(heads: int, kv_heads: int, fits: bool):
    config = build_config({"trainer": {"type": "deepspeed", "ranks": 4, "sequence_parallel": 4}})
    shape = replace(SHAPE, heads=heads, kv_heads=kv_heads)
    if fits:
        assert place(config, shape, eight())
    else:
        with pytest.raises(PlacementError, match=rf"sequence_parallel = 4: m has {heads} attention heads"):
            place(config, shape, eight())


def test_a_server_that_does_not_fit_is_refused_with_a_change_that_fits():
    with pytest.raises(
        PlacementError, match=r"weights take 61\.\d GiB.*It fits with engine\.gpu_memory = 0\.9"
    ) as caught:
        planned(recipe(512, "engine.options=[]", "engine.gpu_memory=0.8"))
    assert "Qwen/Qwen3-32B" in str(caught.value)


def test_too_few_gpus_are_refused_with_the_number_of_servers_that_fit():
    with pytest.raises(
        PlacementError,
        match=r"64 trainer rank\(s\) and 56 rollout server\(s\) of 8 GPU\(s\) need 512 GPUs"
        r".*504 GPU.*Set engine\.servers = 55",
    ):
        config = recipe(512)
        place(config, policy_shape(config), planned_nodes(config)[:-1])


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(
        PlacementError, match=r"trainer\.ranks = 9, and the cluster has 8 GPU\(s\) on 1 node\(s\)"
    ):
        planned(recipe(8, "trainer.ranks=9"))


def test_main_memory_that_cannot_hold_what_is_offloaded_is_refused():
    config = recipe(8, "trainer.offload=true")
    with pytest.raises(
        PlacementError,
        match=r"n has 64\.0 GiB of main memory; 4 trainer rank\(s\) with 30\.5 GiB.*offload = false",
    ):
        place(config, policy_shape(config), [Node("n", 8, 80 * GIB, 128, 64 * GIB)])


def test_a_pipeline_is_refused():
    with pytest.raises(PlacementError, match="pipeline"):
        tensor_parallel(["-pp=2"])
    assert tensor_parallel(["--max-num-batched-tokens", "4096", "-tp", "4"]) == 4


def test_a_smaller_cluster_gets_fewer_servers_and_then_fewer_ranks():
    config = recipe(512)
    nodes = planned_nodes(config)
    fitting, placement = fewer(config, policy_shape(config), nodes[:-2])
    assert (fitting.trainer.ranks, len(placement.servers)) == (64, 54)
    small = recipe(8, "trainer.ranks=4", "engine.servers=4")
    fitting, placement = fewer(small, policy_shape(small), [Node("n", 4, 141 * GIB, 64, 512 * GIB)])
    assert (fitting.trainer.ranks, len(placement.servers)) == (2, 2)


def test_an_evaluation_has_no_ranks_so_servers_get_all_gpus_and_what_is_left_decides_their_number():
    config = recipe(8, "engine.servers=8", "trainer.ranks=4")
    shape = policy_shape(config)
    with pytest.raises(PlacementError, match=r"4 trainer rank\(s\) and 8 rollout server\(s\)"):
        place(config, shape, eight())
    placement = place(config, shape, eight(), trains=False)
    assert (placement.ranks, len(placement.servers), placement.shares_gpus) == ((), 8, False)
    fitting, placement = fewer(config, shape, [Node("n", 3, 80 * GIB, 64, 512 * GIB)], trains=False)
    assert (fitting.engine.servers, len(placement.servers)) == (3, 3)
    with pytest.raises(PlacementError, match=r"^1 rollout server\(s\) of 8 GPU.*fit. Set a smaller [^,]*\.$"):
        wide = recipe(8, "engine.servers=1", 'engine.options=["-tp=8"]')
        place(wide, shape, [Node("n", 4, 80 * GIB, 64, 512 * GIB)], trains=False)


def test_a_crowded_node_is_noted():
    config = recipe(8, "train.episodes_in_flight=2000")
    assert any("test runs will wait for each other" in note for note in planned(config).notes)


# -- the command


def test_dry_run_prints_placement_and_memory_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    lines = resource("recipes") / "quickstart-repos.txt"
    result = CliRunner().invoke(
        app,
        [
            "train",
            "--dry-run",
            "--repos",
            str(lines),
            "--config",
            str(resource("recipes") / "cluster-512.toml"),
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert "node-0 … node-7 (8)" in result.output
    assert "0–55 × 8 GPUs" in result.output
    assert "together" in result.output
    assert list(tmp_path.iterdir()) == []


def test_dry_run_asks_for_repositories():
    result = CliRunner().invoke(app, ["train", "--dry-run"])
    assert result.exit_code == 2
    assert "--repos" in result.output
