"""The clipped policy-gradient loss over action tokens, and what is logged of it. Tensors only; knows no roles, episodes or models.

Invariant: where trainer and rollout agree (ratio 1), its gradient is that of REINFORCE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["constant", "token", "sequence"]


@dataclass(frozen=True)
class Clipping:
    low: float = 0.2
    high: float = 0.25
    negative: float = 3.0  # c: for A < 0 a token's loss is at most -c·A (dual clip)


def token_losses(
    logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor, clipping: Clipping
) -> tuple[Tensor, Tensor, Tensor]:
    """L = -min(ρA, clip(ρ, 1-ε_l, 1+ε_h)·A), for A < 0 capped at -c·A, with ρ against the rollout's own log-probabilities.

    All (tokens,). Returns the losses, the ratios and which tokens' gradients the clipping removed (bool), the latter two detached.
    Sources: PPO (Schulman 2017), DAPO's two bounds (2025), the cap of dual-clip PPO (Ye et al. 2020).
    """
    ratio = torch.exp((logprobs - rollout_logprobs).clamp(-20.0, 20.0))
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clipping.low, 1 + clipping.high) * advantages
    losses = -torch.minimum(plain, clipped)
    cap = -clipping.negative * advantages
    capped = (advantages < 0) & (losses > cap)
    losses = torch.where(capped, cap, losses)
    return losses, ratio.detach(), ((clipped < plain) | capped).detach()


def aggregation_weights(kind: Aggregation, lengths: Tensor, max_length: int) -> Tensor:
    """The weight of each action token of each episode, so that Σ weight·loss is the role's loss.

    lengths: (episodes,) of one role, all of the update.

    constant  1 / (B · L_max)                 L_max the configured context: Dr.GRPO, CWM
    token     1 / Σ lengths                   DAPO
    sequence  1 / (B · length)                the mean of episodes' means
    """
    count = lengths.numel()
    lengths = lengths.double()
    if kind == "constant":
        return torch.full_like(lengths, 1.0 / (count * max_length))
    if kind == "token":
        return torch.full_like(lengths, 1.0 / max(1.0, lengths.sum().item()))
    if kind == "sequence":
        return 1.0 / (count * lengths.clamp_min(1))
    raise ValueError(f"unknown aggregation {kind!r}; known: constant, token, sequence")


def divergence(logits: Tensor, anchor_logits: Tensor) -> Tensor:
    """KL(policy || anchor), (places,), from logits (places, vocab): over the whole vocabulary, so that no draw's chance is in it."""
    scores, anchor = torch.log_softmax(logits, -1), torch.log_softmax(anchor_logits, -1)
    return (scores.exp() * (scores - anchor)).sum(-1)


def policy_loss(
    logprobs: Tensor,  # (tokens,) of action tokens only: observations are masked by not being here
    rollout_logprobs: Tensor,  # (tokens,)
    advantages: Tensor,  # (tokens,) the episode's, repeated
    weights: Tensor,  # (tokens,) from `aggregation_weights`, repeated
    clipping: Clipping,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per token: its weighted loss (their sum is the loss), its ratio and whether it was clipped."""
    losses, ratio, is_clipped = token_losses(logprobs, rollout_logprobs, advantages, clipping)
    return losses * weights, ratio, is_clipped
