"""Episodes as training samples, and right-padded micro-batches of one sample a row, or of packed rows. Pure.

Invariants: every sample with a gradient is in exactly one micro-batch; a micro-batch exceeds the token budget
only if a single sample does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from selfplay.training.prompt_trees import Tree


@dataclass(frozen=True)
class Sample:
    """One episode to learn from.

    token_ids: (tokens,).
    loss_mask: (tokens,), 1 for action tokens.
    logprobs: (tokens,), of the rollout. Read only where the mask is 1.
    advantage: one number for all tokens, or (tokens,).
    weight: factor of the loss. An episode of weight 0 still counts in its role's number of episodes.
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
            raise ValueError("a sample's first token cannot be an action: no token predicts it")

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
    """One forward pass. `actions` is the number of action tokens, which are in order of rows.

    rows: indices of the update's samples in each row, one after another.
    """

    rows: tuple[tuple[int, ...], ...]
    token_ids: Tensor  # (rows, seq) int64; padded on the right with 0, which no action attends to
    position_ids: Tensor | None  # (rows, seq) int64, from 0 in each sample; None if each row is one sample
    action_rows: Tensor  # (actions,) row of each action token
    action_positions: Tensor  # (actions,) index of the token in its row; the index before predicts it
    action_samples: Tensor  # (actions,) index of its sample in the update
    rollout_logprobs: Tensor  # (actions,) float32
    advantages: Tensor  # (actions,) float32
    trees: tuple[Tree, ...] | None = None  # of a single flat row (see prompt_trees.py); None: ordinary rows

    @property
    def padded_tokens(self) -> int:
        return self.token_ids.numel()


def plan_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group indices so that count · longest length stays within the budget.

    The longest come first, so that a batch that does not fit in memory fails at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    plan: list[list[int]] = []
    for index in order:
        if plan and lengths[plan[-1][0]] * (len(plan[-1]) + 1) <= token_budget:
            plan[-1].append(index)
        else:
            plan.append([index])
    return plan


def plan_rank_batches(lengths: Sequence[int], token_budget: int, ranks: int) -> list[list[list[int]]]:
    """Return each rank's micro-batches as lists of indices. Every rank gets equally many; some may be empty.

    Micro-batches are cut in two while a rank would have an empty one. Those that run at the same time have
    similar sizes, since ranks wait for the slowest one.
    """
    plan = plan_micro_batches(lengths, token_budget)
    steps = -(-len(plan) // ranks)

    def padded(group: Sequence[int]) -> int:
        return lengths[group[0]] * len(group)

    while len(plan) < steps * ranks and any(len(group) > 1 for group in plan):
        largest = max((group for group in plan if len(group) > 1), key=padded)
        half = len(largest) // 2
        index = plan.index(largest)
        plan[index : index + 1] = [largest[:half], largest[half:]]
    plan.sort(key=padded, reverse=True)
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    for step in range(steps):
        groups = plan[step * ranks : (step + 1) * ranks]
        groups += [[]] * (ranks - len(groups))
        # The order alternates, so that the ranks' sums stay close.
        for rank, group in enumerate(groups if step % 2 == 0 else reversed(groups)):
            shares[rank].append(group)
    return shares


def used_tokens(sample: Sample) -> int:
    """Return the length up to the last action token.

    The tokens after it have no loss and are not computed.
    """
    return max((index + 1 for index, is_action in enumerate(sample.loss_mask) if is_action), default=0)


def with_gradient(samples: Sequence[Sample]) -> list[int]:
    """Return the indices of samples with a weight and with an action token whose advantage is not 0."""
    return [i for i, s in enumerate(samples) if s.weight and any(map(mul, s.advantages, s.loss_mask))]


def chosen_samples(samples: Sequence[Sample], all_actions: bool) -> list[int]:
    """Return the indices of samples to compute: with a gradient, or all that have actions and a weight."""
    if not all_actions:
        return with_gradient(samples)
    return [i for i, s in enumerate(samples) if s.weight and s.action_tokens]


def pack_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Pack indices into rows of at most `row_tokens`. A longer sample gets a row of its own.

    Best fit, longest first: each goes into the fullest row that has room for it.
    """
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
    """Return the rows of an update, as indices of samples, and their lengths in tokens."""
    chosen = chosen_samples(samples, all_actions)
    lengths = [used_tokens(samples[i]) for i in chosen]
    rows = pack_rows(lengths, max(lengths, default=0)) if packing else [[i] for i in range(len(chosen))]
    return [[chosen[i] for i in row] for row in rows], [sum(lengths[i] for i in row) for row in rows]


def make_micro_batches(
    samples: Sequence[Sample], token_budget: int, packing: bool = False, all_actions: bool = False
) -> list[MicroBatch]:
    """Return the micro-batches of an update on one process.

    token_budget: upper bound of rows · length. packing: a row, as long as the longest sample, takes as many
    samples as fit. all_actions: also take samples without a gradient, as a KL penalty needs.
    """
    rows, lengths = _rows(samples, packing, all_actions)
    return [
        _collate(samples, [rows[i] for i in group]) for group in plan_micro_batches(lengths, token_budget)
    ]


def make_rank_batches(
    samples: Sequence[Sample], token_budget: int, ranks: int, packing: bool = False, all_actions: bool = False
) -> list[list[MicroBatch | None]]:
    """Return the micro-batches of each rank, equally many on all. None: the rank runs a dummy batch.

    Arguments as in `make_micro_batches`.
    """
    rows, lengths = _rows(samples, packing, all_actions)
    return [
        [_collate(samples, [rows[i] for i in group]) if group else None for group in share]
        for share in plan_rank_batches(lengths, token_budget, ranks)
    ]


def _collate(samples: Sequence[Sample], rows: Sequence[Sequence[int]]) -> MicroBatch:
    longest = max(sum(used_tokens(samples[i]) for i in row) for row in rows)
    token_ids = torch.zeros(len(rows), longest, dtype=torch.int64)  # (rows, seq)
    position_ids = torch.zeros(len(rows), longest, dtype=torch.int64)  # (rows, seq)
    action_rows: list[int] = []
    action_positions: list[int] = []
    action_samples: list[int] = []
    logprobs: list[float] = []
    advantages: list[float] = []
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            sample, length = samples[index], used_tokens(samples[index])
            own = sample.advantages
            new_ids = torch.as_tensor(sample.token_ids[:length], dtype=torch.int64)
            token_ids[number, start : start + length] = new_ids
            position_ids[number, start : start + length] = torch.arange(length)
            actions = [i for i in range(length) if sample.loss_mask[i]]
            action_rows += [number] * len(actions)
            action_positions += [start + i for i in actions]
            action_samples += [index] * len(actions)
            logprobs += [sample.logprobs[i] for i in actions]
            advantages += [own[i] for i in actions]
            start += length
    return MicroBatch(
        tuple(tuple(row) for row in rows),
        token_ids,
        position_ids if any(len(row) > 1 for row in rows) else None,
        torch.tensor(action_rows),
        torch.tensor(action_positions),
        torch.tensor(action_samples),
        torch.tensor(logprobs, dtype=torch.float32),
        torch.tensor(advantages, dtype=torch.float32),
    )
