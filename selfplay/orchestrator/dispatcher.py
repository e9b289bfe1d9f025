"""Plays and judges the members of groups, and records each result as soon as it is known.

It does not choose what to play. Invariant: each member of a dispatched group is recorded once, either with
its verdict or grade, or masked if the machine failed in all tries.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from selfplay.agent.episode import Episode, FinishReason, Role
from selfplay.agent.hosts import InjectorWork, SolverWork
from selfplay.agent.runner import EpisodeRunner, FailureCounts, Job, Judged, RunnerEvents, all_of
from selfplay.agent.workspaces import EpisodeKey
from selfplay.config import Config
from selfplay.curriculum.rows import AttemptRow, EpisodeRow, GroupRow, VerdictRow
from selfplay.curriculum.sampling import sample_threshold
from selfplay.engines.base import derive_seed
from selfplay.errors import RunError
from selfplay.repositories.targets import Target
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import Grade
from selfplay.verdicts.verdict import Verdict

if TYPE_CHECKING:
    from selfplay.orchestrator.context import RunContext

Result = TypeVar("Result")
# A thread that waits for Python's lock wakes up every switch interval to ask for it. Thousands of waiting
# threads took both cores of a machine in that way (docs/log.md). So the interval grows with the number of
# threads: at most 50,000 wake up in a second.
SWITCH_S_A_THREAD = 20e-6


class Dispatcher:
    """Runs the episodes of a training run. The host bounds how many sandboxes are opened at the same time.

    All rows are written in the event loop's thread.
    """

    def __init__(self, context: RunContext) -> None:
        train = context.config.train
        self._context = context
        self.host = context.host
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(max(self._switch_s, SWITCH_S_A_THREAD * train.episodes_in_flight))
        self._runner = EpisodeRunner(train.episodes_in_flight, train.workers, _Reports(context))
        # One accepted of two judged: what is expected of artifacts before any was judged.
        self._judged, self._accepted = 2, 1
        self.recorded = 0  # episodes, since the run began or was resumed

    def close(self) -> None:
        self._runner.close()
        sys.setswitchinterval(self._switch_s)

    def start_update(self) -> None:
        """Count the machine's failures anew."""
        self._runner.counts = FailureCounts()

    @property
    def accepted_share(self) -> float:
        """Share of the judged artifacts that were accepted. An artifact in play is expected to do as well."""
        return self._accepted / self._judged

    async def play_group(self, group: GroupRow) -> None:
        """Play and judge every member that is not recorded yet.

        Raises RunError if the machine fails too often.
        """
        recorded = {row.member for row in self._context.store.episodes(group_id=group.group_id)}
        missing = [member for member in range(group.size) if member not in recorded]
        if not missing:
            return
        if group.role == Role.INJECTOR:
            await all_of([self._play_injector(group, member) for member in missing])
        else:
            work = await self._runner.call(partial(self.host.prepare, self._solver_work(group)))
            await all_of([self._play_solver(group, member, work) for member in missing])

    async def judge_second_order(self, group: GroupRow, patch: str) -> Verdict:
        """Judge a failed repair as a bug on top of the one that the solver group played.

        Raises SandboxUnavailable if the machine fails in all tries.
        """
        injector = self._context.config.injector
        ranges = (injector.min_passing_tests, injector.min_failing_tests, injector.min_changed_files)
        lowest = Thresholds(*(low for low, _ in ranges))
        work = self._solver_work(group)
        return await self._runner.judge(partial(self.host.judge_second_order, work, patch, lowest))

    def _solver_work(self, group: GroupRow) -> SolverWork:
        row = self._context.store.bug(group.bug_id)
        return SolverWork(group.repository, row.bug_id, row.state(), row.failure)

    async def _play_injector(self, group: GroupRow, member: int) -> None:
        context = self._context
        target_json = group.target_of(member)
        target = Target(**json.loads(target_json)) if target_json else None
        work = InjectorWork(
            group.repository,
            group.strategy,
            target,
            sampled_thresholds(self._context.config, group.group_id, member),
        )
        judged = await self._runner.run(self._job(group, member, work, partial(self.host.judge, work)))
        verdict = judged.verdict
        if verdict is None:
            self._record_masked(group, judged, "no verdict")
            return
        with context.store.transaction():
            self._record(group, judged.episode)
            context.store.record_verdict(_verdict_row(judged.episode, verdict))
        self._judged += 1
        self._accepted += verdict.accepted
        context.progress.artifact(verdict.accepted, verdict.failed_check)

    async def _play_solver(self, group: GroupRow, member: int, work: SolverWork) -> None:
        context = self._context

        def judge(episode: Episode) -> Grade:
            return self.host.grade(work, episode.submission.get("patch", ""))

        judged = await self._runner.run(self._job(group, member, work, judge))
        if judged.verdict is None:
            self._record_masked(group, judged, "no grade")
            return
        with context.store.transaction():
            self._record(group, judged.episode)
            context.store.record_attempt(_attempt_row(judged.episode, work.bug_id, judged.verdict))
        context.progress.attempt(judged.verdict.passed)

    def _job(
        self,
        group: GroupRow,
        member: int,
        work: InjectorWork | SolverWork,
        judge: Callable[[Episode], Result],
    ) -> Job[Result]:
        context = self._context
        key = EpisodeKey(context.config.seed, group.update, group.group_id, member, context.labels)

        def play() -> Episode:
            return replace(self.host.play(work, key), bug_id=group.bug_id or "")

        return Job(context.run.episodes, f"{group.group_id}-m{member}", play, judge, Role(group.role))

    def _record_masked(self, group: GroupRow, judged: Judged[Any], missing: str) -> None:
        """missing: what the machine's failure prevented, for the note."""
        note = f"{missing}: {judged.failure}" if judged.failed_phase == "judging" else judged.failure
        self._record(group, judged.episode, note)

    def _record(self, group: GroupRow, episode: Episode, note: str = "") -> None:
        self.recorded += 1
        version = self._context.engine.weight_version
        self._context.store.record_episode(_episode_row(group, episode, version, note))


