"""Advantages within one group of episodes. Pure. Forming groups, and dropping those of equal rewards, is the
orchestrator's.

An advantage is a function from a Group to one number an episode; `trainer.advantage` names it (see
selfplay/parts.py). Invariant: a group whose rewards are all equal (a single episode too) gets zeros,
whatever the function.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from selfplay import parts
from selfplay.errors import PartError

SETTING = "trainer.advantage"


@dataclass(frozen=True)
class Group:
    """rewards, lengths (action tokens): (episodes,). role: of all of them, "injector" or "solver"."""

    rewards: Sequence[float]
    lengths: Sequence[int]
    role: str = ""


def compute_advantages(name: str, group: Group) -> list[float]:
    """One advantage an episode, (episodes,). Raises PartError if one's own returns anything else."""
    if len(group.rewards) != len(group.lengths):
        raise ValueError(f"{len(group.rewards)} rewards and {len(group.lengths)} lengths in one group")
    if len(set(group.rewards)) <= 1:
        return [0.0] * len(group.rewards)
    found = [parts.finite(SETTING, name, value) for value in parts.call(SETTING, name, group)]
    if len(found) != len(group.rewards):
        raise PartError(
            f"{SETTING} = {name!r} returned {len(found)} values for {len(group.rewards)} episodes"
        )
    return found


def rloo(group: Group) -> list[float]:
    """r_i - mean of the others = n/(n-1) · (r_i - mean). Source: Ahmadian et al. 2024."""
    count, mean = len(group.rewards), statistics.fmean(group.rewards)
    return [count / (count - 1) * (reward - mean) for reward in group.rewards]


def dr_grpo(group: Group) -> list[float]:
    """r_i - mean. Source: Liu et al. 2025."""
    mean = statistics.fmean(group.rewards)
    return [reward - mean for reward in group.rewards]


def cwm(group: Group) -> list[float]:
    """r_i - mean weighed by length. Source: Code World Model, 2025."""
    weights = group.lengths if sum(group.lengths) > 0 else None
    mean = statistics.fmean(group.rewards, weights)
    return [reward - mean for reward in group.rewards]


def grpo(group: Group) -> list[float]:
    """(r_i - mean) / (sample deviation + 1e-6). Source: Shao et al. 2024."""
    mean, deviation = statistics.fmean(group.rewards), statistics.stdev(group.rewards)
    return [(reward - mean) / (deviation + 1e-6) for reward in group.rewards]
