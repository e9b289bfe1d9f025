"""A wave: what is played for one update. Plans, plays and settles it: inject, admit, solve, settle, second order, in that order.

Leaves playing and judging to the dispatcher, rewards of injectors and training to the loop. Invariant: a step reads the database, so a
wave that is played again, whole or in part, repeats only the step it was in, on the members that were not yet recorded.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict

from selfplay.agent.episode import Episode, Role
from selfplay.algorithm.credit import SolveRate, credit_solver, measure_solve_rate
from selfplay.config import InjectorSettings
from selfplay.curriculum.sampling import choose_solver_bugs, choose_strategy, choose_target
from selfplay.curriculum.store import BugRow, EpisodeRow, GroupRow
from selfplay.engines.base import derive_seed
from selfplay.errors import RunError, SandboxUnavailable
from selfplay.orchestrator.context import Game
from selfplay.orchestrator.dispatcher import Dispatcher, all_of
from selfplay.repositories.environment import Environment
from selfplay.repositories.targets import Target, usable_targets
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.validator import Thresholds, Verdict


class Bell:
    """Wakes all who wait: something was finished. What that was, they look up."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()


class Waves:
    """Several may be in play at once; alone, one repeats exactly. phase: times a step and shows it, where waves come one by one."""

    def __init__(
        self, game: Game, dispatcher: Dispatcher, phase: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self.bell = Bell()
        self._game = game
        self._dispatcher = dispatcher
        self._phase = phase
        self._in_play: set[int] = set()
        self._injecting: set[int] = set()  # those that have no solver groups yet
        self._starved: set[int] = set()  # those of them that wait for any bug at all

    async def play(self, update: int) -> None:
        """Once it returns, `is_played(update)`. Raises RunError when the machine fails too often, or nothing is left to play."""
        self._in_play.add(update)
        self._injecting.add(update)
        try:
            with self._phase("injecting"):
                groups = self._plan_injector_groups(update)
                await all_of([self._dispatcher.play_group(group) for group in groups])
                self._admit(groups, update)
            with self._phase("solving"):
                groups = await self._plan_solver_groups(update)
                while groups:
                    await all_of([self._solve(group) for group in groups])
                    groups = self._plan_refills(update)
            with self._phase("second order"):
                await self._admit_second_order(
                    self._game.store.groups(update=update, role=Role.SOLVER), update
                )
            self._game.store.set_state(f"played/{update}", "yes")
        finally:
            for waves in (self._in_play, self._injecting, self._starved):
                waves.discard(update)
            self.bell.ring()

    def is_played(self, update: int) -> bool:
        return self._game.store.state(f"played/{update}") is not None

    def is_admitted(self, update: int) -> bool:
        """Whether the wave's accepted artifacts are bugs by now; before that one of them only seems to be a duplicate."""
        return self._game.store.state(f"planned/{update}/solver") is not None

    # -- injecting ---------------------------------------------------------------------------------------------------

    def _plan_injector_groups(self, update: int) -> list[GroupRow]:
        """This update's injector groups, made once and stored. None are added while bugs queue for their solvers."""
        game, config = self._game, self._game.config
        if game.store.state(f"planned/{update}/injector"):
            return game.store.groups(update=update, role=Role.INJECTOR)
        rng = random.Random(derive_seed(config.seed, update, "injector groups"))
        plays_bugs = config.train.solver_groups > 0 or config.train.fill_idle_slots  # else no queue is ever shortened
        queue_is_full = plays_bugs and self._waiting_bugs(update) >= max(1, config.train.solver_groups)
        wanted = 0 if queue_is_full else config.train.injector_groups
        earlier = game.store.groups(role=Role.INJECTOR)
        uses = Counter(group.repository for group in earlier)
        target_uses = Counter(group.target_json for group in earlier if group.target_json)
        groups = []
        for number in range(wanted):
            least = min(uses[name] for name in game.environments)
            repository = rng.choice(sorted(name for name in game.environments if uses[name] == least))
            uses[repository] += 1
            target_json = ""
            if "target" in config.injector.help:
                environment = game.environments[repository]
                usable = targets_of(environment, config.injector)
                target_json = choose_target(
                    sorted(json.dumps(asdict(t), sort_keys=True) for t in usable), target_uses, rng
                )
                target_uses[target_json] += 1
            groups.append(
                GroupRow(
                    group_id=f"u{update:04d}-inj{number}",
                    update=update,
                    role=Role.INJECTOR,
                    repository=repository,
                    strategy=choose_strategy(
                        {str(name): weight for name, weight in config.injector.strategies.items()}, rng
                    ),
                    target_json=target_json,
                    bug_id="",
                    size=config.train.injector_group_size or config.train.group_size,
                )
            )
        self._store_plan(f"planned/{update}/injector", groups)
        return groups

    def _waiting_bugs(self, update: int) -> float:
        """First-order bugs that wait for solvers, with what other waves' injectors may bring and without what those waves will play."""
        store, train = self._game.store, self._game.config.train
        others = self._injecting - {update}
        coming = sum(group.size for wave in others for group in store.groups(update=wave, role=Role.INJECTOR))
        waiting = len(self._free(store.bugs(status="fresh", order=1)))
        return waiting + coming * self._dispatcher.accepted_share - len(others) * train.solver_groups

    def _free(self, bugs: list[BugRow], but: Collection[str] = ()) -> list[BugRow]:
        """Those that no solver group plays now, of repositories that are in the game."""
        played = {group.bug_id for group in self._game.store.groups(role=Role.SOLVER, status="open")}.union(
            but
        )
        return [bug for bug in bugs if bug.bug_id not in played and bug.repository in self._game.environments]

    def _store_plan(self, key: str, groups: list[GroupRow]) -> None:
        with self._game.store.transaction():
            for group in groups:
                self._game.store.add_group(group)
            self._game.store.set_state(key, "yes")

    def _admit(self, groups: list[GroupRow], update: int) -> None:
        """Accepted artifacts become bugs in the order of group and member, never of completion, so that duplicates repeat."""
        store = self._game.store
        if self.is_admitted(update):
            return  # a run that was killed later than this
        for group in groups:
            environment = self._game.environments[group.repository]
            duplicates = 0
            for row in store.episodes(group_id=group.group_id):
                recorded = store.verdict(row.episode_id)
                if recorded is None or not recorded.accepted:
                    continue
                verdict = Verdict.from_json(json.loads(recorded.checks_json))
                episode = Episode.read(self._game.run.path / row.path)
                bug_id = f"{row.episode_id}-bug"
                added = store.add_bug(
                    BugRow(
                        bug_id=bug_id,
                        repository=group.repository,
                        environment_key=environment.key,
                        base_commit=environment.base_commit,
                        order=1,
                        parent_bug_id=None,
                        parent_episode_id=None,
                        injector_episode_id=row.episode_id,
                        strategy=group.strategy,
                        target=group.target_json,
                        artifact=Artifact.from_files(episode.submission).to_files(),
                        attempt_patch="",
                        fail_to_pass=verdict.fail_to_pass,
                        pass_to_pass=verdict.pass_to_pass,
                        failure=verdict.failure,
                        tree_digest=verdict.buggy_digest,
                        status="fresh",
                        created_update=update,
                    )
                )
                duplicates += not added and store.find_bug(bug_id) is None
            if duplicates:
                self._game.progress.message(
                    f"{group.group_id}: {duplicates} valid artifact(s) repeat a bug of this run (duplicate)"
                )

    # -- solving -----------------------------------------------------------------------------------------------------

    async def _plan_solver_groups(self, update: int) -> list[GroupRow]:
        game, key = self._game, f"planned/{update}/solver"
        if not game.store.state(key):
            slots = self.solver_slots(update)
            chosen = self._choose_bugs(update, slots, "solver groups")
            while slots and not chosen and (self._in_play - self._starved - {update}):
                self._starved.add(update)  # other waves may still bring bugs, or give back those they play
                await self.bell.wait()
                self._starved.discard(update)
                chosen = self._choose_bugs(update, slots, "solver groups")
            if not chosen and not game.config.train.injector_groups and not self._in_play - {update}:
                raise RunError(
                    f"update {update} has nothing to play: no bug is left in the curriculum (void ones are not played) and "
                    "train.injector_groups = 0 adds none. Start a run with train.injector_groups of 1 or more, or with other train.bugs."
                )
            self._store_plan(key, self._solver_groups(update, chosen, 0))
        self._injecting.discard(update)
        self.bell.ring()
        return game.store.groups(update=update, role=Role.SOLVER)

    def _plan_refills(self, update: int) -> list[GroupRow]:
        """Groups in place of those that carry no gradient, train.refills at most; other bugs than the wave's."""
        store, limit = self._game.store, self._game.config.train.refills
        groups = store.groups(update=update, role=Role.SOLVER)
        if not limit or not groups:
            return []
        refilled = int(store.state(f"refilled/{update}") or 0)
        vain = sum(
            group.status != "open" and not carries_gradient(group, store.episodes(group_id=group.group_id))
            for group in groups
        )
        wanted = min(vain, limit) - refilled
        if wanted <= 0:
            return []
        chosen = self._choose_bugs(
            update, wanted, f"refill {refilled}", but={group.bug_id for group in groups}
        )
        new = self._solver_groups(update, chosen, len(groups))
        with store.transaction():
            self._store_plan(f"planned/{update}/solver", new)
            store.set_state(f"refilled/{update}", str(refilled + wanted))
        return new

    def _choose_bugs(self, update: int, slots: int, purpose: str, but: Collection[str] = ()) -> list[BugRow]:
        store, solver = self._game.store, self._game.config.solver
        return choose_solver_bugs(
            self._free(store.bugs(status="fresh"), but),
            self._free(store.bugs(status="measured"), but),
            slots,
            solver.second_order_share,
            random.Random(derive_seed(self._game.config.seed, update, purpose)),
            solver.replay_share,
        )

    def _solver_groups(self, update: int, bugs: list[BugRow], first: int) -> list[GroupRow]:
        return [
            GroupRow(
                group_id=f"u{update:04d}-sol{number}",
                update=update,
                role=Role.SOLVER,
                repository=bug.repository,
                strategy=bug.strategy,
                target_json="",
                bug_id=bug.bug_id,
                size=self._game.config.train.group_size,
            )
            for number, bug in enumerate(bugs, first)
        ]

    def solver_slots(self, update: int) -> int:
        """How many bugs are played now. With train.fill_idle_slots solvers also take the places of injectors that wait for the queue of bugs."""
        train = self._game.config.train
        if not train.fill_idle_slots:
            return train.solver_groups
        injecting = sum(group.size for group in self._game.store.groups(update=update, role=Role.INJECTOR))
        planned = (
            train.injector_groups * (train.injector_group_size or train.group_size)
            + train.solver_groups * train.group_size
        )
        return (planned - injecting) // train.group_size

    async def _solve(self, group: GroupRow) -> None:
        """Play the group, then settle it at once: whoever straggles keeps no other group from its update."""
        if group.status != "open":
            return
        await self._dispatcher.play_group(group)
        self._settle(group)
        self.bell.ring()

    def _settle(self, group: GroupRow) -> None:
        """The solve rate of the bug that was just played, and the solvers' rewards."""
        store = self._game.store
        rows = store.episodes(group_id=group.group_id)
        rate = self._solve_rate(group, rows)
        with store.transaction():
            for row in rows:
                attempt = store.attempt(row.episode_id)
                credit = credit_solver(attempt.passed if attempt else None, rate.is_void)
                store.set_reward(row.episode_id, credit.reward, credit.note, masked=credit.masked)
            if rate.is_void:
                store.set_bug_status(group.bug_id, "void")
            else:
                store.set_solve_rate(group.bug_id, rate.rate, rate.graded, rate.passes)
            store.set_group_status(group.group_id, "void" if rate.is_void else "complete")

    def _solve_rate(self, group: GroupRow, rows: list[EpisodeRow]) -> SolveRate:
        attempts = [self._game.store.attempt(row.episode_id) for row in rows]
        outcomes = [attempt.passed if attempt else None for attempt in attempts]
        return measure_solve_rate(
            outcomes, [attempt.confirmed if attempt else None for attempt in attempts], group.size
        )

    async def _admit_second_order(self, groups: list[GroupRow], update: int) -> None:
        """At most one failed attempt of each first-order bug becomes one of order two: the first that validates, of two tried by member."""
        game = self._game
        if game.config.solver.second_order_share == 0:
            return
        for group in groups:
            parent = game.store.bug(group.bug_id)
            if (
                parent.order != 1
                or parent.status != "measured"
                or game.store.state(f"second/{group.group_id}")
            ):
                continue
            found = await self._second_order_bug(group, parent, update)
            with game.store.transaction():
                if found is not None:
                    game.store.add_bug(found)
                game.store.set_state(f"second/{group.group_id}", found.bug_id if found else "none")

    async def _second_order_bug(self, group: GroupRow, parent: BugRow, update: int) -> BugRow | None:
        game = self._game
        thresholds = Thresholds(*(low for low, _ in self._threshold_ranges()))
        work = self._dispatcher.solver_work(group)
        failed = [
            a
            for a in game.store.attempts(parent.bug_id, group_id=group.group_id)
            if a.passed is False and a.patch
        ]
        for attempt in failed[:2]:
            try:
                verdict = await self._dispatcher.judging(
                    lambda patch=attempt.patch: self._dispatcher.host.judge_second_order(
                        work, patch, thresholds
                    )  # type: ignore[misc]
                )
            except SandboxUnavailable:
                return None
            if verdict.accepted:
                return BugRow(
                    bug_id=f"{attempt.episode_id}-bug2",
                    repository=parent.repository,
                    environment_key=parent.environment_key,
                    base_commit=parent.base_commit,
                    order=2,
                    parent_bug_id=parent.bug_id,
                    parent_episode_id=attempt.episode_id,
                    injector_episode_id=parent.injector_episode_id,
                    strategy=parent.strategy,
                    target=parent.target,
                    artifact=parent.artifact,
                    attempt_patch=attempt.patch,
                    fail_to_pass=verdict.fail_to_pass,
                    pass_to_pass=verdict.pass_to_pass,
                    failure=verdict.failure,
                    tree_digest=verdict.buggy_digest,
                    status="fresh",
                    created_update=update,
                )
        return None

    def _threshold_ranges(self) -> tuple[tuple[int, int], ...]:
        injector = self._game.config.injector
        return injector.min_passing_tests, injector.min_failing_tests, injector.min_changed_files


def says_enough(group: GroupRow, rewarded: int) -> bool:
    """Whether so many of a group's episodes tell its mean: one that keeps no more than half of them does not (recipes.md)."""
    return 2 * rewarded > group.size


def carries_gradient(group: GroupRow, rows: list[EpisodeRow]) -> bool:
    """Whether `rows` of a finished group are enough of it and their rewards differ."""
    rewards = [row.reward for row in rows if not row.masked and row.reward is not None]
    return says_enough(group, len(rewards)) and len(set(rewards)) > 1


def targets_of(environment: Environment, settings: InjectorSettings) -> list[Target]:
    """The functions that an injector may be given: short enough, and tested by a file that can carry an artifact."""
    return usable_targets(
        environment.targets,
        environment.baseline.passed,
        settings.max_target_lines,
        settings.min_passing_tests[1],
    )
