"""Draws tokens from logits by random numbers that the caller gives. Pure tensors: no engine and no request.

Invariant: a row's token depends on its logits and its number alone, not on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 256  # words of the vocabulary whose shares are summed first, so that few sums are looked through


def draw_tokens(
    logits: Tensor, draws: Sequence[float], temperatures: Sequence[float], top_ps: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Return a token for each row, and its log-probability at temperature 1.

    logits: (rows, vocab) fp32. draws: numbers from 0 to 1, at which each row's distribution is inverted.
    temperatures: 0 takes the likeliest token. top_ps: see `top_shares`.
    """
    plain = torch.softmax(logits, -1)  # (rows, vocab)
    if all(temperature in (0, 1) for temperature in temperatures):
        shares = plain
    else:
        divisors = torch.tensor([[t or 1.0] for t in temperatures], device=logits.device)
        shares = torch.softmax(logits / divisors, -1)
    filtered = [row for row, top_p in enumerate(top_ps) if top_p < 1]
    if filtered:
        kept = torch.tensor([top_ps[row] for row in filtered], dtype=torch.float64, device=logits.device)
        shares = shares.clone()
        shares[filtered] = top_shares(shares[filtered].double(), kept).float()
    tokens = _inverted(shares, torch.tensor(draws, dtype=torch.float64, device=logits.device))
    greedy = [row for row, temperature in enumerate(temperatures) if temperature == 0]
    if greedy:
        tokens[greedy] = logits[greedy].argmax(-1)
    chosen = plain.gather(1, tokens[:, None])[:, 0]
    return tokens.tolist(), chosen.clamp_min(torch.finfo(plain.dtype).tiny).log().tolist()


def _inverted(shares: Tensor, draws: Tensor) -> Tensor:
    """The tokens (rows,) where the running sum of `shares` (rows, vocab) passes `draws` times its last value.

    First a block is found by the sums of blocks, then the token in it.
    """
    rows, vocab = shares.shape
    padded = torch.nn.functional.pad(shares, (0, -vocab % _BLOCK)) if vocab % _BLOCK else shares
    padded = padded.view(rows, -1, _BLOCK)
    sums = padded.sum(-1).double().cumsum(-1)  # (rows, blocks)
    targets = _below(draws * sums[:, -1], sums[:, -1])
    blocks = torch.searchsorted(sums, targets[:, None], right=True)  # (rows, 1)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(1, blocks)[:, 0]
    inside = padded[torch.arange(rows, device=shares.device), blocks[:, 0]].double().cumsum(-1)
    places = torch.searchsorted(inside, _below(targets - before, inside[:, -1])[:, None], right=True)
    return (blocks * _BLOCK + places)[:, 0]


def _below(targets: Tensor, sums: Tensor) -> Tensor:
    """Targets below the last sum, so that rounding reaches neither past the end nor a token of share 0."""
    return targets.clamp_max(torch.nextafter(sums, torch.zeros_like(sums)))


def top_shares(shares: Tensor, top_p: Tensor) -> Tensor:
    """`shares` without the tokens that the likeliest ones leave over: those before them reach `top_p`.

    shares: (rows, vocab), sums of 1. top_p: (rows,). The likeliest token is always kept.
    """
    ordered, order = shares.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # the share of all likelier tokens
    ordered = ordered.masked_fill(before >= top_p[:, None], 0.0)
    return torch.zeros_like(shares).scatter(-1, order, ordered)
