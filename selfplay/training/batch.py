"""Episodes as trainable samples, and their way into right-padded micro-batches: a row each, or several to a row. Pure; no model.

Invariant: every sample is in exactly one micro-batch, and a micro-batch exceeds the token budget only if a single sample does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One episode to learn from. token_ids, loss_mask, logprobs: (tokens,); logprobs count only where the mask is 1.

    advantage: one for all of its tokens, or (tokens,).
    weight multiplies its loss; an episode of weight 0 still counts in its role's B (masked, not dropped).
    """

    token_ids: Sequence[int]
    loss_mask: Sequence[int]
    logprobs: Sequence[float]
    advantage: float | Sequence[float]
    role: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.loss_mask) == len(self.logprobs):
            raise ValueError("a sample's token_ids, loss_mask and logprobs differ in length")
        if not isinstance(self.advantage, float | int) and len(self.advantage) != len(self.token_ids):
            raise ValueError(f"a sample of {len(self.token_ids)} tokens has {len(self.advantage)} advantages")
        if self.loss_mask and self.loss_mask[0]:
            raise ValueError("a sample's first token cannot be an action: nothing predicts it")

    @property
    def action_tokens(self) -> int:
        return sum(self.loss_mask)

    @property
    def advantages(self) -> Sequence[float]:
        """(tokens,)"""
        return (
            [self.advantage] * len(self.token_ids)
            if isinstance(self.advantage, float | int)
            else self.advantage
        )


@dataclass(frozen=True)
class MicroBatch:
    """rows: which samples of the update stand in each row, one after another. The action tokens follow, row by row."""

    rows: tuple[tuple[int, ...], ...]
    token_ids: Tensor  # (rows, seq) int64, padded on the right with 0, which causal attention never lets an action see
    positions: (
        Tensor | None
    )  # (rows, seq) int64 counted from each sample's start; None where every row is one sample
    action_rows: Tensor  # (actions,) row of each action token
    action_places: (
        Tensor  # (actions,) index of the action token in its row; its prediction stands one place before
    )
    action_samples: Tensor  # (actions,) whose it is: index in the update
    rollout_logprobs: Tensor  # (actions,) float32
    advantages: Tensor  # (actions,) float32

    @property
    def padded_tokens(self) -> int:
        return self.token_ids.numel()


def plan_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices in groups whose count · longest stays within the budget, longest first (what does not fit in memory fails at once)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    plan: list[list[int]] = []
    for index in order:
        if plan and lengths[plan[-1][0]] * (len(plan[-1]) + 1) <= token_budget:
            plan[-1].append(index)
        else:
            plan.append([index])
    return plan


