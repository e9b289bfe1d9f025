"""Keys and values of single sequences, and attention over a flat run of tokens that belong to many of them.

Knows tensors and token ids, not requests. Invariant: what a sequence holds was computed by the model's present weights for its token ids.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NAME = "selfplay_ragged"
_GRAIN = 64  # slots are allocated by so many
_running = threading.local()  # .plan: what the forward pass of this thread is about

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class CacheShape:
    """What one token's keys and values are, in one model."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


class CachedSequence:
    """`length` tokens whose keys and values are computed. Slots behind them are free, whatever they hold."""

    def __init__(self, shape: CacheShape, capacity: int) -> None:
        self.shape = shape
        self.length = 0
        self.tokens: Tokens = np.zeros(0, dtype=np.int64)
        self._slots = torch.empty(0)
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        shape = self.shape
        self.capacity = -(-capacity // _GRAIN) * _GRAIN
        tokens = np.zeros(self.capacity, dtype=np.int64)
        slots = torch.empty(
            shape.layers,
            2,
            shape.kv_heads,
            self.capacity,
            shape.head_dim,
            dtype=shape.dtype,
            device=shape.device,
        )
        if self.length:
            tokens[: self.length] = self.tokens[: self.length]
            slots[:, :, :, : self.length] = self._slots[:, :, :, : self.length]
        self.tokens, self._slots = tokens, slots
        self._layers = slots.unbind(
            0
        )  # a view a layer, made once: slicing is most of what a small pass costs

    def reserve(self, more: int) -> None:
        """Room for `more` tokens behind those that are held."""
        if self.length + more > self.capacity:
            self._allocate(max(self.length + more, self.capacity + self.capacity // 2))

    def copy_prefix(self, other: CachedSequence, count: int) -> None:
        """Hold the first `count` tokens of `other` instead."""
        self.length = 0
        self.reserve(count)
        self.tokens[:count] = other.tokens[:count]
        self._slots[:, :, :, :count] = other._slots[:, :, :, :count]
        self.length = count

    def put(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (kv_heads, new, dim) behind what is held; all keys and values up to there, (kv_heads, length + new, dim)."""
        slots = self._layers[layer]
        end = self.length + keys.shape[1]
        slots[0, :, self.length : end] = keys
        slots[1, :, self.length : end] = values
        return slots[0, :, :end], slots[1, :, :end]

    def extend(self, token_ids: Sequence[int]) -> None:
        """A pass has put these tokens' keys and values into every layer."""
        end = self.length + len(token_ids)
        self.tokens[self.length : end] = token_ids
        self.length = end

    @property
    def held(self) -> Tokens:
        return self.tokens[: self.length]

    @property
    def bytes(self) -> int:
        return self.capacity * self.shape.bytes_per_token


def shared_prefix(first: Tokens, second: Tokens) -> int:
    """How many tokens two sequences begin with in common."""
    count = min(len(first), len(second))
    differing = np.flatnonzero(first[:count] != second[:count])
    return int(differing[0]) if len(differing) else count


class KeptSequences:
    """Sequences of finished requests, those kept longest leaving first: an agent's next turn begins with its last."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: list[CachedSequence] = []

    def keep(self, sequence: CachedSequence) -> None:
        self._kept.append(sequence)
        held = sum(kept.bytes for kept in self._kept)
        while self._kept and held > self._max_bytes:
            held -= self._kept.pop(0).bytes

    def best(self, prompt: Tokens) -> tuple[CachedSequence | None, int]:
        """The kept sequence that shares most with `prompt`, and how many tokens that is."""
        shared, place = max(
            ((shared_prefix(kept.held, prompt), i) for i, kept in enumerate(self._kept)), default=(0, 0)
        )
        return (self._kept[place], shared) if shared else (None, 0)

    def take(self, sequence: CachedSequence) -> None:
        self._kept.remove(sequence)

    def clear(self) -> None:
        self._kept.clear()


# ---- one pass over many sequences


@dataclass(frozen=True)
class Segment:
    """New tokens of one sequence, at `start` of the pass's flat run."""

    sequence: CachedSequence
    start: int
    count: int
    mask: Tensor | None  # (count, length + count) bool; None where a single token sees everything


class PassPlan:
    """Which token of a flat run belongs to which sequence. Quacks like a transformers cache that keeps nothing."""

    is_compileable = False

    def __init__(self, sequences: Iterable[tuple[CachedSequence, int]], device: torch.device) -> None:
        self.segments: list[Segment] = []
        start = 0
        for sequence, count in sequences:
            sequence.reserve(count)
            mask = None
            if count > 1:
                mask = torch.ones(count, sequence.length + count, dtype=torch.bool, device=device).tril(
                    sequence.length
                )
            self.segments.append(Segment(sequence, start, count, mask))
            start += count

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key, value

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def __enter__(self) -> PassPlan:
        _running.plan = self
        return self

    def __exit__(self, *_: object) -> None:
        del _running.plan


def ragged_attention(
    module: Any,
    query: Tensor,  # (1, heads, tokens, dim): the flat run
    key: Tensor,  # (1, kv_heads, tokens, dim)
    value: Tensor,
    attention_mask: Tensor | None,  # unused: the plan says who sees what
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Each segment attends to its own sequence, in which its keys and values are stored. -> (1, tokens, heads, dim)"""
    plan: PassPlan = _running.plan
    heads, kv_heads, dim = query.shape[1], key.shape[1], query.shape[3]
    output = torch.empty(1, query.shape[2], heads, dim, dtype=query.dtype, device=query.device)
    for segment in plan.segments:
        end = segment.start + segment.count
        keys, values = segment.sequence.put(
            module.layer_idx, key[0, :, segment.start : end], value[0, :, segment.start : end]
        )
        attended = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, segment.start : end],
            keys[None],
            values[None],
            attn_mask=segment.mask,
            scale=scaling,
            enable_gqa=heads != kv_heads,
        )
        output[0, segment.start : end] = attended[0].transpose(0, 1)
    return output, None
