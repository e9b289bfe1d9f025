"""What an episode earns, from verdicts and grades alone. Pure. Which episodes are rewarded at all is
`credit`'s.

A reward is a function from RewardInputs to a number; `injector.reward` and `solver.reward` name it (see
selfplay/parts.py). Invariant: the rewards of this module lie in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

INVALID_REWARD = -1.0

Reward = Callable[["RewardInputs"], float]


@dataclass(frozen=True)
class RewardInputs:
    """What is known of an episode when it is rewarded.

    Of both roles:
      finish         how the episode ended, for instance "submitted" or "max_turns"
      turns          tool calls
      diff_lines     lines that the submission adds or removes (injector: in bug_inject.diff)
      fail_to_pass   tests that the bug breaks; 0 without a valid artifact
      pass_to_pass   tests that pass with the bug; 0 without a valid artifact
    Of an injector:
      is_accepted    True if the validator accepted the artifact
      failed_check   name of the check that rejected it, "" for none
      is_duplicate   True if this run had accepted the same buggy tree before
      is_void        True if its bug passed without a repair, in a control run
      solve_rate     share of graded attempts that repaired the bug, 0..1; None before it is measured
      alpha          `injector.alpha`
    Of a solver:
      is_repaired    True if every fail-to-pass and pass-to-pass test passes
      failed_tests   fail-to-pass and pass-to-pass tests that do not pass
    """

    finish: str
    turns: int = 0
    diff_lines: int = 0
    fail_to_pass: int = 0
    pass_to_pass: int = 0
    is_accepted: bool = False
    failed_check: str = ""
    is_duplicate: bool = False
    is_void: bool = False
    solve_rate: float | None = None
    alpha: float = 0.8
    is_repaired: bool = False
    failed_tests: tuple[str, ...] = ()


def without_solve_rate(reward: Reward) -> Reward:
    """Mark an injector's reward that does not read the solve rate: the episode need not wait for its
    solvers.
    """
    reward.needs_solve_rate = False  # type: ignore[attr-defined]
    return reward


def needs_solve_rate(reward: Reward) -> bool:
    return getattr(reward, "needs_solve_rate", True)


def ssr_injector_reward(inputs: RewardInputs) -> float:
    """-1 for an invalid artifact; -α for a duplicate or if s is 0 or 1; else 1 - (1 + α)·s.

    s: the solve rate. Source: SSR, arXiv 2512.18552, "Rewards"; the penalty of a duplicate is ours: it
    teaches nothing.
    """
    if not inputs.is_accepted or inputs.is_void:
        return INVALID_REWARD
    if inputs.is_duplicate:
        return -inputs.alpha
    rate = inputs.solve_rate
    if rate is None or not 0.0 <= rate <= 1.0:
        raise ValueError(f"a solve rate lies in [0, 1], not {rate}")
    if rate in (0.0, 1.0):
        return -inputs.alpha
    return 1.0 - (1.0 + inputs.alpha) * rate


@without_solve_rate
def consistency_reward(inputs: RewardInputs) -> float:
    """-1 for an invalid artifact, -α for a duplicate, else 1: valid is enough (the paper's ablation)."""
    if not inputs.is_accepted:
        return INVALID_REWARD
    return -inputs.alpha if inputs.is_duplicate else 1.0


def ssr_solver_reward(inputs: RewardInputs) -> float:
    """+1 if every fail-to-pass and pass-to-pass test passes, else -1 (SSR, "Grading")."""
    return 1.0 if inputs.is_repaired else -1.0


def binary_reward(inputs: RewardInputs) -> float:
    """1 if every fail-to-pass and pass-to-pass test passes, else 0."""
    return 1.0 if inputs.is_repaired else 0.0
