"""Checks once, when a model is loaded, that our passes compute what the model's own forward pass computes.

A model may do what no setting says: scale its logits, window its keys, add sinks. Then its log-probabilities
would be wrong without an error. Invariant: the model is left as it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfplay.engines.architectures import layer_windows
from selfplay.engines.models import head_logits
from selfplay.engines.sequences import CachedSequence, CacheShape, PassPlan
from selfplay.errors import EngineError

_TOKENS = 24
_CACHED = 10  # of these, in a pass of their own
# Largest mean difference of log-probabilities; other order of sums alone stays far below.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def probe_ids(model: Any) -> Tensor:
    """The probe's tokens, (1, tokens)."""
    words = int(model.get_input_embeddings().num_embeddings)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(words, (1, _TOKENS), generator=generator).to(model.device)


def plain_logprobs(model: Any) -> Tensor:
    """Log-probabilities (tokens, vocab) of the model's own forward pass, in its own attention."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=probe_ids(model), use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), -1)


def check_passes(name: str, model: Any, shape: CacheShape, expected: Tensor) -> None:
    """Raises EngineError unless passes of the engine give `expected`: `plain_logprobs` before its attention
    was set. The model must have the engine's attention now.
    """
    remedy = "Set engine.type = 'vllm', or use another policy."
    ids = probe_ids(model)[0].tolist()
    sequence, other = CachedSequence(shape, _TOKENS), CachedSequence(shape, _TOKENS)
    hidden = []
    try:
        for new in (ids[:_CACHED], ids[_CACHED:-1], ids[-1:]):
            found, windows = _pass(model, ((other, ids[:3]), (sequence, new)))
            hidden.append(found[3:])
            sequence.extend(new)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise EngineError(
            f"the hf engine cannot compute {name}: {type(error).__name__}: {first_line}. {remedy}"
        ) from error
    wanted = layer_windows(model.config)
    if getattr(model.config.get_text_config(), "layer_types", None) and any(
        windows[layer] != wanted[layer] for layer in windows
    ):
        raise EngineError(
            f"{name} does not tell its attention each layer's window, which the hf engine needs. {remedy}"
        )
    with torch.no_grad():
        logprobs = torch.log_softmax(head_logits(model, torch.cat(hidden)), -1)
    what = f"the hf engine computes other log-probabilities of {name}"
    _check(what, logprobs, expected, shape.dtype, remedy)


def check_head(name: str, model: Any) -> None:
    """Raises EngineError unless hidden states and `head_logits` give what the whole model gives."""
    with torch.no_grad():
        hidden = model.base_model(input_ids=probe_ids(model), use_cache=False).last_hidden_state[0]
        logprobs = torch.log_softmax(head_logits(model, hidden), -1)
    what = f"the trainer computes other log-probabilities of {name}"
    _check(what, logprobs, plain_logprobs(model), model.dtype, "Use another policy.")


def _pass(
    model: Any, parts: tuple[tuple[CachedSequence, list[int]], ...]
) -> tuple[Tensor, dict[int, int | None]]:
    """Hidden states (tokens, hidden) of new tokens of several sequences in one row, and layers' windows."""
    flat = [token for _, new in parts for token in new]
    positions = [sequence.length + index for sequence, new in parts for index in range(len(new))]
    with (
        torch.no_grad(),
        PassPlan([(sequence, len(new)) for sequence, new in parts], model.device) as plan,
    ):
        output = model.base_model(
            input_ids=torch.tensor([flat], device=model.device),
            position_ids=torch.tensor([positions], device=model.device),
            attention_mask=torch.zeros(1, 1, 1, 1, device=model.device),
            past_key_values=plan,
            use_cache=True,
        )
    return output.last_hidden_state[0], plan.windows


def _check(what: str, found: Tensor, expected: Tensor, dtype: torch.dtype, remedy: str) -> None:
    difference = float((expected.exp() * (found - expected).abs()).sum(-1).mean())
    if not difference <= _TOLERANCE[dtype]:
        raise EngineError(
            f"{what} than its own forward pass: {difference:.3g} apart on average, {_TOLERANCE[dtype]:g} is "
            f"allowed. {remedy}"
        )
