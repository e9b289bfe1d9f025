"""A policy's attempts at tasks, drawn and greedy, graded like in training, and kept in a folder that another call continues.

Reading tasks is left to `tasks`, arithmetic to `statistics`, tables to `viewing.scores`. Invariant: an attempt that the machine
spoiled counts nowhere, and a folder holds attempts of one policy, under one set of settings, at one set of tasks.
"""

from __future__ import annotations

import hashlib
import json
import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from selfplay.agent.chat import ChatFormat
from selfplay.agent.episode import Episode, FinishReason
from selfplay.agent.solver import play_solver, solver_task
from selfplay.agent.workspaces import EpisodeKey
from selfplay.config import Config
from selfplay.engines.base import Engine
from selfplay.errors import ArtifactError, PatchError, RunError, SandboxUnavailable
from selfplay.evaluation.comparison import compare, summarise
from selfplay.evaluation.folder import AttemptResult, Folder, Mode, identity_of
from selfplay.evaluation.tasks import Task, bug_of, export_tasks, parse_task, read_tasks
from selfplay.repositories.environment import Environment
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner

__all__ = [
    "AttemptResult",
    "Evaluator",
    "Folder",
    "compare",
    "export_tasks",
    "identity_of",
    "parse_task",
    "read_tasks",
    "summarise",
]
MACHINE_RETRIES = 2


# ---- playing


@dataclass(frozen=True)
class _Attempt:
    task: Task
    mode: Mode
    number: int
    environment: Environment
    bug: BugState

    @property
    def group(self) -> str:
        return self.task.instance_id if self.mode == "sampled" else f"{self.task.instance_id}-greedy"