def plan_rank_batches(lengths: Sequence[int], token_budget: int, ranks: int) -> list[list[list[int]]]:
    """For each rank its micro-batches of indices, equally many on every rank: one that gets none has an empty list there.

    Micro-batches are cut in two while some rank would have none, and those that run at the same time are of similar size, since
    ranks wait for the slowest of each.
    """
    plan = plan_micro_batches(lengths, token_budget)
    steps = -(-len(plan) // ranks)

    def padded(group: Sequence[int]) -> int:
        return lengths[group[0]] * len(group)

    while len(plan) < steps * ranks and any(len(group) > 1 for group in plan):
        largest = max((group for group in plan if len(group) > 1), key=padded)
        half = len(largest) // 2
        at = plan.index(largest)
        plan[at : at + 1] = [largest[:half], largest[half:]]
    plan.sort(key=padded, reverse=True)
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    for step in range(steps):
        groups = plan[step * ranks : (step + 1) * ranks]
        groups += [[]] * (ranks - len(groups))
        for rank, group in enumerate(
            groups if step % 2 == 0 else reversed(groups)
        ):  # back and forth, so that sums stay close
            shares[rank].append(group)
    return shares


def trim(sample: Sample) -> int:
    """How many tokens of a sample are worth computing: up to its last action, what follows has no loss."""
    return max((place + 1 for place, is_action in enumerate(sample.loss_mask) if is_action), default=0)


def with_gradient(samples: Sequence[Sample]) -> list[int]:
    """Indices of the samples that carry a gradient: some action token whose advantage is not 0, and a weight that is not."""
    return [i for i, s in enumerate(samples) if s.weight and any(map(mul, s.advantages, s.loss_mask))]


def pack_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices in rows of at most `row_tokens` (a longer one alone), longest first into the fullest row that still takes it."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [row for row, left in enumerate(free) if left >= lengths[index]]
        if fitting:
            row = min(fitting, key=lambda row: free[row])
            rows[row].append(index)
            free[row] -= lengths[index]
        else:
            rows.append([index])
            free.append(row_tokens - lengths[index])
    return rows


def _rows(
    samples: Sequence[Sample], packing: bool, all_actions: bool = False
) -> tuple[list[list[int]], list[int]]:
    """The rows of an update, as indices of samples, and their lengths. Samples without a gradient are left out."""
    kept = (
        [i for i, s in enumerate(samples) if s.weight and s.action_tokens]
        if all_actions
        else with_gradient(samples)
    )
    lengths = [trim(samples[i]) for i in kept]
    rows = (
        pack_rows(lengths, max(lengths, default=0)) if packing else [[number] for number in range(len(kept))]
    )
    return [[kept[number] for number in row] for row in rows], [
        sum(lengths[number] for number in row) for row in rows
    ]


def make_micro_batches(
    samples: Sequence[Sample], token_budget: int, packing: bool = False, all_actions: bool = False
) -> list[MicroBatch]:
    """Samples without a gradient are left out, unless `all_actions` have a loss whatever their advantages are. With `packing`, rows as
    long as the longest sample hold as many as fit."""
    rows, lengths = _rows(samples, packing, all_actions)
    return [
        _collate(samples, [rows[i] for i in group]) for group in plan_micro_batches(lengths, token_budget)
    ]


def make_rank_batches(
    samples: Sequence[Sample], token_budget: int, ranks: int, packing: bool = False, all_actions: bool = False
) -> list[list[MicroBatch | None]]:
    """The same for each rank, equally many: None where a rank has nothing of its own to do and yet must keep step."""
    rows, lengths = _rows(samples, packing, all_actions)
    return [
        [_collate(samples, [rows[i] for i in group]) if group else None for group in share]
        for share in plan_rank_batches(lengths, token_budget, ranks)
    ]


def _collate(samples: Sequence[Sample], rows: Sequence[Sequence[int]]) -> MicroBatch:
    longest = max(sum(trim(samples[i]) for i in row) for row in rows)
    token_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    positions = torch.zeros(len(rows), longest, dtype=torch.int64)
    action_rows: list[int] = []
    places: list[int] = []
    owners: list[int] = []
    logprobs: list[float] = []
    advantages: list[float] = []
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            sample, length = samples[index], trim(samples[index])
            own = sample.advantages
            token_ids[number, start : start + length] = torch.as_tensor(
                sample.token_ids[:length], dtype=torch.int64
            )
            positions[number, start : start + length] = torch.arange(length)
            actions = [place for place in range(length) if sample.loss_mask[place]]
            action_rows += [number] * len(actions)
            places += [start + place for place in actions]
            owners += [index] * len(actions)
            logprobs += [sample.logprobs[place] for place in actions]
            advantages += [own[place] for place in actions]
            start += length
    return MicroBatch(
        tuple(tuple(row) for row in rows),
        token_ids,
        positions if any(len(row) > 1 for row in rows) else None,
        torch.tensor(action_rows),
        torch.tensor(places),
        torch.tensor(owners),
        torch.tensor(logprobs, dtype=torch.float32),
        torch.tensor(advantages, dtype=torch.float32),
    )
