"""Attention of new tokens over the keys of one sequence, with a window and a cap if the layer has them.

Pure tensors: it knows no cache, no batch and no model. Invariant: equal to transformers' eager attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Window = int | None  # a token sees itself and the `window - 1` tokens before it; None: all before it


def first_visible(position: int, window: Window) -> int:
    """Index of the first key that the token at `position` sees."""
    return max(0, position - window + 1) if window else 0


def visible(queries: int, keys: int, window: Window, device: torch.device) -> Tensor:
    """Which of the last `keys` keys each of the last `queries` tokens sees. Returns (queries, keys) bool."""
    before = keys - queries  # keys before the first of these tokens
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(before)
    return mask.triu(before - window + 1) if window else mask


def attend(
    query: Tensor,  # (batch, heads, queries, dim)
    key: Tensor,  # (batch, kv_heads, keys, dim)
    value: Tensor,  # (batch, kv_heads, keys, dim)
    mask: Tensor | None,  # broadcasts to (batch, heads, queries, keys); None: each token sees all
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """Return (batch, heads, queries, dim).

    mask: bool, or added to the scores in the dtype of `query`. softcap: bound of the scores; None: no bound.
    """
    repeats = query.shape[1] // key.shape[1]
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=repeats > 1
        )
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = capped(query @ key.transpose(2, 3) * scale, softcap)
    if mask is not None:
        is_bool = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if is_bool else scores + mask
    return torch.softmax(scores.float(), -1).to(query.dtype) @ value


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """softcap · tanh(scores / softcap), as in Gemma 2 (arXiv 2408.00118, section 2); None: unchanged."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def window_and_cap(options: dict[str, Any]) -> tuple[Window, float | None]:
    """A layer's window and the bound of its scores, of the options that transformers gives its attention.

    Raises ValueError for an option that would change the result otherwise.
    """
    if options.get("s_aux") is not None:
        raise ValueError("the model has attention sinks, which this attention does not compute")
    if options.get("position_bias") is not None:
        raise ValueError("the model has a position bias, which this attention does not compute")
    return options.get("sliding_window"), options.get("softcap")
