"""Attention over a flat row of trees: a branch sees its prompt and itself (see prompt_trees.py).

On a CPU it is torch's flash attention on slices. A branch attends to the prompt and to itself in two parts,
which are joined by their log-sum-exp; nothing is masked, so nothing is computed in vain. Elsewhere, and in
layers with a window or a cap, it is masked attention of each branch. Invariant: the result is that of
separate rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from selfplay.engines.attention import Window, attend, visible, window_and_cap
from selfplay.training.prompt_trees import Tree

NAME = "selfplay_trees"
_TOLERANCE = 1e-3  # of logits in fp32, against the largest one
_running: list[tuple[Tree, ...]] = []  # the trees of the pass; a list, since the backward pass has threads

Span = tuple[int, int]  # first token, end


def parts_of(trees: Sequence[Tree]) -> list[tuple[Span, Span, bool]]:
    """(queries, keys, is_causal) of each part. Parts that are not causal join what an earlier part gave."""
    parts: list[tuple[Span, Span, bool]] = []
    for tree in trees:
        prompt, start = (tree.start, tree.start + tree.prompt), tree.start + tree.prompt
        spans = [prompt] if tree.prompt else []
        for length in tree.branches:
            spans.append((start, start + length))
            start += length
        parts += [(span, span, True) for span in spans]
        if tree.prompt:
            parts.append(((prompt[1], start), prompt, False))
    return parts


class _Flash(torch.autograd.Function):
    """Flash attention of parts on a CPU. query, key, value: (1, heads, tokens, dim) of one dtype.

    A part's backward pass takes the joined output and log-sum-exp, as in ring attention (arXiv 2310.01889).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, trees: Sequence[Tree], scale: float
    ) -> Tensor:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        _, heads, tokens, _ = query.shape
        output = torch.empty_like(query)
        sums = query.new_empty(1, tokens, heads, dtype=torch.float32).transpose(1, 2)  # log-sum-exp
        for (first, end), (key_first, key_end), is_causal in parts_of(trees):
            found, found_sums = attend(
                query[:, :, first:end],
                key[:, :, key_first:key_end],
                value[:, :, key_first:key_end],
                0.0,
                is_causal,
                scale=scale,
            )
            if is_causal:
                output[:, :, first:end], sums[:, :, first:end] = found, found_sums
                continue
            own = sums[:, :, first:end]  # (1, heads, queries)
            joined = torch.logaddexp(own, found_sums)
            before = output[:, :, first:end].float() * torch.exp(own - joined)[..., None]
            output[:, :, first:end] = before + found.float() * torch.exp(found_sums - joined)[..., None]
            sums[:, :, first:end] = joined
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.trees, ctx.scale = trees, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        differentiate = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, output, sums = ctx.saved_tensors
        given = gradients[0].to(query.dtype)
        found = [torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)]
        for (first, end), (key_first, key_end), is_causal in parts_of(ctx.trees):
            added = differentiate(
                given[:, :, first:end],
                query[:, :, first:end],
                key[:, :, key_first:key_end],
                value[:, :, key_first:key_end],
                output[:, :, first:end],
                sums[:, :, first:end],
                0.0,
                is_causal,
                scale=ctx.scale,
            )
            spans = ((first, end), (key_first, key_end), (key_first, key_end))
            for total, (start, stop), part in zip(found, spans, added, strict=True):
                total[:, :, start:stop] += part
        return (*found, None, None)


