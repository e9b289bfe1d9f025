"""Who earned what: the rewards of a finished group and which of its members' turns are learned from. Pure; store and trainer are elsewhere.

Invariant: a machine's failure never becomes a reward: such a member is masked, and so is whoever depends on its verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.algorithm.rewards import (
    INVALID_REWARD,
    InjectorReward,
    duplicate_reward,
    injector_reward,
    solver_reward,
)


@dataclass(frozen=True)
class SolveRate:
    """What a solver group says of its bug. rate is None when fewer than half of the group's attempts were graded."""

    rate: float | None
    graded: int
    passes: int
    is_void: bool


def measure_solve_rate(
    outcomes: Sequence[bool | None], confirmations: Sequence[bool | None], group_size: int
) -> SolveRate:
    """The share of graded attempts that repaired the bug; void when any pass was not confirmed by its second grading.

    outcomes       passed, per member; None where the machine failed
    confirmations  per member: False where a pass and its repetition disagreed, which voids the bug
    """
    graded = [outcome for outcome in outcomes if outcome is not None]
    passes = sum(graded)
    rate = passes / len(graded) if 2 * len(graded) >= group_size and graded else None
    return SolveRate(rate, len(graded), passes, any(confirmed is False for confirmed in confirmations))


@dataclass(frozen=True)
class Credit:
    """A member's reward; None with `masked` true when it must not train."""

    reward: float | None
    note: str

    @property
    def masked(self) -> bool:
        return self.reward is None


MASKED_MACHINE = Credit(None, "machine failure")


def credit_injector(
    accepted: bool,
    is_duplicate: bool,
    failed_check: str,
    solve_rate: SolveRate | None,
    kind: InjectorReward,
    alpha: float,
) -> Credit | None:
    """One injector episode's reward (ssr.md, Rewards), or None while its bug waits for its solvers."""
    if not accepted:
        return Credit(INVALID_REWARD, f"rejected: {failed_check}")
    if is_duplicate:
        return Credit(duplicate_reward(alpha), "duplicate")
    if kind == "consistency":
        return Credit(injector_reward(kind, 0.0, alpha), "accepted")
    if solve_rate is None:
        return None
    if solve_rate.is_void:
        return Credit(INVALID_REWARD, "void: a confirmed repair did not repeat")
    if solve_rate.rate is None:
        return Credit(None, "too few graded attempts")
    return Credit(injector_reward(kind, solve_rate.rate, alpha), f"solve rate {solve_rate.rate:.2f}")


def credit_solver(passed: bool | None, bug_is_void: bool) -> Credit:
    if passed is None:
        return MASKED_MACHINE
    if bug_is_void:
        return Credit(None, "void bug")
    return Credit(solver_reward(passed), "repaired" if passed else "not repaired")
