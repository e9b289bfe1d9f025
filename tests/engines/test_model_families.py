"""Families of models beside Llama and Qwen: windows, capped scores, several rotary bases, experts.

What the engine and the trainer compute must equal transformers' eager forward pass over the whole text.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfplay.engines import probe
from selfplay.engines.base import GenerationRequest, Sampling
from selfplay.engines.drafts import RowDrafts
from selfplay.engines.hf_engine import HFEngine
from selfplay.engines.models import load_causal_model
from selfplay.errors import EngineError
from selfplay.training.batch import Sample, make_micro_batches
from selfplay.training.objective import action_logits
from tiny_model import SHAPES, make_tiny_shape


@pytest.fixture(scope="module", params=sorted(SHAPES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_shape(tmp_path_factory.mktemp("shape") / request.param, request.param)


def eager(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def plain_logprobs(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Of each token from the second on, by one forward pass without a cache."""
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    return scores[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def tokens(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, 46, (length,), generator=generator).tolist())


def test_the_engine_equals_the_whole_forward_pass_over_turns_drafts_and_shared_prefixes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong drafts go beyond the window and are taken back."""
    model = eager(folder)
    offered = []

    def guess(row: RowDrafts, most: int) -> list[int]:
        right = row.guessed(row, most)  # type: ignore[attr-defined]
        offered.append(len(right or [5] * most))
        return right or [5] * most

    monkeypatch.setattr(RowDrafts, "guessed", staticmethod(RowDrafts.guess), raising=False)
    monkeypatch.setattr(RowDrafts, "guess", guess)
    monkeypatch.setattr("selfplay.engines.hf_engine._MAX_PREFILL_TOKENS", 16)
    shared = tokens(9, 40)
    texts = [shared + tokens(number, 3 + 6 * number) for number in range(3)] + [tokens(7, 2)]
    engine = HFEngine(folder, max_batch=4, max_tokens_context=200)
    reused = 0.0
    for turn in range(2):
        asked = [
            GenerationRequest(ids, 12, 10 * turn + number, frozenset()) for number, ids in enumerate(texts)
        ]
        for number, done in enumerate(engine.generate(asked, Sampling())):
            whole = texts[number] + done.token_ids
            expected = plain_logprobs(model, whole)[-12:]
            torch.testing.assert_close(torch.tensor(done.logprobs), expected, rtol=1e-3, atol=1e-4)
            texts[number] = whole + tokens(turn, 9)
            reused += done.metadata["reused"]
    engine.close()
    assert reused > 40 and max(offered) > 8


@pytest.mark.parametrize("packing", [False, True])
def test_the_trainer_s_logits_and_gradients_equal_the_whole_forward_pass(folder: Path, packing: bool) -> None:
    truth, model = eager(folder), load_causal_model(folder, torch.float32)
    probe.check_head("it", model)
    samples = [
        Sample(tokens(number, length), [0, *[1] * (length - 1)], [-1.0] * length, 1.0, "solver")
        for number, length in enumerate((40, 23, 12))
    ]
    losses = torch.zeros(())
    for batch in make_micro_batches(samples, 1000, packing):
        assert (batch.position_ids is not None) == packing
        logits = action_logits(
            model, batch.token_ids, batch.action_rows, batch.action_positions, batch.position_ids
        )
        scores = torch.log_softmax(logits, -1)
        targets = batch.token_ids[batch.action_rows, batch.action_positions]
        found = scores.gather(1, targets[:, None])[:, 0]
        for number, sample in enumerate(samples):
            own = found[batch.action_samples == number].detach()
            expected = plain_logprobs(truth, tuple(sample.token_ids))
            torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-4)
        losses = losses + found.sum()
    losses.backward()
    for sample in samples:
        ids = torch.tensor([sample.token_ids])
        scores = torch.log_softmax(truth(ids).logits[0], -1)
        scores[:-1].gather(1, ids[0, 1:, None]).sum().backward()
    found_norms = {n: p.grad.norm() for n, p in model.named_parameters() if p.grad is not None}
    for name, parameter in truth.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found_norms[name], parameter.grad.norm(), rtol=2e-3, atol=1e-3)


def test_a_model_whose_logits_selfplay_would_get_wrong_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_shape(tmp_path / "model", "granite")
    model = load_causal_model(folder, torch.float32)
    forward = type(model).forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 1.1
        return output

    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(EngineError, match=r"the trainer computes other log-probabilities of it"):
        probe.check_head("it", model)
    with pytest.raises(EngineError, match=r"the hf engine computes other .*Set engine.type = 'vllm'"):
        HFEngine(folder)
