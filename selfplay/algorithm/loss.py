"""The clipped policy-gradient loss over action tokens. Tensors only; knows no roles, episodes or models.

Two of its pieces are parts (see selfplay/parts.py): `trainer.clipping` bounds the importance ratio,
`trainer.aggregation` weighs tokens into a role's loss. `trainer.off_policy` says what corrects for tokens
that an older policy sampled. Three policies occur:

- behaviour: the policy that sampled the token;
- proximal: the policy before the optimiser step;
- current: the policy whose gradient is taken. It equals the proximal one in its values, since an update is
  one optimiser step.

Invariant: where trainer and rollout agree (ratio 1), the gradient is that of REINFORCE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from selfplay import parts
from selfplay.errors import PartError

OffPolicy = Literal["ratio", "truncated", "decoupled"]  # names as in `trainer.off_policy`


@dataclass(frozen=True)
class Clipping:
    """Bounds of the importance ratio. kind: the part that applies them.

    off_policy, cap: see `token_losses`.
    """

    low: float = 0.2  # ε_low
    high: float = 0.25  # ε_high
    negative: float = 3.0  # c of the dual clip
    kind: str = "dual_clip"
    off_policy: OffPolicy = "ratio"
    cap: float = 2.0  # C


def token_losses(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    clipping: Clipping,
    proximal_logprobs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's loss, its ratio ρ to the rollout, and whether a bound applied to it (bool). All (tokens,).

    With w = proximal / behaviour, u = current / proximal, and clip the part `clipping.kind`:

    - "ratio": clip(ρ, A), ρ = current / behaviour.
    - "truncated": min(w, C) · clip(u, A). Sources: truncated importance sampling of Ionides 2008 and IMPALA
      (arXiv 1802.01561); between engine and trainer: Yao et al. 2025.
    - "decoupled": w · clip(u, A), and 0 where w > C. Sources: Hilton et al. (arXiv 2110.00641); AReaL (arXiv
      2505.24298), equation 5 and its cap on w.

    proximal_logprobs: None: `logprobs` without gradient. ρ, w and the mask are detached.
    """
    ratio = _ratio(logprobs, rollout_logprobs)
    if clipping.off_policy == "ratio":
        losses, is_bounded = _clipped(ratio, advantages, clipping)
        return losses, ratio.detach(), is_bounded.detach()
    proximal = (logprobs if proximal_logprobs is None else proximal_logprobs).detach()
    weight = _ratio(proximal, rollout_logprobs)  # w
    losses, is_bounded = _clipped(_ratio(logprobs, proximal), advantages, clipping)
    is_above = weight > clipping.cap
    capped = torch.full_like(weight, clipping.cap if clipping.off_policy == "truncated" else 0.0)
    losses = torch.where(is_above, capped, weight) * losses
    return losses, ratio.detach(), is_bounded.detach() | is_above


def _ratio(logprobs: Tensor, other: Tensor) -> Tensor:
    """exp(logprobs - other), (tokens,), within what fp32 can hold."""
    return torch.exp((logprobs - other).clamp(-20.0, 20.0))


def _clipped(ratio: Tensor, advantages: Tensor, clipping: Clipping) -> tuple[Tensor, Tensor]:
    losses, is_clipped = parts.call("trainer.clipping", clipping.kind, ratio, advantages, clipping)
    _check("trainer.clipping", clipping.kind, losses, ratio)
    return losses, is_clipped


def clip(ratio: Tensor, advantages: Tensor, bounds: Clipping) -> tuple[Tensor, Tensor]:
    """L = -min(ρA, clip(ρ, 1 - ε_low, 1 + ε_high)·A), and which tokens' gradients it removed. All (tokens,).

    Sources: PPO (Schulman 2017); two bounds: DAPO (2025).
    """
    plain = ratio * advantages
    clipped = ratio.clamp(1 - bounds.low, 1 + bounds.high) * advantages
    return -torch.minimum(plain, clipped), clipped < plain


def dual_clip(ratio: Tensor, advantages: Tensor, bounds: Clipping) -> tuple[Tensor, Tensor]:
    """As `clip`, and for A < 0 a token's loss is at most -c·A. Source: dual-clip PPO (Ye et al. 2020)."""
    losses, is_clipped = clip(ratio, advantages, bounds)
    cap = -bounds.negative * advantages
    is_capped = (advantages < 0) & (losses > cap)
    return torch.where(is_capped, cap, losses), is_clipped | is_capped


def aggregation_weights(kind: str, lengths: Tensor, max_length: int) -> Tensor:
    """The weight of each action token of each episode, (episodes,), so that Σ weight·loss is the role's loss.

    lengths: (episodes,) action tokens, all of one role in the update. max_length: the context, tokens.
    """
    found: Tensor = parts.call("trainer.aggregation", kind, lengths.double(), max_length)
    _check("trainer.aggregation", kind, found, lengths)
    return found


def _check(setting: str, name: str, found: Tensor, like: Tensor) -> None:
    """Raise PartError unless a part of one's own returned finite numbers, as many as it was given."""
    if parts.is_own(name) and (found.shape != like.shape or not bool(torch.isfinite(found).all())):
        shapes = f"{tuple(found.shape)} for {tuple(like.shape)}"
        raise PartError(
            f"{setting} = {name!r} returned numbers that are not finite, or too few or many: {shapes}"
        )


def constant(lengths: Tensor, max_length: int) -> Tensor:
    """1 / (B · L_max), L_max the configured context. Sources: Dr. GRPO, CWM."""
    return torch.full_like(lengths, 1.0 / (lengths.numel() * max_length))


def token(lengths: Tensor, max_length: int) -> Tensor:
    """1 / Σ lengths. Source: DAPO."""
    return torch.full_like(lengths, 1.0 / max(1.0, lengths.sum().item()))


def sequence(lengths: Tensor, max_length: int) -> Tensor:
    """1 / (B · length): the mean of episodes' means."""
    return 1.0 / (lengths.numel() * lengths.clamp_min(1))


def kl_divergence(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL(policy || reference), (positions,), from logits (positions, vocab).

    It sums over the whole vocabulary, so it has no sampling noise.
    """
    scores, reference = torch.log_softmax(logits, -1), torch.log_softmax(reference_logits, -1)
    return (scores.exp() * (scores - reference)).sum(-1)


def policy_loss(
    logprobs: Tensor,  # (tokens,) of action tokens only: observations are masked by not being here
    rollout_logprobs: Tensor,  # (tokens,)
    advantages: Tensor,  # (tokens,) the episode's, repeated
    weights: Tensor,  # (tokens,) from `aggregation_weights`, repeated
    clipping: Clipping,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each token's weighted loss (their sum is the loss), its ratio, and whether it was clipped.

    All (tokens,).
    """
    losses, ratio, is_clipped = token_losses(logprobs, rollout_logprobs, advantages, clipping)
    return losses * weights, ratio, is_clipped