@dataclass(frozen=True)
class Evaluator:
    """Plays and grades attempts in two bounded pools, so that slow grades never keep the engine idle.

    environments: by the task's repository line. Seeds come from (config.seed, task, mode, attempt), so that the order of
    completion decides nothing, and two policies draw with the same seeds. Leaves the engine open.
    """

    config: Config
    engine: Engine
    chat: ChatFormat
    backend: SandboxBackend
    environments: Mapping[str, Environment]
    limits: Limits
    labels: Mapping[str, str] = field(default_factory=dict)

    def play(
        self,
        tasks: Sequence[Task],
        attempts: int,
        greedy: bool,
        folder: Folder,
        policy: Mapping[str, Any],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[AttemptResult]:
        """Every task's `attempts` drawn attempts and, where asked, its greedy one; those that `folder` holds are not played again.

        Tasks without an environment are left out. progress: told (finished, all) after each. Raises UsageError where the folder
        belongs to another evaluation, RunError where a task does not fit its repository or the machine fails too often.
        """
        playable = [task for task in tasks if task.repo in self.environments]
        bugs = self._meet(playable)
        folder.begin(identity_of(self.config, policy, tasks))
        counts: dict[Mode, int] = {"sampled": attempts, "greedy": int(greedy)}
        wanted = [
            _Attempt(task, mode, number, *bugs[task.instance_id])
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
            for result in self._run(todo, folder):
                results[result.key] = result
                if result.passed is not None:
                    file.write(json.dumps(asdict(result)) + "\n")
                    file.flush()
                progress(len(results), len(wanted))
        return [results[key] for key in keys]

    def _meet(self, tasks: Sequence[Task]) -> dict[str, tuple[Environment, BugState]]:
        """Each task's environment and bug, all found to fit before anything is played."""
        bugs: dict[str, tuple[Environment, BugState]] = {}
        problems: list[str] = []
        for task in tasks:
            try:
                environment, bug = bug_of(task, self.environments[task.repo])
                build_states(environment.tree, bug)
                bugs[task.instance_id] = environment, bug
            except (PatchError, ArtifactError) as error:
                problems.append(f"  {task.instance_id}: {error}")
        if problems:
            raise RunError(
                f"{len(problems)} task(s) do not fit their repository, nothing was played:\n"
                + "\n".join(problems[:20])
            )
        return bugs

    def _run(self, todo: Sequence[_Attempt], folder: Folder) -> Iterable[AttemptResult]:
        """Results as they come. Raises the first error of a pool, and RunError when the machine spoils too many."""
        finished: queue.SimpleQueue[AttemptResult | BaseException] = queue.SimpleQueue()
        runner = TestRunner(self.backend, self.config.validator, self.limits, self.labels)
        train = self.config.train
        spoiled = 0
        play = ThreadPoolExecutor(
            min(train.episodes_in_flight, max(1, len(todo))), thread_name_prefix="eval-play"
        )
        judge = ThreadPoolExecutor(train.workers, thread_name_prefix="eval-grade")

        def play_one(attempt: _Attempt) -> None:
            try:
                episode = self._episode(attempt, folder, runner)
                if episode.finish is FinishReason.ENV_ERROR:
                    finished.put(_result(attempt, episode, None, episode.error))
                else:
                    judge.submit(grade_one, attempt, episode)
            except BaseException as error:
                finished.put(error)

        def grade_one(attempt: _Attempt, episode: Episode) -> None:
            try:
                finished.put(self._grade(attempt, episode, runner))
            except BaseException as error:
                finished.put(error)

        try:
            for attempt in todo:
                play.submit(play_one, attempt)
            for done in range(1, len(todo) + 1):
                result = finished.get()
                if isinstance(result, BaseException):
                    raise result
                spoiled += result.passed is None
                yield result
                if spoiled >= 4 and spoiled > train.max_machine_failures * max(done, 8):
                    raise RunError(
                        f"the machine spoiled {spoiled} of {done} attempts, more than train.max_machine_failures = "
                        f"{train.max_machine_failures}; the last: {result.reason}. What was finished is kept in {folder.path}. "
                        "Run `selfplay doctor`, then give the same command again."
                    )
        finally:
            play.shutdown(wait=True, cancel_futures=True)
            judge.shutdown(wait=True, cancel_futures=True)

    def _episode(self, attempt: _Attempt, folder: Folder, runner: TestRunner) -> Episode:
        """The attempt's episode: the one written before a kill, else played now, machine failures retried."""
        place = EpisodeKey(self.config.seed, 0, attempt.group, attempt.number, self.labels)
        if (found := _written(folder, place)) is not None:
            return found
        how = {"resamples": 0} | ({"temperature": 0.0} if attempt.mode == "greedy" else {})
        config = self.config.model_copy(update={"agent": self.config.agent.model_copy(update=how)})
        task = solver_task(
            attempt.environment, attempt.task.instance_id, attempt.bug, attempt.task.failure, config
        )
        for retry in range(MACHINE_RETRIES + 1):
            episode = play_solver(
                task, place, self.engine, self.chat, self.backend, config, self.limits, runner
            )
            if episode.finish is not FinishReason.ENV_ERROR:
                episode = replace(episode, episode_id=_episode_id(place))
                episode.write(folder.episodes)
                break
            if retry < MACHINE_RETRIES:
                time.sleep(0.5 * 2**retry)
        return episode

    def _grade(self, attempt: _Attempt, episode: Episode, runner: TestRunner) -> AttemptResult:
        failure = ""
        for retry in range(MACHINE_RETRIES + 1):
            try:
                verdict = grade(attempt.bug, episode.submission.get("patch", ""), attempt.environment, runner)
                return _result(
                    attempt, episode, verdict.passed and verdict.confirmed is not False, verdict.reason
                )
            except SandboxUnavailable as error:
                failure = str(error)
                if retry < MACHINE_RETRIES:
                    time.sleep(0.5 * 2**retry)
        return _result(attempt, replace(episode, finish=FinishReason.ENV_ERROR), None, failure)


def _result(attempt: _Attempt, episode: Episode, passed: bool | None, reason: str) -> AttemptResult:
    return AttemptResult(
        instance_id=attempt.task.instance_id,
        repo=attempt.task.repo,
        attempt=attempt.number,
        passed=passed,
        reason=reason,
        finish=episode.finish.value,
        turns=len(episode.turns),
        tokens=episode.action_tokens,
        mode=attempt.mode,
        seconds=round(episode.duration_s, 3),
    )


def _episode_id(place: EpisodeKey) -> str:
    """Unlike a task's id, a file's name; the digest keeps apart what becomes equal by that."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in place.group)[:120]
    return f"{plain}-{hashlib.sha256(place.group.encode()).hexdigest()[:6]}-m{place.member}"


def _written(folder: Folder, place: EpisodeKey) -> Episode | None:
    path = folder.episodes / f"{_episode_id(place)}.json.gz"
    if not path.is_file():
        return None
    try:
        return Episode.read(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        path.unlink()
        return None