def _masked(
    query: Tensor,  # (1, heads, tokens, dim)
    key: Tensor,  # (1, kv_heads, tokens, dim)
    value: Tensor,
    trees: Sequence[Tree],
    scale: float,
    window: Window = None,
    softcap: float | None = None,
) -> Tensor:
    """On any device, with a window and a cap: each branch has the keys of its prompt before its own.

    Returns (1, heads, tokens, dim).
    """
    outputs = []
    for tree in trees:
        prompt, start = slice(tree.start, tree.start + tree.prompt), tree.start + tree.prompt
        spans = [(slice(tree.start, tree.start), prompt)] if tree.prompt else []
        for length in tree.branches:
            spans.append((prompt, slice(start, start + length)))
            start += length
        for seen, own in spans:
            count, before = own.stop - own.start, seen.stop - seen.start
            keys, values = (torch.cat((x[:, :, seen], x[:, :, own]), 2) for x in (key, value))
            if not before and softcap is None and not (window and window < count):
                outputs.append(  # no mask, so a GPU has a fast kernel for it
                    torch.nn.functional.scaled_dot_product_attention(
                        query[:, :, own], keys, values, is_causal=True, scale=scale, enable_gqa=True
                    )
                )
                continue
            mask = visible(count, before + count, window, query.device)
            outputs.append(attend(query[:, :, own], keys, values, mask, scale, softcap))
    return torch.cat(outputs, 2)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def tree_attention(
    module: Any,
    query: Tensor,  # (1, heads, tokens, dim)
    key: Tensor,  # (1, kv_heads, tokens, dim)
    value: Tensor,
    attention_mask: Tensor | None,  # unused
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it. Returns (1, tokens, heads, dim) and no weights.

    options: a window and a cap too, as the layer has them. Raises ValueError for trees of another length,
    with several rows, with dropout, or for attention of another kind.
    """
    window, softcap = window_and_cap(options)
    trees = _running[-1]
    if len(query) != 1 or sum(tree.tokens for tree in trees) != query.shape[2] or options.get("dropout"):
        raise ValueError("tree_attention needs one row, all of its trees and no dropout")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    query, key, value = (x.to(dtype) for x in (query, key, value))
    reach = max(tree.prompt + max(tree.branches, default=0) for tree in trees)  # of the longest path
    if device == "cpu" and softcap is None and not (window and window < reach):
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        output = _Flash.apply(query, key, value, trees, scale)  # type: ignore[no-untyped-call]
    else:
        output = _masked(query, key, value, trees, scale, window, softcap)
    return output.transpose(1, 2), None


@contextmanager
def attending_to(trees: tuple[Tree, ...] | None, *models: Any) -> Iterator[None]:
    """The models attend along `trees` in the `with` block, which must hold the backward pass too.

    None: they attend as always.
    """
    from transformers import AttentionInterface

    if trees is None:
        yield
        return
    AttentionInterface.register(NAME, tree_attention)
    before = [model.config._attn_implementation for model in models]
    for model in models:
        model.set_attn_implementation(NAME)
    _running.append(trees)
    try:
        yield
    finally:
        _running.pop()
        for model, name in zip(models, before, strict=True):
            model.set_attn_implementation(name)


def can_attend(model: Any) -> bool:
    """True if the model gives the same for a small tree as for separate rows. It is tried.

    Not so: models with layers other than attention, or with attention of their own.
    """
    device = next(model.parameters()).device
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    prompt, rests = [1, 2, 3, 4, 5], ([6, 7, 8], [9, 3, 2, 1])
    rows = [[token % vocabulary for token in [*prompt, *rest]] for rest in rests]
    flat = [*rows[0][:5], *rows[0][5:], *rows[1][5:]]
    positions = [*range(8), *range(5, 9)]

    def states(row: list[int], at: list[int]) -> Tensor:
        inputs = {"input_ids": torch.tensor([row]), "position_ids": torch.tensor([at])}
        moved = {name: value.to(device) for name, value in inputs.items()}
        found: Tensor = model.base_model(use_cache=False, **moved).last_hidden_state[0]
        return found.float()

    with torch.no_grad():
        first, second = (states(row, list(range(len(row)))) for row in rows)
        try:
            with attending_to((Tree(0, 5, (3, 4)),), model):
                found = states(flat, positions)
        except (ValueError, RuntimeError, TypeError, IndexError):
            return False
    wanted = torch.cat((first, second[5:]))
    return float((found - wanted).abs().max()) <= _TOLERANCE * float(wanted.abs().max())
