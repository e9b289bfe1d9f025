"""What the two roles earn, from verdicts and grades alone. Pure; which episodes are scored at all is decided elsewhere.

Invariant: every reward lies in [-1, 1].
"""

from __future__ import annotations

from typing import Literal

INVALID_REWARD = -1.0
InjectorReward = Literal["ssr", "consistency"]


def injector_reward(kind: InjectorReward, solve_rate: float, alpha: float = 0.8) -> float:
    """The reward of an artifact that the validator accepted, for the share of solver attempts that repaired it.

    ssr          -α if s is 0 or 1, else 1 - (1 + α)·s               (SSR, arXiv 2512.18552, "Rewards")
    consistency  1: valid is enough                                  (the paper's ablation)
    """
    if not 0.0 <= solve_rate <= 1.0:
        raise ValueError(f"a solve rate lies in [0, 1], not {solve_rate}")
    if kind == "consistency":
        return 1.0
    if kind != "ssr":
        raise ValueError(f"unknown injector reward {kind!r}; known: ssr, consistency")
    if solve_rate in (0.0, 1.0):
        return -alpha
    return 1.0 - (1.0 + alpha) * solve_rate


def duplicate_reward(alpha: float = 0.8) -> float:
    """The reward of an artifact whose buggy tree this run already accepted: as one that teaches nothing, -α (ours)."""
    return -alpha


def solver_reward(passed: bool) -> float:
    """+1 if every test of F2P and P2P passes, else -1 (SSR, "Grading")."""
    return 1.0 if passed else -1.0
