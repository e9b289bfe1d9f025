"""Plays and judges the members of groups in two bounded pools, and records each result the moment it is known.

Invariant: every member of a dispatched group comes out exactly once: recorded and judged, or recorded as masked after retries.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from selfplay.artifact import Artifact
from selfplay.curriculum.sampling import sample_threshold
from selfplay.curriculum.store import EpisodeRow, GroupRow
from selfplay.engines.base import derive_seed
from selfplay.episode import Episode, FinishReason, Role
from selfplay.errors import ArtifactError, PatchError, RunError, SandboxUnavailable
from selfplay.grading import Grade, grade
from selfplay.orchestrator.game import Game
from selfplay.roles import EpisodePlace, InjectorTask, SolverTask, play_injector, play_solver, solver_task, spec_tokens
from selfplay.targets import Target
from selfplay.validator import BugState, CheckResult, Thresholds, Verdict, validate

Result = TypeVar("Result")
MACHINE_RETRIES = 2
SPEC_TOO_LONG = "spec_too_long"


class Dispatcher:
    """`play` and `judge` are separate thread pools, so that slow verdicts never keep the engine idle, nor the reverse."""

    def __init__(self, game: Game) -> None:
        self._game = game
        train = game.config.train
        self._play = ThreadPoolExecutor(train.episodes_in_flight, thread_name_prefix="play")
        self._judge = ThreadPoolExecutor(train.workers, thread_name_prefix="judge")
        self._tasks: dict[str, asyncio.Future[SolverTask]] = {}  # by group: its members play one task
        self._played = 0
        self._failed = 0

    def close(self) -> None:
        self._play.shutdown(wait=True, cancel_futures=True)
        self._judge.shutdown(wait=True, cancel_futures=True)

    def start_update(self) -> None:
        self._played = self._failed = 0
        self._tasks.clear()

    async def play_groups(self, groups: list[GroupRow]) -> None:
        """Play and judge every member that is not recorded yet. Raises RunError when the machine fails too often."""
        store = self._game.store
        pending = []
        for group in groups:
            recorded = {row.member for row in store.episodes(group_id=group.group_id)}
            play = self._injector_member if group.role == Role.INJECTOR else self._solver_member
            pending += [play(group, member) for member in range(group.size) if member not in recorded]
        results = await asyncio.gather(*pending, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def judging(self, work: Callable[[], Result]) -> Result:
        """Run blocking judging work in the bounded pool; the machine's failures are retried, then raised."""
        for attempt in range(MACHINE_RETRIES + 1):
            try:
                return await asyncio.get_running_loop().run_in_executor(self._judge, work)
            except SandboxUnavailable as failure:
                self._count_failure("judging", str(failure))
                if attempt == MACHINE_RETRIES:
                    raise
        raise AssertionError("unreachable")

    async def _injector_member(self, group: GroupRow, member: int) -> None:
        game, config = self._game, self._game.config
        environment = game.environments[group.repository]
        thresholds = self._thresholds(group, member)
        target = Target(**json.loads(group.target_json)) if group.target_json else None
        task = InjectorTask(environment, group.strategy, target, thresholds)

        def play(place: EpisodePlace) -> Episode:
            return play_injector(task, place, game.engine, game.chat, game.backend, config, game.limits, game.runner)

        episode = await self._episode(group, member, play)
        if episode.finish is FinishReason.ENV_ERROR:
            self._record(group, episode, note=episode.error)
            return
        try:
            verdict = await self.judging(lambda: self._judge_artifact(episode, group, thresholds))
        except SandboxUnavailable as failure:
            self._record(group, replace(episode, finish=FinishReason.ENV_ERROR), note=f"no verdict: {failure}")
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
        game.progress.artifact(verdict.accepted, verdict.failed_check)

    def _judge_artifact(self, episode: Episode, group: GroupRow, thresholds: Thresholds) -> Verdict:
        game = self._game
        if episode.finish is not FinishReason.SUBMITTED:
            return _rejected(f"not_submitted/{episode.finish}", f"the episode ended with {episode.finish}, nothing was submitted")
        try:
            artifact = Artifact.from_files(episode.submission)
        except (ArtifactError, PatchError) as error:
            return _rejected("readable", str(error))
        verdict = validate(artifact, game.environments[group.repository], thresholds, game.runner, game.config.validator)
        if not verdict.accepted:
            return verdict
        bug = BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)
        tokens = spec_tokens(game.chat, bug)
        if tokens > game.config.solver.max_spec_tokens:
            reason = f"the reversed test_weaken.diff has {tokens} tokens; solver.max_spec_tokens is {game.config.solver.max_spec_tokens}"
            check = CheckResult(SPEC_TOO_LONG, False, reason, {}, 0.0)
            return replace(verdict, accepted=False, failed_check=SPEC_TOO_LONG, checks=(*verdict.checks, check))
        return verdict

    async def _solver_member(self, group: GroupRow, member: int) -> None:
        game, config = self._game, self._game.config
        row = game.store.bug(group.bug_id)
        environment = game.environments[group.repository]
        bug = row.state()
        if group.group_id not in self._tasks:
            make = partial(solver_task, environment, row.bug_id, bug, row.failure, config)
            self._tasks[group.group_id] = asyncio.get_running_loop().run_in_executor(self._play, make)
        task = await self._tasks[group.group_id]

        def play(place: EpisodePlace) -> Episode:
            return play_solver(task, place, game.engine, game.chat, game.backend, config, game.limits, game.runner)

        episode = await self._episode(group, member, play)
        if episode.finish is FinishReason.ENV_ERROR:
            self._record(group, episode, note=episode.error)
            return
        patch = episode.submission.get("patch", "")
        try:
            verdict: Grade = await self.judging(lambda: grade(bug, patch, environment, game.runner))
        except SandboxUnavailable as failure:
            self._record(group, replace(episode, finish=FinishReason.ENV_ERROR), note=f"no grade: {failure}")
            return
        with game.store.transaction():
            self._record(group, episode)
            game.store.record_attempt(
                episode.episode_id,
                row.bug_id,
                verdict.passed,
                verdict.reason,
                verdict.failed_tests,
                verdict.confirmed,
                verdict.restored,
                patch,
                verdict.duration_s,
            )
        game.progress.attempt(verdict.passed)

    async def _episode(self, group: GroupRow, member: int, play: Callable[[EpisodePlace], Episode]) -> Episode:
        """The member's finished episode: the one written before a kill, else played now, machine failures retried."""
        game = self._game
        episode_id = f"{group.group_id}-m{member}"
        found = game.run.episode(episode_id)
        if found is not None:
            return found
        role = Role(group.role)
        place = EpisodePlace(game.config.seed, group.update, group.group_id, member, game.labels)
        for attempt in range(MACHINE_RETRIES + 1):
            game.progress.episode_started(role)
            episode = await asyncio.get_running_loop().run_in_executor(self._play, play, place)
            game.progress.episode_finished(role, episode.finish)
            self._played += 1
            if episode.finish is not FinishReason.ENV_ERROR:
                break
            self._count_failure(f"playing {role}", episode.error)
            if attempt < MACHINE_RETRIES:
                await asyncio.sleep(0.5 * 2**attempt)
        game.progress.tokens(episode.action_tokens)
        episode = replace(episode, episode_id=episode_id, bug_id=group.bug_id or "")
        if episode.finish is not FinishReason.ENV_ERROR:
            episode.write(game.run.episodes)
        return episode

    def _record(self, group: GroupRow, episode: Episode, note: str = "") -> None:
        masked = episode.finish is FinishReason.ENV_ERROR
        versions = [version for _, version in episode.weight_versions]
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


def _rejected(check: str, reason: str) -> Verdict:
    return Verdict(
        accepted=False,
        checks=(CheckResult(check, False, reason, {}, 0.0),),
        failed_check=check,
        fail_to_pass=(),
        pass_to_pass=(),
        buggy_digest="",
        failure="",
        duration_s=0.0,
        test_runs=0,
        cached_runs=0,
    )