class _Reports(RunnerEvents):
    """Shows progress, records the machine's failures, and stops the run if there are too many."""

    def __init__(self, context: RunContext) -> None:
        self._context = context

    def play_started(self, job: Job[Any]) -> None:
        self._context.progress.episode_started(job.kind)

    def play_ended(self, job: Job[Any], episode: Episode) -> None:
        self._context.progress.episode_finished(job.kind, episode.finish)

    def episode_played(self, episode: Episode) -> None:
        self._context.progress.tokens(episode.action_tokens)

    def machine_failed(self, phase: str, failure: str, counts: FailureCounts) -> None:
        context = self._context
        context.store.record_failure(context.store.last_update() + 1, phase, failure)
        context.progress.message(f"machine failure while {phase}: {failure}")
        allowed = context.config.train.max_machine_failures
        if counts.too_many_tries_failed(allowed):
            raise RunError(
                f"the machine failed {counts.failed_tries} times in {counts.tries} episodes, more than "
                f"train.max_machine_failures = {allowed}; the last: {failure}. Everything finished is saved. "
                f"Run `selfplay doctor`, then continue with: selfplay train --resume {context.run.path.name}"
            )


def sampled_thresholds(config: Config, group_id: str, member: int) -> Thresholds:
    """Sampled for each episode within the configured ranges: a policy learns to game fixed ones."""
    injector = config.injector
    seed = derive_seed(config.seed, "thresholds", group_id, member)
    return Thresholds(
        sample_threshold(injector.min_passing_tests, seed, "passing"),
        sample_threshold(injector.min_failing_tests, seed, "failing"),
        sample_threshold(injector.min_changed_files, seed, "files"),
    )


def _episode_row(group: GroupRow, episode: Episode, weight_version: int, note: str) -> EpisodeRow:
    """weight_version: the engine's, for an episode without a token."""
    is_masked = episode.finish is FinishReason.ENV_ERROR
    versions = [version for _, version in episode.weight_versions]
    return EpisodeRow(
        episode_id=episode.episode_id,
        group_id=group.group_id,
        member=episode.member,
        update=group.update,
        role=group.role,
        repository=group.repository,
        strategy=group.strategy,
        bug_id=group.bug_id,
        finish=episode.finish.value,
        path=f"episodes/{episode.episode_id}.json.gz" if not is_masked else "",
        turns=len(episode.turns),
        failed_turns=sum(turn.is_error for turn in episode.turns),
        action_tokens=episode.action_tokens,
        total_tokens=len(episode.token_ids),
        weight_version_min=min(versions, default=weight_version),
        started_at=episode.started_at,
        duration_s=episode.duration_s,
        masked=is_masked,
        note=note,
    )


def _verdict_row(episode: Episode, verdict: Verdict) -> VerdictRow:
    reason = next((check.reason for check in verdict.checks if check.name == verdict.failed_check), "")
    return VerdictRow(
        episode_id=episode.episode_id,
        accepted=verdict.accepted,
        failed_check=verdict.failed_check,
        reason=reason,
        checks_json=json.dumps(verdict.to_json()),
        duration_s=verdict.duration_s,
        test_runs=verdict.test_runs,
        cached_runs=verdict.cached_runs,
    )


def _attempt_row(episode: Episode, bug_id: str, grade: Grade) -> AttemptRow:
    restored = {*grade.restored, *filter(None, episode.submission.get("restored", "").split("\n"))}
    return AttemptRow(
        episode_id=episode.episode_id,
        bug_id=bug_id,
        passed=grade.passed,
        reason=grade.reason,
        failed_tests=tuple(grade.failed_tests),
        confirmed=grade.confirmation,
        restored=tuple(sorted(restored)),
        patch=episode.submission.get("patch", ""),
        duration_s=grade.duration_s,
    )
