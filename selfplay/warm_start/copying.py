"""A small causal model that can copy before any training: its first two layers start as an induction circuit.

A model learns to copy late and suddenly. On a CPU, a small model needs more time for that than for everything
else. Written into the initial weights, copying costs nothing:

- Layer 0 adds to each token the identities of the two tokens before it.
- Layer 1 finds an earlier token that follows the same two tokens, and predicts it.

Invariant: the other layers start at random, as usual, but their outputs are halved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class PolicyShape:
    """Sizes of a Qwen3 model with tied embeddings."""

    vocabulary: int = 1024
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    head_dim: int = 64
    intermediate: int = 576
    rope_theta: float = 1e6
    context_tokens: int = 4096


# Standard deviation of the other weights in these layers: enough to learn from, too little to disturb
# copying.
NOISE = 0.004
EMBEDDING_NORM = 1.1
# Gains of the query and key norms. Their square scales the attention logits.
BACK_SHARPNESS = 4.0  # layer 0, which attends to previous tokens
MATCH_SHARPNESS = 2.0  # layer 1, which attends to matching tokens
BACK_GAIN = 0.32  # of values and outputs in layer 0
COPY_GAIN = 0.36  # of values times outputs in layer 1
# Radians per token. Rotary dimensions that turn slower hold content over hundreds of tokens.
SLOW = 2e-3
# Share of those dimensions that compare the current token; the others compare the token before it.
NEAR_SHARE = 0.58


def build_policy(shape: PolicyShape, seed: int, eos_token_id: int, pad_token_id: int) -> Any:
    """A Qwen3ForCausalLM in float32.

    It copies without training if it has at least two layers, two heads and 128 dimensions.
    """
    import transformers

    library: Any = transformers  # it makes its classes at import time, so mypy sees no signatures
    torch.manual_seed(seed)
    config = library.Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        tie_word_embeddings=True,
        max_position_embeddings=shape.context_tokens,
        rope_theta=shape.rope_theta,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    model = library.Qwen3ForCausalLM(config)
    # No filter on sampling: importance ratios are only exact for unfiltered samples at temperature 1.
    model.generation_config = library.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    if shape.layers >= 2 and shape.hidden >= 128 and shape.heads >= 2:
        with torch.no_grad():
            _write_copying(model, shape)
    return model


@dataclass(frozen=True)
class _Layout:
    """Parts of the residual stream, as dimensions. Dimension 0 is constant."""

    own: slice  # the token's own identity
    back: slice  # a part of the previous token's identity
    back2: slice  # a smaller part of the identity of the token before that

    @classmethod
    def of(cls, hidden: int) -> _Layout:
        back = min(40, (hidden - 1) // 5)
        own_end = hidden - back - (back - 1)
        return cls(slice(1, own_end), slice(own_end, own_end + back), slice(own_end + back, hidden))


def _write_copying(model: Any, shape: PolicyShape) -> None:
    """Write the embedding and both layers, and halve what the rest of the model adds at the start."""
    layout = _Layout.of(shape.hidden)
    # (half,) radians per token of each pair of rotary dimensions
    half = shape.head_dim // 2
    turns = shape.rope_theta ** (-torch.arange(half) / half)
    own, back = _size(layout.own), _size(layout.back)

    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, NOISE)
    embedding[:, layout.own] = torch.randn(shape.vocabulary, own) * (EMBEDDING_NORM / math.sqrt(own))
    embedding[:, 0] = 0.5
    part = _orthonormal(back, own)  # (back, own): takes a part of an identity

    layers = model.model.layers
    _write_looking_back(layers[0].self_attn, shape, layout, part, turns)
    _write_matching(layers[1].self_attn, shape, layout, part, turns)
    for number, layer in enumerate(layers):
        layer.mlp.down_proj.weight.mul_(0.5)
        if number >= 2:
            layer.self_attn.o_proj.weight.mul_(0.5)


def _write_looking_back(
    attention: Any, shape: PolicyShape, layout: _Layout, part: torch.Tensor, turns: torch.Tensor
) -> None:
    """Head h attends to the token h + 1 back. The first two heads copy a part of its identity."""
    size, half = shape.head_dim, shape.head_dim // 2
    _fill(attention, BACK_SHARPNESS)
    for head in range(shape.heads):
        distance = head + 1
        for pair in range(min(14, half)):
            # The key is rotated by `distance` tokens, so it matches the query of a token that far behind it.
            attention.q_proj.weight[head * size + pair, 0] = 1.0
            attention.k_proj.weight[head * size + pair, 0] = math.cos(distance * turns[pair])
            attention.k_proj.weight[head * size + pair + half, 0] = math.sin(distance * turns[pair])
        if distance <= 2:
            target = (layout.back, layout.back2)[distance - 1]
            count = _size(target)
            rows = slice(head * size, head * size + count)
            attention.v_proj.weight[rows, layout.own] = part[:count] * BACK_GAIN
            attention.o_proj.weight[target, rows] = torch.eye(count) * BACK_GAIN


def _write_matching(
    attention: Any, shape: PolicyShape, layout: _Layout, part: torch.Tensor, turns: torch.Tensor
) -> None:
    """Each head finds tokens that follow the same two tokens, and copies a part of their identity."""
    size, half = shape.head_dim, shape.head_dim // 2
    own, back, back2 = _size(layout.own), _size(layout.back), _size(layout.back2)
    before = slice(layout.back.start, layout.back.start + back2)
    _fill(attention, MATCH_SHARPNESS)
    slow = [pair for pair in range(half) if turns[pair] < SLOW]
    free = [*slow, *(pair + half for pair in slow)]
    order = torch.randperm(len(free)).tolist()
    near = int(len(free) * NEAR_SHARE)
    near_dims, far_dims = [free[i] for i in order[:near]], [free[i] for i in order[near:]]
    share = -(-own // shape.heads)  # dimensions of the identity that each head copies
    for head in range(shape.heads):
        mixed, mixed2 = _orthonormal(near, back), _orthonormal(len(far_dims), back2)
        for row, dim in enumerate(near_dims):
            attention.q_proj.weight[head * size + dim, layout.own] = mixed[row] @ part * 0.5
            attention.k_proj.weight[head * size + dim, layout.back] = mixed[row] * 0.5
        for row, dim in enumerate(far_dims):
            attention.q_proj.weight[head * size + dim, before] = mixed2[row] * 0.5
            attention.k_proj.weight[head * size + dim, layout.back2] = mixed2[row] * 0.5
        for i, dim in enumerate(range(head * share, min((head + 1) * share, own))):
            if i < size:
                attention.v_proj.weight[head * size + i, 1 + dim] = math.sqrt(COPY_GAIN)
                attention.o_proj.weight[1 + dim, head * size + i] = math.sqrt(COPY_GAIN)


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def _orthonormal(rows: int, columns: int) -> torch.Tensor:
    """(rows, columns), with orthonormal rows, or orthonormal columns if there are more rows."""
    if rows > columns:
        return torch.as_tensor(torch.linalg.qr(torch.randn(rows, columns)).Q)
    return torch.as_tensor(torch.linalg.qr(torch.randn(columns, rows)).Q.T)


def _fill(attention: Any, sharpness: float) -> None:
    """Fill the projections with noise, and the query and key norms with `sharpness`."""
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        projection.weight.normal_(0, NOISE)
    attention.q_norm.weight.fill_(sharpness)
    attention.k_norm.weight.fill_(sharpness)
