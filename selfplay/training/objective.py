"""The objective of one update: token weights, the weighted losses of a micro-batch, and sums for metrics.

All trainers share it. Optimisers, precision and processes are theirs. Invariant: weights are fixed over the
whole update and losses are sums, so micro-batches and ranks change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from selfplay.algorithm.loss import Clipping, aggregation_weights, kl_divergence, policy_loss
from selfplay.engines.models import head_logits
from selfplay.settings.learning import TrainerSettings
from selfplay.training.batch import MicroBatch, Sample
from selfplay.training.prompt_trees import Tree


@dataclass(frozen=True)
class WeightedBatch:
    """A micro-batch with everything that its loss needs. See `MicroBatch` for the fields that both have."""

    token_ids: Tensor  # (rows, seq) int64
    position_ids: Tensor | None  # (rows, seq) int64; None if each row is one sample
    action_rows: Tensor  # (actions,)
    action_positions: Tensor  # (actions,)
    action_samples: Tensor  # (actions,) index of its sample in the update
    action_places: Tensor  # (actions,) index of the token in its sample
    rollout_logprobs: Tensor  # (actions,) float32
    advantages: Tensor  # (actions,) float32
    weights: Tensor  # (actions,) float32, normalised over the whole update
    role_numbers: Tensor  # (actions,) index into `roles`
    roles: tuple[str, ...]
    trees: tuple[Tree, ...] | None = None
    window: tuple[int, int] | None = None  # positions that this rank computes; None: all

    def to(self, device: torch.device) -> WeightedBatch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{**values, **moved})


def episode_weights(samples: Sequence[Sample], settings: TrainerSettings, context_tokens: int) -> list[float]:
    """Return the loss weight of each action token, one number for each sample.

    Weights are normalised within a role, over all its episodes of the update.
    """
    weights = [0.0] * len(samples)
    for role in sorted({s.role for s in samples}):
        members = [i for i, s in enumerate(samples) if s.role == role]
        lengths = torch.tensor([samples[i].action_tokens for i in members])
        shares = aggregation_weights(settings.aggregation, lengths, context_tokens)
        for index, share in zip(members, shares.tolist(), strict=True):
            weights[index] = share * samples[index].weight
    return weights


def check_lengths(samples: Sequence[Sample], context_tokens: int) -> None:
    """Raises ValueError if a sample is longer than the context, which is the caller's mistake."""
    if too_long := [len(s.token_ids) for s in samples if len(s.token_ids) > context_tokens]:
        raise ValueError(f"a sample has {max(too_long)} tokens, the context {context_tokens}")


def warmed_up_rate(settings: TrainerSettings, weight_version: int) -> float:
    """Return the learning rate of the update after `weight_version`: linear warm-up, then constant."""
    return settings.learning_rate * min(1.0, (weight_version + 1) / max(1, settings.warmup_updates))


def add_token_weights(
    batch: MicroBatch, samples: Sequence[Sample], weights: Sequence[float]
) -> WeightedBatch:
    """Add weights and roles to a micro-batch. samples, weights: of the whole update."""
    members = sorted({index for row in batch.rows for index in row})
    position = {index: number for number, index in enumerate(members)}
    owners = torch.tensor([position[index] for index in batch.action_samples.tolist()])  # (actions,)
    roles = tuple(sorted({samples[i].role for i in members}))
    places = batch.action_positions
    if batch.position_ids is not None:
        places = batch.position_ids[batch.action_rows, batch.action_positions]
    return WeightedBatch(
        batch.token_ids,
        batch.position_ids,
        batch.action_rows,
        batch.action_positions,
        batch.action_samples,
        places,
        batch.rollout_logprobs,
        batch.advantages,
        torch.tensor([weights[i] for i in members])[owners],
        torch.tensor([roles.index(samples[i].role) for i in members])[owners],
        roles,
        batch.trees,
    )


def loss_bounds(settings: TrainerSettings) -> Clipping:
    """Return how the settings bound ratios and importance weights."""
    return Clipping(
        settings.clip_low,
        settings.clip_high,
        settings.clip_negative,
        settings.clipping,
        settings.off_policy,
        settings.importance_cap,
    )


def dummy_batch(tokens: int = 2) -> WeightedBatch:
    """Return a batch of one short row that uses every parameter, with weight 0.

    A rank without work runs it in step.
    """
    zero, one = torch.zeros(1), torch.ones(1, dtype=torch.int64)
    return WeightedBatch(
        token_ids=torch.zeros(1, tokens, dtype=torch.int64),
        position_ids=None,
        action_rows=one - 1,
        action_positions=one,
        action_samples=one - 1,
        action_places=one,
        rollout_logprobs=zero,
        advantages=zero,
        weights=zero,
        role_numbers=one - 1,
        roles=(),
    )


