"""A small causal model whose first two layers can copy from the start: heads that look back and heads that find what came before.

Leaves all else to training. Invariant: apart from the written heads, the weights are those of an ordinary random start.

Copying is learned late and suddenly, and costs a small model on a CPU more time than everything after it. Written into the initial
weights it costs nothing: layer 0 brings the identity of the previous two tokens to each place, layer 1 looks for the place before
which the same two tokens stood, and adds the identity of the token there to what will be predicted.
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


NOISE = 0.004  # of the written layers' other weights: enough to learn from, too little to disturb
EMBEDDING_NORM = 1.1
BACK_SHARPNESS = 4.0  # of attention to the previous places; times itself it scales the logits
MATCH_SHARPNESS = 2.0
BACK_GAIN = 0.32
COPY_GAIN = 0.36
SLOW = 2e-3  # radians a token: dimensions that turn slower hold content over hundreds of tokens


def build_policy(shape: PolicyShape, seed: int, eos_token_id: int, pad_token_id: int) -> Any:
    """A Qwen3ForCausalLM in float32 that copies repeated spans without any training (given two layers and 128 dimensions or more)."""
    import transformers

    library: Any = transformers  # its classes are made at import time; checkers see no signatures
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
    # No filter on sampling: the importance ratios are true at temperature 1 only.
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


def _write_copying(model: Any, shape: PolicyShape) -> None:
    """Residual dimensions: 0 is constant, then the token's own identity, then parts of the previous token's and of the one before."""
    heads, size, half = shape.heads, shape.head_dim, shape.head_dim // 2
    back = min(40, (shape.hidden - 1) // 5)  # dimensions for the previous token
    back2 = back - 1
    own = shape.hidden - 1 - back - back2
    own_at, back_at, back2_at = (
        slice(1, 1 + own),
        slice(1 + own, 1 + own + back),
        slice(1 + own + back, shape.hidden),
    )
    turns = shape.rope_theta ** (-torch.arange(half) / half)  # radians a token, by pair of dimensions

    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, NOISE)
    embedding[:, own_at] = torch.randn(shape.vocabulary, own) * (EMBEDDING_NORM / math.sqrt(own))
    embedding[:, 0] = 0.5
    part = _orthonormal(back, own)

    first = model.model.layers[0].self_attn
    _quiet(first, BACK_SHARPNESS)
    for head in range(heads):
        distance = head + 1
        for pair in range(min(14, half)):
            # A key turned ahead by `distance` tokens meets the query of the token that far behind it.
            first.q_proj.weight[head * size + pair, 0] = 1.0
            first.k_proj.weight[head * size + pair, 0] = math.cos(distance * turns[pair])
            first.k_proj.weight[head * size + pair + half, 0] = math.sin(distance * turns[pair])
        if distance <= 2:
            count, target = ((back, back_at), (back2, back2_at))[distance - 1]
            first.v_proj.weight[head * size : head * size + count, own_at] = part[:count] * BACK_GAIN
            first.o_proj.weight[target, head * size : head * size + count] = torch.eye(count) * BACK_GAIN

    second = model.model.layers[1].self_attn
    _quiet(second, MATCH_SHARPNESS)
    slow = [pair for pair in range(half) if turns[pair] < SLOW]
    free = [*slow, *(pair + half for pair in slow)]
    order = torch.randperm(len(free)).tolist()
    near = int(len(free) * 0.58)  # for the token just before; the rest for the one before that
    near_dims, far_dims = [free[i] for i in order[:near]], [free[i] for i in order[near:]]
    share = -(-own // heads)  # each head copies a part of the identity
    for head in range(heads):
        mixed, mixed2 = _orthonormal(near, back), _orthonormal(len(far_dims), back2)
        for row, dim in enumerate(near_dims):
            second.q_proj.weight[head * size + dim, own_at] = mixed[row] @ part * 0.5
            second.k_proj.weight[head * size + dim, back_at] = mixed[row] * 0.5
        for row, dim in enumerate(far_dims):
            second.q_proj.weight[head * size + dim, 1 + own : 1 + own + back2] = mixed2[row] * 0.5
            second.k_proj.weight[head * size + dim, back2_at] = mixed2[row] * 0.5
        for i, dim in enumerate(range(head * share, min((head + 1) * share, own))):
            if i < size:
                second.v_proj.weight[head * size + i, 1 + dim] = math.sqrt(COPY_GAIN)
                second.o_proj.weight[1 + dim, head * size + i] = math.sqrt(COPY_GAIN)
    for number, layer in enumerate(model.model.layers):
        layer.mlp.down_proj.weight.mul_(0.5)
        if number >= 2:
            layer.self_attn.o_proj.weight.mul_(0.5)


def _orthonormal(rows: int, columns: int) -> torch.Tensor:
    """(rows, columns) with orthonormal rows, or columns where there are more rows."""
    if rows > columns:
        return torch.as_tensor(torch.linalg.qr(torch.randn(rows, columns)).Q)
    return torch.as_tensor(torch.linalg.qr(torch.randn(columns, rows)).Q.T)


def _quiet(attention: Any, sharpness: float) -> None:
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        projection.weight.normal_(0, NOISE)
    attention.q_norm.weight.fill_(sharpness)
    attention.k_norm.weight.fill_(sharpness)
