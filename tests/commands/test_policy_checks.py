"""What settings, config.json and the tokenizer alone refuse, before anything is fetched, built or loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfplay.cluster.fit import check_least_memory
from selfplay.cluster.memory import read_shape
from selfplay.cluster.seats import Node
from selfplay.commands import train
from selfplay.commands.dry_run import dry_run_training
from selfplay.commands.policies import check_files, fitted_context
from selfplay.config import Config, load_config
from selfplay.engines.architectures import layer_windows, longest_text, read_architecture
from selfplay.errors import ConfigError, EngineError, PlacementError, SelfplayError
from tiny_policy import build_tiny_tokenizer

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 400,
    "max_position_embeddings": 4096,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture
def policy(tokenizer: Path, tmp_path: Path) -> Path:
    """A folder with a tokenizer, whose config.json the tests write. Its weights cannot be loaded."""
    folder = tmp_path / "policy"
    folder.mkdir()
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "model.safetensors").touch()
    describe(folder, model_type="qwen3")
    (tmp_path / "list.txt").write_text("pypi:toolz==1.0.0\n")
    return folder


def describe(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps(SIZES | values))


def settings(folder: Path, *overrides: str) -> Config:
    return load_config(None, [f"policy.model={folder}", "engine.type=hf", *overrides])


EXPERTS = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


@pytest.mark.parametrize(
    ("described", "overrides", "said"),
    [
        ({"model_type": "no_such"}, [], "config.json of .*no_such"),
        ({"model_type": "vit"}, [], "of type 'vit', which is no causal language model"),
        ({"model_type": "qwen3_next"}, [], "layers of type 'linear_attention'; .*Set engine.type = 'vllm'"),
        (
            {"model_type": "qwen3_next"},
            ["engine.type=scripted", "trainer.packing=true"],
            "over to the next episode of a row. Set trainer.packing = false",
        ),
        ({"model_type": "gpt_oss"}, [], "attention sinks, which the hf engine does not compute"),
        ({"model_type": "deepseek_v3"}, [], "latent attention"),
        (
            {"model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}},
            [],
            r"quantised weights \(fp8\), .*Set policy.model to its release in bfloat16",
        ),
        (
            EXPERTS,
            ["trainer.type=deepspeed"],
            r"mixture of experts \(num_experts = 4\).*Set trainer.type = 'torch'",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 4},
            [],
            "sliding-window layers without sliding_window",
        ),
    ],
)
def test_a_model_that_cannot_play_or_train_is_refused_by_its_config(
    policy: Path, described: dict[str, Any], overrides: list[str], said: str
) -> None:
    describe(policy, **described)
    with pytest.raises(EngineError, match=said):
        check_files(settings(policy, *overrides), str(policy))


@pytest.mark.parametrize(
    ("described", "overrides", "trains"),
    [
        ({"model_type": "qwen3"}, [], True),
        ({"model_type": "cwm"}, ["trainer.packing=true"], True),
        ({"model_type": "gemma2"}, [], True),
        (EXPERTS, [], True),
        ({"model_type": "gpt_oss"}, ["engine.type=scripted"], True),
        ({"model_type": "qwen3_next"}, ["engine.type=scripted"], True),
        (
            {"model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}},
            ["engine.type=scripted"],
            False,
        ),
        (EXPERTS, ["trainer.type=deepspeed"], False),
    ],
)
def test_a_model_passes_where_nothing_is_in_its_way(
    policy: Path, described: dict[str, Any], overrides: list[str], trains: bool
) -> None:
    describe(policy, **described)
    check_files(settings(policy, *overrides), str(policy), trains)


def test_a_policy_without_a_chat_template_is_refused(policy: Path) -> None:
    (policy / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match="has no chat template"):
        check_files(settings(policy), str(policy))


def test_a_folder_without_weights_is_refused_where_the_hf_engine_plays(policy: Path) -> None:
    (policy / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"no \*\.safetensors at .*policy"):
        check_files(settings(policy), str(policy))
    check_files(settings(policy, "engine.type=scripted"), str(policy))


@pytest.mark.parametrize("command", ["train", "dry run"])
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["agent.temperature=0.7"], "agent.temperature = 0.7: training samples at temperature 1"),
        (["agent.context_tokens=8192"], "made for 4096 tokens .*Set agent.context_tokens = 4096 or less"),
        (["trainer.type=deepspeed"], "mixture of experts"),
    ],
)
def test_a_run_that_would_go_wrong_is_refused_before_it_has_a_folder(
    policy: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    overrides: list[str],
    said: str,
) -> None:
    if "experts" in said:
        describe(policy, **EXPERTS)
        monkeypatch.setattr(train, "check_trainer", lambda _: None)  # DeepSpeed may be missing here
    monkeypatch.chdir(policy.parent)
    monkeypatch.setattr(train, "open_backend", lambda _: pytest.fail("something was started"))
    start = train.start_training if command == "train" else dry_run_training
    with pytest.raises(SelfplayError, match=said):
        start(Path("list.txt"), None, [f"policy.model={policy}", *overrides])
    assert not (policy.parent / "runs").exists()


def test_the_default_of_the_context_gives_way_to_the_policy_s_positions(policy: Path) -> None:
    assert fitted_context(settings(policy), str(policy)).agent.context_tokens == 4096
    chosen = settings(policy, "agent.context_tokens=4000")
    assert fitted_context(chosen, str(policy)) is chosen
    with pytest.raises(ConfigError, match="made for 4096 tokens"):
        fitted_context(settings(policy, "agent.context_tokens=4097"), str(policy))


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        (None, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "linear", "factor": 2.0}, 8192),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 512,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            4096,
        ),
    ],
)
def test_the_longest_text_counts_a_scaling_of_positions_once(
    policy: Path, scaling: dict[str, Any] | None, longest: int
) -> None:
    describe(policy, model_type="llama", rope_scaling=scaling)
    assert longest_text(read_architecture(str(policy))) == longest


def test_each_layer_has_the_window_of_its_kind(policy: Path) -> None:
    describe(policy, model_type="cwm", sliding_window=100)
    assert layer_windows(read_architecture(str(policy))) == (None, 100, 100, 100)
    describe(policy, model_type="mistral", sliding_window=100)
    assert layer_windows(read_architecture(str(policy))) == (100,) * 4
    describe(policy, model_type="qwen3", sliding_window=100)  # use_sliding_window is false
    assert layer_windows(read_architecture(str(policy))) == (None,) * 4


def test_a_machine_that_is_surely_too_small_is_named_with_the_figure() -> None:
    shape = read_shape("it", SIZES | {"hidden_size": 4096, "num_hidden_layers": 100})
    node = Node("here", 0, 0, 4, 8 << 30)
    with pytest.raises(
        PlacementError, match=r"training it takes at least \d+\.\d GiB .*this machine has 8.0"
    ):
        check_least_memory(load_config(None, ["engine.type=hf"]), shape, node)
    check_least_memory(load_config(None, []), read_shape("it", SIZES), node)
    with pytest.raises(PlacementError, match=r"a GPU has 8\.0 GiB"):
        check_least_memory(load_config(None, []), shape, Node("here", 1, 8 << 30, 4, 1 << 40))
