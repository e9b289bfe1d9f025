"""What long sequences need, in one process: windows, logits in chunks, offloaded activations, attention.

The ranks that share sequences are in test_deepspeed_trainer.py.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from selfplay.settings.learning import TrainerSettings
from selfplay.training.activations import HostActivations
from selfplay.training.batch import make_micro_batches
from selfplay.training.conformance import CONTEXT_TOKENS, SETTINGS, largest_difference, made_samples
from selfplay.training.deepspeed_trainer import windows_of_ranks
from selfplay.training.objective import WeightedBatch, add_token_weights, episode_weights
from selfplay.training.ranks.sequence_parallel import causal_attention, check_heads
from selfplay.training.torch_trainer import TorchTrainer
from selfplay.training.windows import cut_into_windows, model_inputs
from tiny_model import make_tiny_model

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None,
    reason="peft is not installed; get it with: pip install 'selfplay-swe[lora]'",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("policy") / "model")


def a_batch(packing: bool = False) -> WeightedBatch:
    samples = made_samples(1, count=4)
    batch = make_micro_batches(samples, 4096, packing)[0]
    return add_token_weights(batch, samples, episode_weights(samples, SETTINGS, CONTEXT_TOKENS))


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_windows_have_every_token_and_every_action_exactly_once(parts: int) -> None:
    batch = a_batch()
    windows = cut_into_windows(batch, parts)
    inputs = [model_inputs(window) for window in windows]
    tokens = torch.cat([token_ids for token_ids, *_ in inputs], dim=1)
    rows, length = batch.token_ids.shape
    assert torch.equal(tokens[:, :length], batch.token_ids)
    assert not tokens[:, length:].any()
    assert len({tuple(token_ids.shape) for token_ids, *_ in inputs}) == 1
    for (_, _, positions, position_ids), window in zip(inputs, windows, strict=True):
        assert window.window is not None and position_ids is not None
        assert position_ids[0].tolist() == list(range(*window.window))
        predicting = positions - 1  # in the window: the state before the token
        assert bool(((predicting >= 0) & (predicting < position_ids.shape[1])).all())
    found = sorted(
        (int(row), int(position), float(weight))
        for window in windows
        for row, position, weight in zip(
            window.action_rows, window.action_positions, window.weights, strict=True
        )
    )
    whole = zip(batch.action_rows, batch.action_positions, batch.weights, strict=True)
    assert found == sorted((int(row), int(position), float(weight)) for row, position, weight in whole)
    assert rows > 1


def test_packed_rows_are_not_cut() -> None:
    with pytest.raises(ValueError, match="packed rows"):
        cut_into_windows(a_batch(packing=True), 2)


def test_neighbouring_ranks_get_the_windows_of_the_same_micro_batches() -> None:
    first, second = a_batch(), a_batch()
    shares = windows_of_ranks([[first, None], [second, first]], 2)
    assert len(shares) == 4
    assert [[None if batch is None else batch.window for batch in share] for share in shares] == [
        [(0, 34), None],
        [(34, 68), None],
        [(0, 34), (0, 34)],
        [(34, 68), (34, 68)],
    ]


@pytest.mark.parametrize(
    ("bf16", "also"),
    [
        (False, {}),
        (True, {}),
        (False, {"kl_coef": 2.0}),
        pytest.param(False, {"kl_coef": 2.0, "lora_rank": 8}, marks=needs_peft),
    ],
)
def test_logits_in_chunks_and_offloaded_activations_change_no_update(
    model: Path, bf16: bool, also: dict[str, Any]
) -> None:
    settings = SETTINGS.model_copy(update={"bf16": bf16, **also})
    more = {"logit_tokens": 9, "activation_checkpointing": True, "offload_activations": True}
    plain, thrifty = (
        TorchTrainer(model, chosen, CONTEXT_TOKENS, seed=0)
        for chosen in (settings, TrainerSettings.model_validate(settings.model_dump() | more))
    )
    plain.threads = thrifty.threads = 1
    for seed in range(2):
        wanted, got = plain.step(made_samples(seed)), thrifty.step(made_samples(seed))
        for name, value in wanted.items():
            if "second" not in name and not name.endswith("_per_s") and name != "tokens_per_s":
                assert got[name] == pytest.approx(value, rel=1e-2 if bf16 else 1e-4, abs=1e-6), name
    assert largest_difference(plain.export_weights(), thrifty.export_weights()) < (5e-2 if bf16 else 1e-4)


def test_only_one_chunk_of_logits_exists_at_a_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = torch.nn.functional.linear

    def linear(hidden: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        if weight.shape[0] == 50:  # the head: one row for each word
            seen.append(hidden.shape[0])
        return real(hidden, weight, bias)

    trainer = TorchTrainer(model, SETTINGS.model_copy(update={"logit_tokens": 16}), CONTEXT_TOKENS, seed=0)
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    samples, trainer.threads = made_samples(0), 1
    trainer.step(samples)
    actions = sum(sample.action_tokens for sample in samples)
    assert max(seen) == 16
    assert sum(seen) == 2 * actions  # forward, and again in the backward pass


def test_the_inputs_of_checkpointed_layers_are_what_leaves_the_gpu(model: Path) -> None:
    from selfplay.engines.models import checkpoint_activations, load_causal_model

    loaded = load_causal_model(model, torch.float32).eval()
    checkpoint_activations(loaded)
    held, tokens, layers, hidden = HostActivations(), 64, 2, 32
    with held.collecting():
        states = loaded.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
    inputs = layers * tokens * hidden * 4
    last_norm = tokens * (3 * hidden + 2) * 4
    assert held.bytes == inputs + last_norm
    states.last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.base_model.parameters())


@pytest.mark.parametrize("window", [5, 16, 40, None])
def test_attention_in_blocks_equals_transformers_own(window: int | None) -> None:
    from transformers import AttentionInterface, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    kind = "full_attention" if window is None else "sliding_attention"
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        use_sliding_window=window is not None,
        sliding_window=window,
        layer_types=[kind, "full_attention"],
        initializer_range=0.3,
    )
    made = Qwen3ForCausalLM(config).eval()
    ids = torch.randint(50, (2, 40))
    wanted = made(input_ids=ids, use_cache=False).logits
    AttentionInterface.register("blocks", causal_attention)
    made.set_attn_implementation("blocks")
    torch.testing.assert_close(made(input_ids=ids, use_cache=False).logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_parallel": 2}, "does not divide ranks = 1"),
        (
            {"type": "deepspeed", "ranks": 2, "sequence_parallel": 2, "packing": True},
            "needs sequence_parallel",
        ),
        (
            {"type": "deepspeed", "offload_weights": True},
            "needs trainer.offload = true and trainer.zero_stage",
        ),
        ({"offload_weights": True}, "offload_weights = true needs trainer.type = 'deepspeed'"),
        ({"offload_activations": True}, "needs activation_checkpointing = true"),
        (
            {"type": "deepspeed", "zero_stage": 3, "logit_tokens": 64, "kl_coef": 0.1},
            "logit_tokens = 64 with kl_coef = 0.1 needs zero_stage 0, 1 or 2",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerSettings.model_validate(settings)


def test_a_model_whose_attention_cannot_be_shared_is_refused() -> None:
    from transformers import Qwen3Config

    from selfplay.errors import ConfigError

    config = Qwen3Config(num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=1)
    check_heads(config, 2)
    with pytest.raises(ConfigError, match="the model has 6 attention heads and 2 heads of keys"):
        check_heads(config, 4)
    config.layer_types = ["linear_attention"]
    with pytest.raises(ConfigError, match="this one has linear_attention"):
        check_heads(config, 2)
