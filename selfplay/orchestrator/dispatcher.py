"""Plays and judges the members of groups in separate bounded pools, and records each result the moment it is known.

Invariant: every member of a dispatched group comes out exactly once: recorded and judged, or recorded as masked after retries.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from selfplay.agent.episode import Episode, FinishReason, Role
from selfplay.agent.workspaces import EpisodeKey
from selfplay.curriculum.sampling import sample_threshold
from selfplay.curriculum.store import EpisodeRow, GroupRow
from selfplay.engines.base import derive_seed
from selfplay.errors import RunError, SandboxUnavailable
from selfplay.orchestrator.context import Game
from selfplay.orchestrator.hosts import InjectorWork, LocalHost, SolverWork
from selfplay.repositories.targets import Target
from selfplay.verdicts.validator import Thresholds

Result = TypeVar("Result")
MACHINE_RETRIES = 2
RETRY_S = 0.5  # before the first retry, and twice as long before each further one
# A thread that waits for Python's lock wakes up every switch interval to ask for it. With thousands waiting that alone took both cores of a
# machine (docs/log.md), so that it lasts as much longer as there are threads: at most 50,000 wake up in a second.
SWITCH_S_A_THREAD = 20e-6


class Dispatcher:
    """`play` and `judge` are separate thread pools, so that slow verdicts never keep the engine idle, nor the reverse.

    The host bounds how many sandboxes are prepared at once; one thread writes episode files. All else is in the event loop's thread.
    """

    def __init__(self, game: Game) -> None:
        self._game = game
        self.host = game.host or LocalHost(
            game.config, game.environments, game.engine, game.chat, game.backend, game.limits, game.runner
        )
        train = game.config.train
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(max(self._switch_s, SWITCH_S_A_THREAD * train.episodes_in_flight))
        self._play = ThreadPoolExecutor(train.episodes_in_flight, thread_name_prefix="play")
        self._judge = ThreadPoolExecutor(train.workers, thread_name_prefix="judge")
        self._write = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._played = 0
        self._failed = 0
        self._judged = 2  # with one accepted: what is expected of artifacts before any was judged
        self._accepted = 1
        self.recorded = 0  # episodes, in all

    def close(self) -> None:
        for pool in (self._play, self._judge, self._write):
            pool.shutdown(wait=True, cancel_futures=True)
        sys.setswitchinterval(self._switch_s)

    def start_update(self) -> None:
        """Begin to count the machine's failures anew."""
        self._played = self._failed = 0

    @property
    def accepted_share(self) -> float:
        """Of the artifacts that were judged; what an injector in play may be expected to bring."""
        return self._accepted / self._judged

    async def play_group(self, group: GroupRow) -> None:
        """Play and judge every member that is not recorded yet. Raises RunError when the machine fails too often."""
        recorded = {row.member for row in self._game.store.episodes(group_id=group.group_id)}
        missing = [member for member in range(group.size) if member not in recorded]
        if not missing:
            return
        if group.role == Role.INJECTOR:
            await all_of([self._injector_member(group, member) for member in missing])
        else:
            bare = self.solver_work(group)
            work = await self._in(self._play, lambda: self.host.prepare(bare))
            await all_of([self._solver_member(group, member, work) for member in missing])

    def solver_work(self, group: GroupRow) -> SolverWork:
        row = self._game.store.bug(group.bug_id)
        return SolverWork(group.repository, row.bug_id, row.state(), row.failure)

    async def judging(self, work: Callable[[], Result]) -> Result:
        """Run blocking judging work in the bounded pool; the machine's failures are retried, then raised."""
        for attempt in range(MACHINE_RETRIES + 1):
            try:
                return await self._in(self._judge, work)
            except SandboxUnavailable as failure:
                self._count_failure("judging", str(failure))
                if attempt == MACHINE_RETRIES:
                    raise
                await asyncio.sleep(RETRY_S * 2**attempt)
        raise AssertionError("unreachable")

    async def _injector_member(self, group: GroupRow, member: int) -> None:
        game = self._game
        target = Target(**json.loads(group.target_json)) if group.target_json else None
        work = InjectorWork(group.repository, group.strategy, target, self._thresholds(group, member))
        episode = await self._episode(group, member, work)
        if episode.finish is FinishReason.ENV_ERROR:
            self._record(group, episode, note=episode.error)
            return
        try:
            verdict = await self.judging(lambda: self.host.judge(work, episode))
        except SandboxUnavailable as failure:
            self._record(
                group, replace(episode, finish=FinishReason.ENV_ERROR), note=f"no verdict: {failure}"
            )
            return
        reason = next((check.reason for check in verdict.checks if check.name == verdict.failed_check), "")
        with game.store.transaction():
            self._record(group, episode)
            game.store.record_verdict(
                episode.episode_id,
                verdict.accepted,
                verdict.failed_check,
                reason,
                json.dumps(verdict.to_json()),
                verdict.duration_s,
                verdict.test_runs,
                verdict.cached_runs,
            )
        self._judged += 1
        self._accepted += verdict.accepted
        game.progress.artifact(verdict.accepted, verdict.failed_check)

    async def _solver_member(self, group: GroupRow, member: int, work: SolverWork) -> None:
        game = self._game
        episode = await self._episode(group, member, work)
        if episode.finish is FinishReason.ENV_ERROR:
            self._record(group, episode, note=episode.error)
            return
        patch = episode.submission.get("patch", "")
        try:
            verdict = await self.judging(lambda: self.host.grade(work, patch))
        except SandboxUnavailable as failure:
            self._record(group, replace(episode, finish=FinishReason.ENV_ERROR), note=f"no grade: {failure}")
            return
        with game.store.transaction():
            self._record(group, episode)
            game.store.record_attempt(
                episode.episode_id,
                work.bug_id,
                verdict.passed,
                verdict.reason,
                verdict.failed_tests,
                verdict.confirmed,
                sorted({*verdict.restored, *episode.submission.get("restored", "").splitlines()}),
                patch,
                verdict.duration_s,
            )
        game.progress.attempt(verdict.passed)

    async def _episode(self, group: GroupRow, member: int, work: InjectorWork | SolverWork) -> Episode:
        """The member's finished episode: the one written before a kill, else played now, machine failures retried."""
        game = self._game
        episode_id = f"{group.group_id}-m{member}"
        found = game.run.episode(episode_id)
        if found is not None:
            return found
        role = Role(group.role)
        place = EpisodeKey(game.config.seed, group.update, group.group_id, member, game.labels)
        for attempt in range(MACHINE_RETRIES + 1):
            game.progress.episode_started(role)
            episode = await self._in(self._play, lambda: self.host.play(work, place))
            game.progress.episode_finished(role, episode.finish)
            self._played += 1
            if episode.finish is not FinishReason.ENV_ERROR:
                break
            self._count_failure(f"playing {role}", episode.error)
            if attempt < MACHINE_RETRIES:
                await asyncio.sleep(RETRY_S * 2**attempt)
        game.progress.tokens(episode.action_tokens)
        named = replace(episode, episode_id=episode_id, bug_id=group.bug_id or "")
        if named.finish is not FinishReason.ENV_ERROR:
            await self._in(self._write, lambda: named.write(game.run.episodes))
        return named

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def _record(self, group: GroupRow, episode: Episode, note: str = "") -> None:
        masked = episode.finish is FinishReason.ENV_ERROR
        versions = [version for _, version in episode.weight_versions]
        self.recorded += 1
        self._game.store.record_episode(
            EpisodeRow(
                episode_id=episode.episode_id,
                group_id=group.group_id,
                member=episode.member,
                update=group.update,
                role=group.role,
                repository=group.repository,
                strategy=group.strategy,
                bug_id=group.bug_id,
                finish=episode.finish.value,
                path=f"episodes/{episode.episode_id}.json.gz" if not masked else "",
                turns=len(episode.turns),
                failed_turns=sum(turn.is_error for turn in episode.turns),
                action_tokens=episode.action_tokens,
                total_tokens=len(episode.token_ids),
                weight_version_min=min(versions, default=self._game.engine.weight_version),
                started_at=episode.started_at,
                duration_s=episode.duration_s,
                masked=masked,
                note=note,
            )
        )

    def _thresholds(self, group: GroupRow, member: int) -> Thresholds:
        """Sampled per episode within the configured ranges, since fixed thresholds get gamed."""
        injector = self._game.config.injector
        seed = derive_seed(self._game.config.seed, "thresholds", group.group_id, member)
        return Thresholds(
            sample_threshold(injector.min_passing_tests, seed, "passing"),
            sample_threshold(injector.min_failing_tests, seed, "failing"),
            sample_threshold(injector.min_changed_files, seed, "files"),
        )

    def _count_failure(self, phase: str, message: str) -> None:
        game = self._game
        self._failed += 1
        game.store.record_failure(game.store.last_update() + 1, phase, message)
        game.progress.message(f"machine failure while {phase}: {message}")
        allowed = game.config.train.max_machine_failures
        if self._failed >= 4 and self._failed > allowed * max(self._played, 8):
            raise RunError(
                f"the machine failed {self._failed} times in {self._played} episodes, more than "
                f"train.max_machine_failures = {allowed}; the last: {message}. Everything finished is saved. "
                f"Run `selfplay doctor`, then continue with: selfplay train --resume {game.run.path.name}"
            )


async def all_of(work: list[Coroutine[Any, Any, None]]) -> None:
    """Wait for all, then raise the first failure if there was one: what else is in flight is not thrown away."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