def action_states(
    model: Any, token_ids: Tensor, rows: Tensor, positions: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Return the states (actions, hidden) that predict the tokens at (rows, positions), each (actions,).

    position_ids: (rows, seq) of packed rows. transformers separates the samples of a row where the ids start
    again from 0.
    """
    packed = {} if position_ids is None else {"position_ids": position_ids}
    output = model.base_model(input_ids=token_ids, use_cache=False, **packed)
    hidden: Tensor = output.last_hidden_state  # (rows, seq, hidden)
    return hidden[rows, positions - 1]


def action_logits(
    model: Any, token_ids: Tensor, rows: Tensor, positions: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Return the fp32 logits (actions, vocab) that predict the tokens at (rows, positions), each (actions,).

    The head is computed for these tokens alone. Arguments as in `action_states`.
    """
    return head_logits(model, action_states(model, token_ids, rows, positions, position_ids))


def weighted_losses(
    batch: WeightedBatch,
    logits: Tensor,
    clipping: Clipping,
    sums: MetricSums,
    reference_logits: Tensor | None = None,
    kl_coef: float = 0.0,
) -> Tensor:
    """Return the losses (actions,). Their sum is the micro-batch's share of the loss.

    logits: (actions, vocab). sums: gets the metrics. reference_logits: (actions, vocab) of the reference
        policy.
    kl_coef: weight of the KL penalty to it.
    """
    values = token_values(batch, logits, clipping, reference_logits, kl_coef)
    add_values(batch, {**values, "loss": values["loss"].detach()}, sums)
    return values["loss"]


def token_values(
    batch: WeightedBatch,
    logits: Tensor,
    clipping: Clipping,
    reference_logits: Tensor | None = None,
    kl_coef: float = 0.0,
) -> dict[str, Tensor]:
    """Return each action token's weighted loss, with its gradient, and its metrics. All (actions,).

    Arguments as in `weighted_losses`.
    """
    scores = torch.log_softmax(logits, -1)  # (actions, vocab)
    logprobs = scores.gather(1, batch.token_ids[batch.action_rows, batch.action_positions][:, None])[:, 0]
    losses, ratio, is_clipped = policy_loss(
        logprobs, batch.rollout_logprobs, batch.advantages, batch.weights, clipping
    )
    kl = None if reference_logits is None else kl_divergence(logits, reference_logits)  # (actions,)
    if kl is not None:
        losses = losses + kl_coef * batch.weights * kl
    with torch.no_grad():
        values = {
            "loss": losses,
            "entropy": -(scores.exp() * scores).sum(-1),
            "ratio": ratio,
            "clip_share": is_clipped.float(),
            "rollout_logprob_diff": (logprobs - batch.rollout_logprobs).abs(),
        }
        if kl is not None:
            values["kl"] = kl.detach()
    return values


def add_values(batch: WeightedBatch, values: Mapping[str, Tensor], sums: MetricSums) -> None:
    """Add metrics (actions,) to the sums of their roles."""
    if batch.roles:  # a dummy batch has none
        sums.add_ratios(batch, values["ratio"])
    for number, role in enumerate(batch.roles):
        chosen = batch.role_numbers == number
        sums.add(role, {name: value[chosen] for name, value in values.items()})


class MetricSums:
    """Sums of metrics over action tokens, for each role and for both together; and each token's ratio."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}
        self._ratios: list[tuple[Tensor, Tensor, Tensor]] = []  # samples, places, ratios: each (actions,)

    def add_ratios(self, batch: WeightedBatch, ratios: Tensor) -> None:
        """ratios: (actions,) of the batch's action tokens."""
        self._ratios.append(
            (batch.action_samples.cpu(), batch.action_places.cpu(), ratios.detach().float().cpu())
        )

    def ratios(self, lengths: Sequence[int]) -> list[Tensor]:
        """The ratio of each token, for each sample of the update (tokens,). NaN: none was computed.

        lengths: tokens of each sample.
        """
        found = [torch.full((length,), math.nan) for length in lengths]
        for owners, places, ratios in self._ratios:
            for owner in set(owners.tolist()):
                chosen = owners == owner
                found[owner][places[chosen]] = ratios[chosen]
        return found

    def add(self, role: str, values: Mapping[str, Tensor]) -> None:
        """values: metric name -> (tokens,), the same tokens for each metric."""
        added = {name: value.sum().item() for name, value in values.items()}
        added["count"] = float(values["loss"].numel())
        for key in (f"{role}/", ""):
            self._merge(key, added)

    def merge(self, other: MetricSums) -> None:
        """Add the sums of another rank."""
        for key, sums in other._sums.items():
            self._merge(key, sums)
        self._ratios += other._ratios

    def _merge(self, key: str, added: dict[str, float]) -> None:
        sums = self._sums.setdefault(key, {})
        for name, value in added.items():
            sums[name] = sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Return the metrics.

        The loss is a sum, since its terms are weighted; the others are means over tokens.
        """
        metrics: dict[str, float] = {}
        for key, sums in self._sums.items():
            count = max(1.0, sums["count"])
            means = ("entropy", "ratio", "clip_share", "rollout_logprob_diff", "kl")
            metrics |= {f"{key}{name}": sums[name] / count for name in means if name in sums}
            metrics |= {f"{key}loss": sums["loss"], f"{key}action_tokens": sums["count"]}
        return metrics
