"""A wave: the episodes that are played for one update. Each wave goes through these steps, in this order:

    inject -> admit accepted artifacts as bugs -> solve -> refill -> admit failed repairs as second-order bugs

Planning is left to `group_plans`, playing and judging to the dispatcher, training to the loop. Invariant:
each step reads the database. So a wave that is played again after a kill repeats only the step it was in, and
only the members that were not recorded.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from selfplay.agent.episode import Episode, Role
from selfplay.agent.runner import all_of
from selfplay.curriculum.rows import BugRow, GroupRow
from selfplay.errors import RunError, SandboxUnavailable
from selfplay.orchestrator.bug_rows import injected_bug, second_order_bug
from selfplay.orchestrator.crediting import Crediting
from selfplay.orchestrator.group_plans import GroupPlanner
from selfplay.orchestrator.run_state import RunState
from selfplay.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from selfplay.orchestrator.context import RunContext
    from selfplay.orchestrator.dispatcher import Dispatcher

SECOND_ORDER_TRIES = 2  # failed repairs of a bug that are validated, in the order of members


class Bell:
    """Wakes all who wait when anything was finished. They look up what it was."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


class Waves:
    """Plays waves. Several may be in play at once; a run that plays one at a time repeats exactly.

    bell: rings when a group or a wave is finished.
    """

    def __init__(
        self,
        context: RunContext,
        dispatcher: Dispatcher,
        phase: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        """phase: entered for each step, with the step's name."""
        self.bell = Bell()
        self._context = context
        self._dispatcher = dispatcher
        self._phase = phase
        self._state = RunState(context.store)
        self._planner = GroupPlanner(context.store, self._state, context.config, context.environments)
        self._crediting = Crediting(context.store, self._state, context.config)
        self._in_play: set[int] = set()
        self._injecting: set[int] = set()  # waves in play that have no solver groups yet
        self._starved: set[int] = set()  # those of them that wait until there is any bug to play

    async def play(self, wave: int) -> None:
        """Play what is left of the wave; then `is_played(wave)` is true.

        Raises RunError if the machine fails too often, or if no bug is left to play.
        """
        self._in_play.add(wave)
        self._injecting.add(wave)
        try:
            with self._phase("injecting"):
                others = self._injecting - {wave}
                groups = self._planner.plan_injector_groups(wave, others, self._dispatcher.accepted_share)
                await all_of([self._dispatcher.play_group(group) for group in groups])
                self._admit(groups, wave)
            with self._phase("solving"):
                groups = await self._plan_solver_groups(wave)
                while groups:
                    await all_of([self._solve(group) for group in groups])
                    groups = self._planner.plan_refills(wave)
            with self._phase("second order"):
                await self._admit_second_order(
                    self._context.store.groups(update=wave, role=Role.SOLVER), wave
                )
            self._state.set_played(wave)
        finally:
            for waves in (self._in_play, self._injecting, self._starved):
                waves.discard(wave)
            self.bell.ring()

    def is_played(self, wave: int) -> bool:
        return self._state.is_played(wave)

    def solver_slots(self, wave: int) -> int:
        """How many solver groups the wave plays, without refills."""
        return self._planner.solver_slots(wave)

    # ---- injecting

    def _admit(self, groups: Collection[GroupRow], wave: int) -> None:
        """Turn accepted artifacts into bugs, by group and member.

        The order of completion must not decide which of two equal artifacts is the duplicate.
        """
        if self._state.is_admitted(wave):
            return  # the run was killed later than this
        for group in groups:
            duplicates = self._admit_group(group)
            if duplicates:
                self._context.progress.message(
                    f"{group.group_id}: {duplicates} valid artifact(s) repeat a bug of this run (duplicate)"
                )

    def _admit_group(self, group: GroupRow) -> int:
        """Returns the number of duplicates: valid artifacts whose bug is there already."""
        store = self._context.store
        environment = self._context.environments[group.repository]
        duplicates = 0
        for row in store.episodes(group_id=group.group_id):
            recorded = store.verdict(row.episode_id)
            if recorded is None or not recorded.accepted:
                continue
            verdict = Verdict.from_json(json.loads(recorded.checks_json))
            submission = Episode.read(self._context.run.path / row.path).submission
            bug = injected_bug(row.episode_id, submission, verdict, group, row.member, environment)
            duplicates += not store.add_bug(bug) and store.find_bug(bug.bug_id) is None
        return duplicates

    # ---- solving

    async def _plan_solver_groups(self, wave: int) -> list[GroupRow]:
        """The wave's solver groups. Waits while no bug is free and another wave may still bring one."""
        if not self._state.is_planned(wave, Role.SOLVER):
            slots = self._planner.solver_slots(wave)
            bugs = self._planner.choose_bugs(wave, slots)
            while slots and not bugs and (self._in_play - self._starved - {wave}):
                self._starved.add(wave)
                await self.bell.wait()
                self._starved.discard(wave)
                bugs = self._planner.choose_bugs(wave, slots)
            if not bugs and not self._context.config.train.injector_groups and not self._in_play - {wave}:
                raise RunError(
                    f"update {wave} has nothing to play: no bug is left in the curriculum (void ones are not "
                    "played) and train.injector_groups = 0 adds none. Start a run with train.injector_groups "
                    "of 1 or more, or with other train.bugs."
                )
            self._planner.plan_solver_groups(wave, bugs)
        self._injecting.discard(wave)
        self.bell.ring()
        return self._context.store.groups(update=wave, role=Role.SOLVER)

    async def _solve(self, group: GroupRow) -> None:
        """Play and reward one group. An update may train on it while other groups are still played."""
        if group.status != "open":
            return
        await self._dispatcher.play_group(group)
        self._crediting.credit_solvers(group)
        self.bell.ring()

    # ---- second-order bugs

    async def _admit_second_order(self, groups: Collection[GroupRow], wave: int) -> None:
        """Turn the first failed repair that validates into a bug, of each measured first-order bug."""
        store = self._context.store
        if self._context.config.solver.second_order_share == 0:
            return
        for group in groups:
            parent = store.bug(group.bug_id)
            is_decided = self._state.is_second_order_decided(group.group_id)
            if parent.order != 1 or parent.status != "measured" or is_decided:
                continue
            found = await self._second_order_bug(group, parent, wave)
            with store.transaction():
                if found is not None and not store.add_bug(found):
                    found = None  # the repair made a bug that is there already
                self._state.set_second_order(group.group_id, found.bug_id if found else None)

    async def _second_order_bug(self, group: GroupRow, parent: BugRow, wave: int) -> BugRow | None:
        attempts = self._context.store.attempts(parent.bug_id, group_id=group.group_id)
        failed = [attempt for attempt in attempts if attempt.passed is False and attempt.patch]
        for attempt in failed[:SECOND_ORDER_TRIES]:
            try:
                verdict = await self._dispatcher.judge_second_order(group, attempt.patch)
            except SandboxUnavailable:
                return None
            if verdict.accepted:
                return second_order_bug(parent, attempt, verdict, wave)
        return None
