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
    penalised,
)
from selfplay.algorithm.rewards import RewardInputs
from selfplay.config import Config
from selfplay.curriculum.rows import AttemptRow, BugRow, EpisodeRow, GroupRow
from selfplay.errors import PatchError
from selfplay.orchestrator.bug_rows import injected_bug_id
from selfplay.orchestrator.run_state import RunState
from selfplay.source.diffs import diff_bytes, parse_patch

if TYPE_CHECKING:
    from selfplay.curriculum.store import Store


BUG_DIFF = "bug_inject.diff"  # of an artifact


@dataclass(frozen=True)
class Crediting:
    """Rewards the groups of one run."""

    store: Store
    state: RunState
    config: Config

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
        bug = self.store.bug(group.bug_id)
        credits = [
            self._solver_credit(row, attempt, bug, rate.is_void)
            for row, attempt in zip(rows, attempts, strict=True)
        ]
        with self.store.transaction():
            self._pay(zip(rows, credits, strict=True))
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
        inputs = RewardInputs(
            finish=row.finish,
            turns=row.turns,
            diff_lines=changed_lines(bug.artifact[BUG_DIFF]) if bug else 0,
            fail_to_pass=len(bug.fail_to_pass) if bug else 0,
            pass_to_pass=len(bug.pass_to_pass) if bug else 0,
            is_accepted=verdict is not None and verdict.accepted,
            failed_check=verdict.failed_check if verdict else "",
            is_duplicate=bug is None,
            alpha=self.config.injector.alpha,
        )
        credit = credit_injector(inputs, self.config.injector.reward, first_solve_rate(bug) if bug else None)
        return credit and penalised(credit, row.finish, self.config.trainer.episodes)

    def _solver_credit(
        self, row: EpisodeRow, attempt: AttemptRow | None, bug: BugRow, is_void: bool
    ) -> Credit:
        inputs = RewardInputs(
            finish=row.finish,
            turns=row.turns,
            diff_lines=changed_lines(attempt.patch) if attempt else 0,
            fail_to_pass=len(bug.fail_to_pass),
            pass_to_pass=len(bug.pass_to_pass),
            is_void=is_void,
            is_repaired=bool(attempt and attempt.passed),
            failed_tests=attempt.failed_tests if attempt else (),
        )
        credit = credit_solver(inputs, self.config.solver.reward, attempt.passed if attempt else None)
        return penalised(credit, row.finish, self.config.trainer.episodes)

    def _pay(self, credits: Iterable[tuple[EpisodeRow, Credit]]) -> None:
        for row, credit in credits:
            self.store.set_reward(row.episode_id, credit.reward, credit.note, masked=credit.masked)


def changed_lines(diff: str) -> int:
    """Lines that a diff adds or removes; 0 if it cannot be read."""
    try:
        files = parse_patch(diff, len(diff_bytes(diff))).files
    except PatchError:
        return 0
    return sum(line[:1] in ("+", "-") for file in files for hunk in file.hunks for line in hunk.lines)


def first_solve_rate(bug: BugRow) -> SolveRate | None:
    """What the first measurement says; None before it. A replay may measure the bug again before it is paid.

    The rate is None if fewer than half of the attempts were graded; then the injector's episode is masked.
    """
    if bug.status not in ("measured", "void"):
        return None
    return SolveRate(bug.first_solve_rate, bug.attempts, bug.passes, bug.status == "void")
