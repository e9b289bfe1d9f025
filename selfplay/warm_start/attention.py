"""Causal attention for packed rows on a CPU, in two forms.

`blocked_attention` has equal shapes in each step, so it compiles. A block of queries multiplies only with the
keys up to its own end: with four blocks, 5/8 of all products. It keeps the scores of all layers.
`document_attention` calls torch's kernel once for each document. It keeps no scores.
Invariant: both equal masked softmax attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from selfplay.engines.attention import attend, capped, first_visible, visible, window_and_cap

BLOCKED = "selfplay_blocked"
BY_DOCUMENT = "selfplay_by_document"
# Measured on 2 cores at 512 and 1,024 tokens: half the time of torch's flash attention, forward and backward.
_BLOCKS = 4
_MASKED = -30_000.0  # within the range of bf16 and fp16; exp() of it is 0
# Of the documents of the pass. No argument of the layers: compiled ones would be made anew for other lengths.
_lengths: list[Sequence[int]] = []


def blocked_attention(
    module: nn.Module,
    query: Tensor,  # (batch, heads, seq, dim)
    key: Tensor,  # (batch, kv_heads, seq, dim)
    value: Tensor,
    attention_mask: Tensor | None,  # (batch, 1, seq, seq) bool, True where a query may attend; must be causal
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it. Returns (batch, seq, heads, dim) and no weights.

    options: the layer's window and cap. Raises ValueError without a mask, with dropout, or for
    attention of another kind.
    """
    sliding_window, softcap = window_and_cap(options)
    if attention_mask is None or dropout:
        raise ValueError("blocked_attention needs a boolean mask and no dropout")
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    length = query.shape[2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    block = max(128, -(-length // _BLOCKS))
    outputs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        first = first_visible(start, sliding_window)
        mask = attention_mask[:, :, start:end, first:end]
        if sliding_window:
            mask = mask & visible(end - start, end - first, sliding_window, mask.device)
        # (batch, heads, block, end - first)
        scores = torch.matmul(query[:, :, start:end], key[:, :, first:end].transpose(2, 3)) * scale
        scores = capped(scores, softcap).masked_fill(~mask, _MASKED)
        shares = torch.softmax(scores.float(), -1).to(query.dtype)
        outputs.append(torch.matmul(shares, value[:, :, first:end]))
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def document_mask(documents: Tensor) -> Tensor:
    """True where a token may attend: to itself and earlier tokens of its document.

    documents: (batch, seq), the number of each token's document. Returns (batch, 1, seq, seq) bool.
    """
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]


@contextmanager
def documents_of(lengths: Sequence[int]) -> Iterator[None]:
    """A forward pass in the `with` block has these documents. lengths: tokens of each, in their order."""
    _lengths.append(lengths)
    try:
        yield
    finally:
        _lengths.pop()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def document_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, dim)
    key: Tensor,  # (1, kv_heads, tokens, dim)
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it. Returns (1, tokens, heads, dim) and no weights.

    other: a window and a cap too, as the layer has them. Raises ValueError outside `documents_of`, with
    several rows, with dropout, or for attention of another kind.
    """
    window, softcap = window_and_cap(other)
    lengths = _lengths[-1] if _lengths else ()
    if len(query) != 1 or sum(lengths) != query.shape[2] or other.get("dropout"):
        raise ValueError("document_attention needs one row, the lengths of its documents and no dropout")
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    outputs, start = [], 0
    for length in lengths:
        part = slice(start, start + length)
        one = (query[:, :, part], key[:, :, part], value[:, :, part])
        if softcap is None and not (window and window < length):
            outputs.append(nn.functional.scaled_dot_product_attention(*one, is_causal=True, scale=scaling))
        else:
            outputs.append(attend(*one, visible(length, length, window, query.device), scaling, softcap))
        start += length
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


@contextmanager
def attention_set(model: Any, name: str) -> Iterator[None]:
    """The transformers model uses BLOCKED or BY_DOCUMENT attention inside the `with` block."""
    from transformers import AttentionInterface

    functions: dict[str, Callable[..., Any]] = {BLOCKED: blocked_attention, BY_DOCUMENT: document_attention}
    AttentionInterface.register(name, functions[name])
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
