"""Credit for finished groups: reads their verdicts and grades, and writes rewards into the database.

`algorithm.credit` computes the rewards. Invariant: a group gets all its rewards and its new status in one
transaction, so a kill leaves no group half paid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.agent.episode import Role
from selfplay.algorithm.credit import (
    MASKED_MACHINE,
    Credit,
    SolveRate,
    credit_injector,
    credit_solver,
    measure_solve_rate,
)
from selfplay.curriculum.rows import BugRow, EpisodeRow, GroupRow
from selfplay.orchestrator.bug_rows import injected_bug_id
from selfplay.orchestrator.run_state import RunState
from selfplay.settings.playing import InjectorSettings

if TYPE_CHECKING:
    from selfplay.curriculum.store import Store


@dataclass(frozen=True)
class Crediting:
    """Rewards the groups of one run."""

    store: Store
    state: RunState
    settings: InjectorSettings

    def credit_injectors(self) -> None:
        """Reward the open injector groups of which every bug is measured. The others wait."""
        for group in self.store.groups(role=Role.INJECTOR, status="open"):
            if not self.state.is_admitted(group.update):
                continue
            rows = self.store.episodes(group_id=group.group_id)
            credits = [self._injector_credit(row) for row in rows]
            known = [(row, credit) for row, credit in zip(rows, credits, strict=True) if credit is not None]
            if len(known) == group.size:
                with self.store.transaction():
                    self._pay(known)
                    self.store.set_group_status(group.group_id, "complete")

    def credit_solvers(self, group: GroupRow) -> None:
        """Measure the bug that the group played, and reward the group."""
        rows = self.store.episodes(group_id=group.group_id)
        attempts = [self.store.attempt(row.episode_id) for row in rows]
        passed = [attempt.passed if attempt else None for attempt in attempts]
        confirmations = [attempt.confirmed for attempt in attempts if attempt]
        rate = measure_solve_rate(passed, confirmations, group.size)
        with self.store.transaction():
            self._pay(zip(rows, (credit_solver(each, rate.is_void) for each in passed), strict=True))
            if rate.is_void:
                self.store.set_bug_status(group.bug_id, "void")
            else:
                self.store.set_solve_rate(group.bug_id, rate.rate, rate.graded, rate.passes)
            self.store.set_group_status(group.group_id, "void" if rate.is_void else "complete")

    def _injector_credit(self, row: EpisodeRow) -> Credit | None:
        """None while the episode's bug waits for its solvers."""
        if row.masked:
            return MASKED_MACHINE
        verdict = self.store.verdict(row.episode_id)
        bug = self.store.find_bug(injected_bug_id(row.episode_id))
        return credit_injector(
            verdict is not None and verdict.accepted,
            bug is None,
            verdict.failed_check if verdict else "",
            first_solve_rate(bug) if bug else None,
            self.settings.reward,
            self.settings.alpha,
        )

    def _pay(self, credits: Iterable[tuple[EpisodeRow, Credit]]) -> None:
        for row, credit in credits:
            self.store.set_reward(row.episode_id, credit.reward, credit.note, masked=credit.masked)


def first_solve_rate(bug: BugRow) -> SolveRate | None:
    """What the first measurement says; None before it. A replay may measure the bug again before it is paid.

    The rate is None if fewer than half of the attempts were graded; then the injector's episode is masked.
    """
    if bug.status not in ("measured", "void"):
        return None
    return SolveRate(bug.first_solve_rate, bug.attempts, bug.passes, bug.status == "void")
