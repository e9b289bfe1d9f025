"""Checks that a server holds the trainer's weights, by digests and by log-probabilities of a fixed prompt.

Makes no calls to servers. Digests find the smallest difference, but only in tensors that both sides store in
the same way. The log-probabilities cover everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selfplay.errors import WeightSyncError

_PROBE_TOKENS = 64
# Largest allowed mean difference of the probe's log-probabilities from an fp32 pass of transformers over the
# same
# weights. On the carried policy a wrong layer, a wrong name or old weights after a real update of a few
# percent are
# far outside (docs/log.md).
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def compare_digests(
    digests: Mapping[str, str], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[int, list[str]]:
    """Compare a server's SHA-256 digests with `weights` in `dtype`.

    Returns how many tensors are equal byte for byte, and the names of those that differ. Only vectors (norms)
    are compared, by their names, since servers join, pad, split and repack matrices.
    """
    parts: dict[str, set[str]] = {}  # name -> digests of all workers that hold a part
    for name, digest in digests.items():
        parts.setdefault(name.rpartition(":")[2], set()).add(digest)
    equal, wrong = 0, []
    for name, tensor in weights.items():
        if tensor.dim() != 1 or name not in parts:
            continue
        data = tensor.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().tobytes()
        if parts[name] == {hashlib.sha256(data).hexdigest()}:
            equal += 1
        else:
            wrong.append(name)
    return equal, wrong


def expected_logprobs(
    model_path: str, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[list[int], Tensor]:
    """Return the probe's prompt (tokens,), and the log-probabilities of its tokens from the second on.

    transformers computes them in fp32 from the weights rounded to `dtype`, which is the servers'. Raises
    WeightSyncError if `weights` lack a tensor of the model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_path)
    make_model: Any = AutoModelForCausalLM.from_config
    model = make_model(config, dtype=torch.float32).eval()
    rounded = {name: value.to("cpu", dtype).float() for name, value in weights.items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = set(model.load_state_dict(rounded, strict=False).missing_keys) - tied
    if missing:
        raise WeightSyncError(f"the trainer's weights lack {sorted(missing)[:3]}, which {model_path} has.")
    generator = torch.Generator().manual_seed(0)
    token_ids: list[int] = torch.randint(
        int(config.vocab_size), (_PROBE_TOKENS,), generator=generator
    ).tolist()
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([token_ids])).logits[0].float(), -1)  # (tokens, vocab)
    return token_ids, scores[:-1].gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]
