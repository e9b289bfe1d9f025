"""What one update optimises: each token's weight, the weighed losses of a micro-batch, and the sums that metrics are made of.

Shared by all trainers; leaves optimisers, precision and processes to them. Invariant: weights are fixed over the whole update and losses
are sums, so that cutting it into micro-batches, or over ranks, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from selfplay.algorithm.loss import Clipping, aggregation_weights, divergence, policy_loss
from selfplay.config import TrainerSettings
from selfplay.training.batch import MicroBatch, Sample


@dataclass(frozen=True)
class WeighedBatch:
    """A micro-batch with all that its loss needs. The second dimension of `token_ids` is the longest row's."""

    token_ids: Tensor  # (rows, seq) int64
    positions: Tensor | None  # (rows, seq) int64 where rows hold several samples
    action_rows: Tensor  # (actions,)
    action_places: Tensor  # (actions,)
    rollout_logprobs: Tensor  # (actions,) float32
    advantages: Tensor  # (actions,) float32
    weights: Tensor  # (actions,) float32, normalised over the whole update
    role_numbers: Tensor  # (actions,) which of `roles`
    roles: tuple[str, ...]

    def to(self, device: torch.device) -> WeighedBatch:
        tensors = {
            f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


def episode_weights(samples: Sequence[Sample], settings: TrainerSettings, context_tokens: int) -> list[float]:
    """What each action token of a sample weighs in the loss: normalised within its role, over all of the role's episodes."""
    weights = [0.0] * len(samples)
    for role in sorted({s.role for s in samples}):
        members = [i for i, s in enumerate(samples) if s.role == role]
        lengths = torch.tensor([samples[i].action_tokens for i in members])
        shares = aggregation_weights(settings.aggregation, lengths, context_tokens)
        for index, share in zip(members, shares.tolist(), strict=True):
            weights[index] = share * samples[index].weight
    return weights


def check_lengths(samples: Sequence[Sample], context_tokens: int) -> None:
    """Raises ValueError for samples longer than the context: the caller's mistake."""
    if too_long := [len(s.token_ids) for s in samples if len(s.token_ids) > context_tokens]:
        raise ValueError(f"a sample has {max(too_long)} tokens, the context {context_tokens}")


def warmed_up_rate(settings: TrainerSettings, weight_version: int) -> float:
    """The learning rate of the update after `weight_version`: linear up to `warmup_updates`, then constant."""
    return settings.learning_rate * min(1.0, (weight_version + 1) / max(1, settings.warmup_updates))


def weigh(batch: MicroBatch, samples: Sequence[Sample], weights: Sequence[float]) -> WeighedBatch:
    """samples, weights: of the whole update, which `batch.rows` points into."""
    members = sorted({index for row in batch.rows for index in row})
    place = {index: number for number, index in enumerate(members)}
    owners = torch.tensor([place[index] for index in batch.action_samples.tolist()])
    roles = tuple(sorted({samples[i].role for i in members}))
    return WeighedBatch(
        batch.token_ids,
        batch.positions,
        batch.action_rows,
        batch.action_places,
        batch.rollout_logprobs,
        batch.advantages,
        torch.tensor([weights[i] for i in members])[owners],
        torch.tensor([roles.index(samples[i].role) for i in members])[owners],
        roles,
    )


def filler() -> WeighedBatch:
    """The smallest batch that runs through every parameter and weighs nothing: it keeps a rank in step with the others."""
    zero, one = torch.zeros(1), torch.ones(1, dtype=torch.int64)
    return WeighedBatch(
        torch.zeros(1, 2, dtype=torch.int64), None, one - 1, one, zero, zero, zero, one - 1, ()
    )


def action_logits(
    model: Any, token_ids: Tensor, rows: Tensor, places: Tensor, positions: Tensor | None = None
) -> Tensor:
    """(actions, vocab) fp32 logits that predict the tokens at `places`; the head is not computed anywhere else.

    positions: where rows hold several samples. transformers reads from their jumps that no token may look past one.
    """
    packed = {} if positions is None else {"position_ids": positions}
    hidden = model.base_model(
        input_ids=token_ids, use_cache=False, **packed
    ).last_hidden_state  # (rows, seq, hidden)
    logits: Tensor = model.get_output_embeddings()(hidden[rows, places - 1])
    return logits.float()


def weighed_losses(
    batch: WeighedBatch,
    logits: Tensor,
    clipping: Clipping,
    tally: Tally,
    anchor: Tensor | None = None,
    kl_coef: float = 0.0,
) -> Tensor:
    """(actions,) whose sum is the micro-batch's share of the loss; what is told of it is added to `tally`.

    anchor: (actions, vocab) logits of the policy that the run began with; the divergence from it counts `kl_coef` times.
    """
    scores = torch.log_softmax(logits, -1)  # (actions, vocab)
    logprobs = scores.gather(1, batch.token_ids[batch.action_rows, batch.action_places][:, None])[:, 0]
    losses, ratio, is_clipped = policy_loss(
        logprobs, batch.rollout_logprobs, batch.advantages, batch.weights, clipping
    )
    apart = None if anchor is None else divergence(logits, anchor)
    if apart is not None:
        losses = losses + kl_coef * batch.weights * apart
    with torch.no_grad():
        entropy = -(scores.exp() * scores).sum(-1)
        gap = (logprobs - batch.rollout_logprobs).abs()
        for number, role in enumerate(batch.roles):
            chosen = batch.role_numbers == number
            tally.add(
                role, losses.detach()[chosen], entropy[chosen], ratio[chosen], is_clipped[chosen], gap[chosen]
            )
            if apart is not None:
                tally.add_one(role, "divergence", apart.detach()[chosen])
    return losses


class Tally:
    """Sums over action tokens, per role and over all."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}

    def add(
        self, role: str, losses: Tensor, entropy: Tensor, ratio: Tensor, is_clipped: Tensor, gap: Tensor
    ) -> None:
        named = {
            "loss": losses,
            "entropy": entropy,
            "ratio": ratio,
            "clip_share": is_clipped.float(),
            "rollout_logprob_diff": gap,
        }
        added = {name: values.sum().item() for name, values in named.items()} | {
            "count": float(ratio.numel())
        }
        for key in (f"{role}/", ""):
            self._merge(key, added)

    def add_one(self, role: str, name: str, values: Tensor) -> None:
        """Of tokens that `add` counts."""
        for key in (f"{role}/", ""):
            self._merge(key, {name: values.sum().item()})

    def merge(self, other: Tally) -> None:
        """Take in what another rank counted."""
        for key, sums in other._sums.items():
            self._merge(key, sums)

    def _merge(self, key: str, added: dict[str, float]) -> None:
        sums = self._sums.setdefault(key, {})
        for name, value in added.items():
            sums[name] = sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """loss is a sum of weighted terms already; the others are means over action tokens."""
        metrics: dict[str, float] = {}
        for key, sums in self._sums.items():
            count = max(1.0, sums["count"])
            means = ("entropy", "ratio", "clip_share", "rollout_logprob_diff", "divergence")
            metrics |= {f"{key}{name}": sums[name] / count for name in means if name in sums}
            metrics |= {f"{key}loss": sums["loss"], f"{key}action_tokens": sums["count"]}
        return metrics
