"""Ranks that share each sequence: DeepSpeed's Ulysses attention around the attention of transformers.

A rank computes its part of every sequence. Only attention needs the whole: an all-to-all gives each rank all
tokens of some heads, and a second one gives the tokens back. Sources: DeepSpeed Ulysses (arXiv 2309.14509),
ALST (arXiv 2506.13996).

Invariants: neighbouring ranks form a group; all ranks make the groups in the same order; rows are one sample
each, since the attention knows no mask besides "causal" and a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfplay.engines.attention import attend, first_visible, visible
from selfplay.errors import ConfigError

NAME = "selfplay_ulysses"  # of the attention, for transformers
_LAYER_TYPES = {"full_attention", "sliding_attention"}


class SequenceGroups:
    """The groups of ranks that this process has made, by size. A group is made once for the process."""

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        self._made: dict[int, Any] = {}

    def of(self, size: int) -> Any:
        """This rank's group of `size` neighbours. Collective: all ranks call it with the same size."""
        if size not in self._made:
            for first in range(0, self._world, size):
                members = list(range(first, first + size))
                group = torch.distributed.new_group(members)
                if self._rank in members:
                    self._made[size] = group
        return self._made[size]


class SharedAttention:
    """An attention function for transformers, over the ranks of a group."""

    def __init__(self, config: Any, group: Any) -> None:
        """config: the model's. Raises ConfigError if its attention cannot be shared."""
        check_heads(config, torch.distributed.get_world_size(group))
        self._config, self._group = config, group
        self._by_rows: dict[int, Any] = {}  # DeepSpeed's module is made for one number of rows

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **options: Any
    ) -> tuple[Tensor, None]:
        """query: (rows, heads, part of seq, head_dim). Returns (rows, part of seq, heads · head_dim)."""
        rows = query.shape[0]
        if rows not in self._by_rows:
            self._by_rows[rows] = self._attention(rows)
        output, _ = self._by_rows[rows](module, query, key, value, None, **options)
        return output, None

    def _attention(self, rows: int) -> Any:
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        config = self._config
        return UlyssesSPAttentionHF(
            attn=causal_attention,
            batch_size=rows,
            attn_head_count=config.num_attention_heads,
            attn_head_size=_head_dim(config),
            kv_head_count=_kv_heads(config),
            num_hidden_layers=config.num_hidden_layers,
            process_group=self._group,
            seq_length_is_variable=True,
        )


def share_sequences(model: Any, group: Any) -> None:
    """Make `model` attend over the ranks of `group`. Its weights do not change. See `SharedAttention`."""
    from transformers import AttentionInterface

    attention: Any = SharedAttention(model.config, group)
    AttentionInterface.register(NAME, attention)
    model.set_attn_implementation(NAME)


def causal_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention over whole rows, as transformers calls it. Returns (rows, seq, heads, head_dim).

    query: (rows, heads, seq, head_dim); key, value: (rows, kv_heads, seq, head_dim). sliding_window: a token
    sees itself and the `sliding_window - 1` tokens before it. A block of queries then meets the keys of two
    blocks at most, so no mask is as large as seq · seq.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length = query.shape[2]
    if sliding_window is None or sliding_window >= length:
        found = sdpa_attention_forward(module, query, key, value, None, scaling=scaling)
        output: Tensor = found[0]
        return output, None
    blocks = []
    for start in range(0, length, sliding_window):
        first, stop = first_visible(start, sliding_window), min(length, start + sliding_window)
        seen = visible(stop - start, stop - first, sliding_window, query.device)
        keys, values = key[:, :, first:stop], value[:, :, first:stop]
        blocks.append(attend(query[:, :, start:stop], keys, values, seen, scaling, None))
    return torch.cat(blocks, 2).transpose(1, 2).contiguous(), None


def check_heads(config: Any, size: int) -> None:
    """Raises ConfigError unless `size` ranks can share the attention of a model with this config."""
    heads, kv_heads = config.num_attention_heads, _kv_heads(config)
    if heads % size or (kv_heads % size and size % kv_heads):
        raise ConfigError(
            f"trainer.sequence_parallel = {size}: the model has {heads} attention heads and {kv_heads} heads "
            "of keys and values, which so many ranks cannot share. Set a divisor of both."
        )
    others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    others |= {"attn_logit_softcapping"} if getattr(config, "attn_logit_softcapping", None) else set()
    if others:
        raise ConfigError(
            f"trainer.sequence_parallel = {size} is for models with full or sliding-window attention, and "
            f"this one has {', '.join(sorted(others))} in its config.json. Set trainer.sequence_parallel = 1."
        )


def _kv_heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
