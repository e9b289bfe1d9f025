"""The rewards of a finished group, and who of it is masked. Pure: rows and verdicts are read elsewhere.

Invariant: a failure of the machine never becomes a reward. Such an episode is masked, and so is one whose
reward depends on its verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfplay import parts
from selfplay.algorithm.episodes import PENALTY, treatment
from selfplay.algorithm.rewards import RewardInputs, needs_solve_rate
from selfplay.verdicts.confirmation import Confirmation


@dataclass(frozen=True)
class SolveRate:
    """What a solver group measured.

    rate     share of graded attempts that repaired the bug, 0..1; None if fewer than half are graded
    graded   attempts with a grade
    passes   attempts that repaired the bug
    is_void  True if the unrepaired bug passed in a control run
    """

    rate: float | None
    graded: int
    passes: int
    is_void: bool


def measure_solve_rate(
    outcomes: Sequence[bool | None], confirmations: Sequence[Confirmation], group_size: int
) -> SolveRate:
    """The solve rate of a bug, from one group.

    outcomes       for each member: passed or not; None if the machine failed
    confirmations  for each graded attempt; NOT_CONFIRMED voids the bug
    """
    graded = [outcome for outcome in outcomes if outcome is not None]
    passes = sum(graded)
    rate = passes / len(graded) if 2 * len(graded) >= group_size and graded else None
    return SolveRate(rate, len(graded), passes, Confirmation.NOT_CONFIRMED in confirmations)


@dataclass(frozen=True)
class Credit:
    """One episode's reward; None masks it. note: why."""

    reward: float | None
    note: str

    @property
    def masked(self) -> bool:
        return self.reward is None


MASKED_MACHINE = Credit(None, "machine failure")


def credit_injector(inputs: RewardInputs, reward: str, solve_rate: SolveRate | None) -> Credit | None:
    """One injector episode's reward; None while its bug waits for its solvers.

    reward: name of the reward function. Raises PartError if one's own fails.
    inputs: all that is known without the solvers. solve_rate: None before they have played.
    """
    setting = "injector.reward"
    note = f"rejected: {inputs.failed_check}" if not inputs.is_accepted else "accepted"
    if inputs.is_accepted and inputs.is_duplicate:
        note = "duplicate"
    elif inputs.is_accepted and needs_solve_rate(parts.load(setting, reward)):
        if solve_rate is None:
            return None
        if solve_rate.rate is None and not solve_rate.is_void:
            return Credit(None, "too few graded attempts")
        inputs = replace(inputs, solve_rate=solve_rate.rate, is_void=solve_rate.is_void)
        note = f"solve rate {solve_rate.rate:.2f}" if solve_rate.rate is not None else ""
        if solve_rate.is_void:
            note = "void: the bug passed without a repair"
    return Credit(parts.finite(setting, reward, parts.call(setting, reward, inputs)), note)


def credit_solver(inputs: RewardInputs, reward: str, passed: bool | None) -> Credit:
    """One repair attempt's reward. reward: name of the function. passed: None if the machine failed.

    Raises PartError if one's own reward fails.
    """
    setting = "solver.reward"
    if passed is None:
        return MASKED_MACHINE
    if inputs.is_void:
        return Credit(None, "void bug")
    value = parts.finite(setting, reward, parts.call(setting, reward, inputs))
    return Credit(value, "repaired" if passed else "not repaired")


def penalised(credit: Credit, finish: str, policy: str) -> Credit:
    """The credit, or the penalty if the episode policy says so of this finish reason.

    A masked one stays masked.
    """
    if credit.masked or treatment(policy, finish) != "penalise":
        return credit
    return Credit(PENALTY, f"penalised: {finish}")
