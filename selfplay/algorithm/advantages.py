"""Credit within one group of episodes, from their rewards alone. Pure; forming groups and dropping equal ones is the loop's.

Invariant: a group whose rewards are all equal (a single episode too) gets zeros.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

AdvantageName = Literal["rloo", "dr_grpo", "cwm", "grpo"]


def compute_advantages(name: AdvantageName, rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """One advantage an episode. rewards, lengths (action tokens): (group,).

    rloo     r_i - mean of the others = n/(n-1) · (r_i - mean)         (Ahmadian et al. 2024)
    dr_grpo  r_i - mean                                                (Liu et al. 2025)
    cwm      r_i - mean weighed by length                              (Code World Model, 2025)
    grpo     (r_i - mean) / (sample deviation + 1e-6)                  (Shao et al. 2024)
    """
    if len(rewards) != len(lengths):
        raise ValueError(f"{len(rewards)} rewards and {len(lengths)} lengths in one group")
    if len(set(rewards)) <= 1:
        return [0.0] * len(rewards)
    count = len(rewards)
    mean = statistics.fmean(rewards)
    if name == "rloo":
        return [count / (count - 1) * (r - mean) for r in rewards]
    if name == "dr_grpo":
        return [r - mean for r in rewards]
    if name == "cwm":
        weighed = statistics.fmean(rewards, lengths) if sum(lengths) > 0 else mean
        return [r - weighed for r in rewards]
    if name == "grpo":
        deviation = statistics.stdev(rewards)
        return [(r - mean) / (deviation + 1e-6) for r in rewards]
    raise ValueError(f"unknown advantage {name!r}; known: rloo, dr_grpo, cwm, grpo")
