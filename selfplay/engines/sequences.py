"""The key-value cache of single sequences, and attention over one flat row of tokens from many sequences.

Knows tensors and token ids, not requests. Invariant: the current weights computed every cached key and value.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfplay.engines.attention import Window, attend, first_visible, visible, window_and_cap

NAME = "selfplay_ragged"
_SLOT_STEP = 64  # capacities are multiples of this
_MOST_GROUPED = 16  # new tokens of a sequence whose heads are grouped; a prompt's are many enough without
_running = threading.local()  # .plan: the PassPlan of this thread's forward pass

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class CacheShape:
    """Shape and place of one token's keys and values in one model."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


class CachedSequence:
    """Keys and values of the first `length` tokens of a text. The slots after them are free."""

    def __init__(self, shape: CacheShape, capacity: int) -> None:
        self.shape = shape
        self.length = 0
        self.tokens: Tokens = np.zeros(0, dtype=np.int64)
        self._slots = torch.empty(0)
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        shape = self.shape
        self.capacity = -(-capacity // _SLOT_STEP) * _SLOT_STEP
        tokens = np.zeros(self.capacity, dtype=np.int64)
        size = (shape.layers, 2, shape.kv_heads, self.capacity, shape.head_dim)  # 2: keys, values
        slots = torch.empty(size, dtype=shape.dtype, device=shape.device)
        if self.length:
            tokens[: self.length] = self.tokens[: self.length]
            slots[:, :, :, : self.length] = self._slots[:, :, :, : self.length]
        self.tokens, self._slots = tokens, slots
        # One view for each layer, made once: slicing dominates the cost of a small pass.
        self._layers = slots.unbind(0)

    def reserve(self, count: int) -> None:
        """Make room for `count` more tokens."""
        if self.length + count > self.capacity:
            self._allocate(max(self.length + count, self.capacity + self.capacity // 2))

    def copy_prefix(self, other: CachedSequence, count: int) -> None:
        """Replace the content by the first `count` tokens of `other`."""
        self.length = 0
        self.reserve(count)
        self.tokens[:count] = other.tokens[:count]
        self._slots[:, :, :, :count] = other._slots[:, :, :, :count]
        self.length = count

    def put(self, layer: int, added: Tensor) -> Tensor:
        """Append keys and values, (2, kv_heads, new, dim).

        Return all of the layer, (2, kv_heads, length + new, dim).
        """
        slots = self._layers[layer]
        end = self.length + added.shape[2]
        slots[:, :, self.length : end] = added
        return slots[:, :, :end]

    def extend(self, token_ids: Sequence[int]) -> None:
        """Count these tokens as cached.

        Call it after a pass has `put` their keys and values into every layer.
        """
        end = self.length + len(token_ids)
        self.tokens[self.length : end] = token_ids
        self.length = end

    @property
    def cached_tokens(self) -> Tokens:
        return self.tokens[: self.length]

    @property
    def bytes(self) -> int:
        return self.capacity * self.shape.bytes_per_token


def shared_prefix(first: Tokens, second: Tokens) -> int:
    """Length in tokens of the common prefix."""
    count = min(len(first), len(second))
    differing = np.flatnonzero(first[:count] != second[:count])
    return int(differing[0]) if len(differing) else count


class PrefixCache:
    """Sequences of finished requests, since an agent's next turn starts with its last one.

    The oldest leave first.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sequences: list[CachedSequence] = []

    def add(self, sequence: CachedSequence) -> None:
        self._sequences.append(sequence)
        total_bytes = sum(cached.bytes for cached in self._sequences)
        while self._sequences and total_bytes > self._max_bytes:
            total_bytes -= self._sequences.pop(0).bytes

    def longest_match(self, prompt: Tokens) -> tuple[CachedSequence | None, int]:
        """Return the sequence with the longest common prefix with `prompt`, and the length of that prefix."""
        shared = (shared_prefix(cached.cached_tokens, prompt) for cached in self._sequences)
        count, index = max(((count, i) for i, count in enumerate(shared)), default=(0, 0))
        return (self._sequences[index], count) if count else (None, 0)

    def remove(self, sequence: CachedSequence) -> None:
        self._sequences.remove(sequence)

    def clear(self) -> None:
        self._sequences.clear()


# ---- one pass over many sequences


@dataclass(frozen=True)
class Segment:
    """New tokens of one sequence: `count` tokens from index `start` of the flat row."""

    sequence: CachedSequence
    start: int
    count: int
    device: torch.device
    masks: dict[tuple[Window, int], Tensor] = field(default_factory=dict)  # layers share them

    def visible(self, window: Window, repeats: int) -> tuple[int, Tensor | None]:
        """(first key that any token of a layer with this window sees, mask of the keys from there on).

        The mask is added to scores (repeats · count, keys), in the cache's dtype. None: a single token sees
        all keys.
        """
        length = self.sequence.length
        first = first_visible(length, window)
        kind = window, repeats
        if self.count > 1 and kind not in self.masks:
            keys = length + self.count - first
            seen = visible(self.count, keys, window, self.device)
            added = torch.zeros(seen.shape, dtype=self.sequence.shape.dtype, device=self.device)
            self.masks[kind] = added.masked_fill_(~seen, -torch.inf).repeat(repeats, 1)
        return first, self.masks.get(kind)


class PassPlan:
    """Which tokens of a flat row belong to which sequence.

    Has the interface of a transformers cache, and caches nothing.
    """

    is_compileable = False

    def __init__(self, sequences: Iterable[tuple[CachedSequence, int]], device: torch.device) -> None:
        self.segments: list[Segment] = []
        self.windows: dict[int, Window] = {}  # of each layer that has run
        start = 0
        for sequence, count in sequences:
            sequence.reserve(count)
            self.segments.append(Segment(sequence, start, count, device))
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
    query: Tensor,  # (1, heads, tokens, dim): the flat row
    key: Tensor,  # (1, kv_heads, tokens, dim)
    value: Tensor,  # (1, kv_heads, tokens, dim)
    attention_mask: Tensor | None,  # unused: the plan holds the masks
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Store the new keys and values of each segment, and let it attend to its own sequence alone.

    options: the layer's window and cap. Returns (1, tokens, heads, dim). Raises ValueError for
    attention of another kind.
    """
    sliding_window, softcap = window_and_cap(options)
    plan: PassPlan = _running.plan
    plan.windows[module.layer_idx] = sliding_window
    heads, kv_heads, dim = query.shape[1], key.shape[1], query.shape[3]
    output = torch.empty(1, query.shape[2], heads, dim, dtype=query.dtype, device=query.device)
    dtype = plan.segments[0].sequence.shape.dtype
    added, query = torch.stack((key[0], value[0])).to(dtype), query.to(dtype)
    for segment in plan.segments:
        count, end = segment.count, segment.start + segment.count
        cached = segment.sequence.put(module.layer_idx, added[:, :, segment.start : end])
        # Heads that share keys become more queries of one head: their keys are read once.
        repeats = heads // kv_heads if count <= _MOST_GROUPED else 1
        first, mask = segment.visible(sliding_window, repeats)
        own = query[:, :, segment.start : end]
        attended = attend(
            own.reshape(1, heads // repeats, repeats * count, dim),
            cached[0:1, :, first:],
            cached[1:2, :, first:],
            mask,
            scaling,
            softcap,
        )
        output[0, segment.start : end] = attended.reshape(heads, count, dim).transpose(0, 1)
    return output, None
