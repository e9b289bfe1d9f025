"""Micro-batches in which episodes with the same prompt share it: a flat row of trees, without padding. Pure.

A tree is a prompt, then the rest of each of its episodes. Each rest attends to the prompt and to itself, so
the result is that of separate rows and the prompt is computed once. Invariant: the token before an action is
in the row directly before it, since the prompt's last token belongs to the rest of each episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfplay.training.batch import MicroBatch, Sample, chosen_samples, pack_rows, used_tokens


@dataclass(frozen=True)
class Tree:
    """Consecutive tokens of a flat row: a shared prompt, then branches that do not see each other.

    start: index of the first token. prompt: its tokens, 0 if nothing is shared. branches: tokens of each.
    """

    start: int
    prompt: int
    branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt + sum(self.branches)


@dataclass(frozen=True)
class _Family:
    """Samples with the same first `prompt` tokens. lengths: used tokens of each, the prompt included."""

    prompt: int
    members: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.prompt + sum(length - self.prompt for length in self.lengths)


def make_shared_batches(
    samples: Sequence[Sample], token_budget: int, all_actions: bool = False
) -> list[MicroBatch]:
    """Return the micro-batches of an update on one process, each of one flat row with `trees`.

    A group that exceeds the budget is cut, and each part gets its own copy of the prompt. Arguments as in
    `make_micro_batches`. The largest micro-batch comes first.
    """
    families = [
        part
        for family in _families(samples, chosen_samples(samples, all_actions))
        for part in _cut(family, token_budget)
    ]
    rows = pack_rows([family.tokens for family in families], token_budget)
    rows.sort(key=lambda row: -sum(families[i].tokens for i in row))
    return [_collate(samples, [families[i] for i in row]) for row in rows]


def _families(samples: Sequence[Sample], chosen: Sequence[int]) -> list[_Family]:
    """Group samples whose tokens before the first action are equal, all but the last of them."""
    found: dict[tuple[int, ...], list[int]] = {}
    for index in chosen:
        sample = samples[index]
        found.setdefault(tuple(sample.token_ids[: list(sample.loss_mask).index(1) - 1]), []).append(index)
    return [
        _Family(
            len(prompt) if len(members) > 1 else 0,
            tuple(members),
            tuple(used_tokens(samples[i]) for i in members),
        )
        for prompt, members in found.items()
    ]


def _cut(family: _Family, token_budget: int) -> list[_Family]:
    """Cut a family into parts within the budget. A sample that exceeds it alone is a part of its own."""
    parts: list[list[int]] = []  # positions in the family
    room = 0
    for position in sorted(range(len(family.members)), key=lambda i: (-family.lengths[i], i)):
        rest = family.lengths[position] - family.prompt
        if not parts or rest > room:
            parts.append([])
            room = token_budget - family.prompt
        parts[-1].append(position)
        room -= rest
    return [
        _Family(
            family.prompt if len(part) > 1 else 0,
            tuple(family.members[i] for i in part),
            tuple(family.lengths[i] for i in part),
        )
        for part in parts
    ]


def _collate(samples: Sequence[Sample], families: Sequence[_Family]) -> MicroBatch:
    token_ids: list[int] = []  # the flat row
    position_ids: list[int] = []
    trees: list[Tree] = []
    positions: list[int] = []  # of action tokens, and so on
    owners: list[int] = []
    logprobs: list[float] = []
    advantages: list[float] = []
    for family in families:
        prompt = family.prompt
        trees.append(Tree(len(token_ids), prompt, tuple(length - prompt for length in family.lengths)))
        token_ids += samples[family.members[0]].token_ids[:prompt]
        position_ids += range(prompt)
        for index, length in zip(family.members, family.lengths, strict=True):
            sample, offset = samples[index], len(token_ids) - prompt
            own = sample.advantages
            actions = [i for i in range(prompt, length) if sample.loss_mask[i]]
            positions += [offset + i for i in actions]
            owners += [index] * len(actions)
            logprobs += [sample.logprobs[i] for i in actions]
            advantages += [own[i] for i in actions]
            token_ids += sample.token_ids[prompt:length]
            position_ids += range(prompt, length)
    return MicroBatch(
        (tuple(index for family in families for index in family.members),),
        torch.tensor([token_ids], dtype=torch.int64),
        torch.tensor([position_ids], dtype=torch.int64),
        torch.zeros(len(positions), dtype=torch.int64),
        torch.tensor(positions),
        torch.tensor(owners),
        torch.tensor(logprobs, dtype=torch.float32),
        torch.tensor(advantages, dtype=torch.float32),
        tuple(trees),
    )
