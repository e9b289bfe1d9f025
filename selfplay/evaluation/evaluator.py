"""A policy's attempts at tasks, sampled and greedy, played and graded on the hosts that training uses.

The results go into a folder, so that a later call continues. Reading tasks is left to `tasks`, checking them
to `checks`, figures to `rates` and `comparison`, tables to `viewing.scores`. Invariant: an attempt that the
machine spoiled counts nowhere, because it says nothing about the policy.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfplay.agent.episode import Episode
from selfplay.agent.hosts import EpisodeHost, SolverWork
from selfplay.agent.local_host import LocalHost
from selfplay.agent.runner import EpisodeRunner, Job, Judged
from selfplay.agent.workspaces import EpisodeContext, EpisodeKey
from selfplay.config import Config
from selfplay.engines.base import Sampling
from selfplay.errors import RunError
from selfplay.evaluation.checks import Checked, Checker, check_into
from selfplay.evaluation.folder import AttemptResult, Folder, Mode, identity_of
from selfplay.evaluation.tasks import Task
from selfplay.repositories.environment import Environment
from selfplay.sandbox.base import TIMED_OUT
from selfplay.verdicts.bug import BugState
from selfplay.verdicts.grading import Grade
from selfplay.verdicts.test_runs import TestRunner


@dataclass(frozen=True)
class _Attempt:
    task: Task
    mode: Mode
    number: int
    bug: BugState

    @property
    def group(self) -> str:
        return self.task.instance_id if self.mode == "sampled" else f"{self.task.instance_id}-greedy"


@dataclass(frozen=True)
class Evaluator:
    """Plays and grades attempts in two bounded pools, so that slow grading never keeps the engine idle.

    environments  repository line of a task -> its environment
    left_out      why a task has no environment, by its id
    checks        a folder that keeps what `checks` found; None keeps nothing
    report        takes a line for the person who waits
    host_of       what plays and grades these tasks, from their checks and the host of this machine

    Seeds come from (config.seed, task, mode, attempt). So the order of completion changes nothing, and two
    policies sample with the same seeds. The engine stays open.
    """

    context: EpisodeContext
    environments: Mapping[str, Environment]
    labels: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    checks: Path | None = None
    report: Callable[[str], None] = lambda _: None
    host_of: Callable[[Sequence[Task], Checked, LocalHost], EpisodeHost] = lambda _, __, local: local

    def play(
        self,
        tasks: Sequence[Task],
        attempts: int,
        greedy: bool,
        folder: Folder,
        policy: Mapping[str, Any],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[AttemptResult]:
        """Play the attempts that `folder` does not hold yet, and return the results of all.

        attempts  sampled attempts at each task
        greedy    one greedy attempt more at each task
        progress  called with (finished, all) after each attempt

        Tasks without an environment, and those that do not do what their record says, are left out; the
        folder keeps the reasons. Raises UsageError if the folder belongs to another evaluation, RunError if
        no task is left or the machine fails too often.
        """
        identity = identity_of(self.context.config, policy, tasks)
        folder.check(identity)
        workers = self.context.config.train.workers
        checker = Checker(self._tests(folder), self.checks, workers, self.report)
        checked = check_into(folder, checker, tasks, self.environments, self.left_out)
        playable = [task for task in tasks if task.instance_id in checked.bugs]
        folder.begin(identity)
        counts: dict[Mode, int] = {"sampled": attempts, "greedy": int(greedy)}
        wanted = [
            _Attempt(task, mode, number, checked.bugs[task.instance_id][1])
            for mode, count in counts.items()
            for number in range(count)
            for task in playable
        ]
        known = {result.key: result for result in folder.results()}
        keys = [(one.task.instance_id, one.mode, one.number) for one in wanted]
        results = {key: known[key] for key in keys if key in known}
        todo = [one for key, one in zip(keys, wanted, strict=True) if key not in known]
        progress(len(results), len(wanted))
        with folder.results_file.open("a", encoding="utf-8") as file:

            def keep(result: AttemptResult) -> None:
                results[result.key] = result
                if result.passed is not None:
                    file.write(result.to_line())
                    file.flush()
                progress(len(results), len(wanted))

            if todo:
                local = LocalHost(self.context, checked.environments, self._tests(folder))
                unfinished = {attempt.task.instance_id for attempt in todo}
                some = [task for task in playable if task.instance_id in unfinished]
                host = self.host_of(some, checked, local)
                asyncio.run(self._play_all(todo, folder, host, keep))
        finished = [results[key] for key in keys]
        folder.write_predictions(finished, str(policy.get("model", "selfplay")))
        return finished

    def _tests(self, folder: Folder) -> TestRunner:
        context = self.context
        settings = context.config.validator
        return TestRunner(context.backend, settings, context.limits, self.labels, folder.secret())

    async def _play_all(
        self,
        todo: Sequence[_Attempt],
        folder: Folder,
        host: EpisodeHost,
        keep: Callable[[AttemptResult], None],
    ) -> None:
        """Play and grade the attempts. `keep` gets the results in order of completion.

        Raises the first error of an attempt, RunError if the machine fails too often.
        """
        train = self.context.config.train
        runner = EpisodeRunner(min(train.episodes_in_flight, max(1, len(todo))), train.workers)

        async def play(attempt: _Attempt) -> None:
            result = _result(attempt, await runner.run(self._job(attempt, folder, host)))
            keep(result)
            counts = runner.counts
            if counts.too_many_are_spoiled(train.max_machine_failures):
                raise RunError(
                    f"the machine spoiled {counts.spoiled} of {counts.episodes} attempts, more than "
                    f"train.max_machine_failures = {train.max_machine_failures}; the last: {result.reason}. "
                    f"What was finished is kept in {folder.path}. "
                    "Run `selfplay doctor`, then give the same command again."
                )

        try:
            await asyncio.gather(*(play(attempt) for attempt in todo))
        finally:
            runner.close()

    def _job(self, attempt: _Attempt, folder: Folder, host: EpisodeHost) -> Job[Grade]:
        config, task = self.context.config, attempt.task
        key = EpisodeKey(config.seed, 0, attempt.group, attempt.number, self.labels)
        work = SolverWork(
            repository=task.instance_id,
            bug_id=task.instance_id,
            bug=attempt.bug,
            failure=task.failure,
            issue=task.issue,
            sampling=_sampling(attempt.mode, config),
        )

        def play() -> Episode:
            return host.play(host.prepare(work), key)

        def judge(episode: Episode) -> Grade:
            return host.grade(work, episode.submission.get("patch", ""))

        return Job(folder.episodes, _episode_id(key), play, judge)


def _sampling(mode: Mode, config: Config) -> Sampling:
    if mode == "greedy":
        return Sampling(temperature=0.0)
    return Sampling(config.evaluation.temperature, config.evaluation.top_p)


def _result(attempt: _Attempt, judged: Judged[Grade]) -> AttemptResult:
    episode, verdict = judged.episode, judged.verdict
    return AttemptResult(
        instance_id=attempt.task.instance_id,
        repo=attempt.task.repo,
        attempt=attempt.number,
        passed=verdict.passed if verdict else None,
        reason=verdict.reason if verdict else judged.failure,
        finish=episode.finish.value,
        turns=len(episode.turns),
        tokens=episode.action_tokens,
        mode=attempt.mode,
        seconds=round(episode.duration_s, 3),
        patch=episode.submission.get("patch", ""),
        timed_out=sum(turn.exit_code == TIMED_OUT for turn in episode.turns),
    )


def _episode_id(key: EpisodeKey) -> str:
    """The attempt's id as a file name.

    The digest keeps apart ids that are equal without their special characters.
    """
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in key.group)[:120]
    return f"{plain}-{hashlib.sha256(key.group.encode()).hexdigest()[:6]}-m{key.member}"
