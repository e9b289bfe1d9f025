"""The episode host in this process: it plays with the run's engine, and judges in the run's sandboxes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from selfplay.agent.episode import Episode, FinishReason
from selfplay.agent.hosts import InjectorWork, SolverWork
from selfplay.agent.injector import InjectorTask, play_injector
from selfplay.agent.solver import SolverTask, play_solver, solver_task, spec_tokens
from selfplay.agent.workspaces import EpisodeContext, EpisodeKey
from selfplay.engines.base import Completion, Engine, GenerationRequest, Sampling
from selfplay.errors import ArtifactError, PatchError
from selfplay.repositories.environment import Environment
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import Grade, grade
from selfplay.verdicts.randomness import Secret
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate, validate_second_order
from selfplay.verdicts.verdict import CheckResult, Verdict

if TYPE_CHECKING:
    import torch

SPEC_TOO_LONG = "spec_too_long"


class LocalHost:
    """Plays and judges in the calling thread.

    It opens and fills at most `train.max_opening` sandboxes at the same time.
    engine: the context's engine, wrapped to measure when it is busy.
    """

    def __init__(
        self, context: EpisodeContext, environments: Mapping[str, Environment], runner: TestRunner
    ) -> None:
        """environments: by repository name. runner: for verdicts and grades; episodes share its test runs."""
        config = context.config
        self._config, self._chat = config, context.chat
        self._environments, self._runner = environments, runner
        self.engine = WatchedEngine(context.engine)
        opening = threading.BoundedSemaphore(config.train.max_opening)
        self._context = replace(context, engine=self.engine, runner=runner, opening=opening)

    @property
    def secret(self) -> Secret:
        """The secret from which its verdicts and grades draw."""
        return self._runner.secret

    def prepare(self, work: SolverWork) -> SolverWork:
        if work.issue:  # in place of all that comes from the tests
            return work
        task = solver_task(
            self._environments[work.repository], work.bug_id, work.bug, work.failure, self._config
        )
        return replace(work, suspects=task.suspects)

    def play(self, work: InjectorWork | SolverWork, key: EpisodeKey) -> Episode:
        environment = self._environments[work.repository]
        if isinstance(work, InjectorWork):
            task = InjectorTask(environment, work.strategy, work.target, work.thresholds)
            return play_injector(task, key, self._context)
        solver = SolverTask(environment, work.bug_id, work.bug, work.failure, work.suspects, work.issue)
        return play_solver(solver, key, self._sampled(work.sampling))

    def _sampled(self, sampling: Sampling | None) -> EpisodeContext:
        """The context of an episode that is sampled in this way."""
        if sampling is None:
            return self._context
        how = {"resamples": 0, "temperature": sampling.temperature}
        agent = self._config.agent.model_copy(update=how)
        config = self._config.model_copy(update={"agent": agent})
        return replace(self._context, config=config, top_p=sampling.top_p)

    def judge(self, work: InjectorWork, episode: Episode) -> Verdict:
        if episode.finish is not FinishReason.SUBMITTED:
            return _rejected(
                f"not_submitted/{episode.finish}",
                f"the episode ended with {episode.finish}, nothing was submitted",
            )
        try:
            artifact = Artifact.from_files(episode.submission)
        except (ArtifactError, PatchError) as error:
            return _rejected("readable", str(error))
        verdict = validate(
            artifact,
            self._environments[work.repository],
            work.thresholds,
            self._runner,
            self._config.validator,
        )
        if not verdict.accepted:
            return verdict
        tokens = spec_tokens(
            self._chat, BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)
        )
        if tokens > self._config.solver.max_spec_tokens:
            limit = self._config.solver.max_spec_tokens
            reason = f"the reversed test_weaken.diff has {tokens} tokens; solver.max_spec_tokens is {limit}"
            check = CheckResult(SPEC_TOO_LONG, False, reason, {}, 0.0)
            return replace(
                verdict, accepted=False, failed_check=SPEC_TOO_LONG, checks=(*verdict.checks, check)
            )
        return verdict

    def grade(self, work: SolverWork, patch: str) -> Grade:
        return grade(work.bug, patch, self._environments[work.repository], self._runner)

    def judge_second_order(self, work: SolverWork, patch: str, thresholds: Thresholds) -> Verdict:
        environment = self._environments[work.repository]
        return validate_second_order(
            work.bug, patch, environment, thresholds, self._runner, self._config.validator
        )

    def engine_busy_s(self) -> float:
        return self.engine.busy_s()


class WatchedEngine:
    """An engine with a clock, which runs while at least one request is in flight."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._in_flight = 0
        self._since = 0.0
        self._busy_s = 0.0

    @property
    def weight_version(self) -> int:
        return self._engine.weight_version

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        with self._busy():
            return self._engine.generate(requests, sampling)

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        self._engine.load_weights(weights, version)

    def close(self) -> None:
        self._engine.close()

    def busy_s(self) -> float:
        with self._lock:
            return self._busy_s + (time.monotonic() - self._since if self._in_flight else 0.0)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        with self._lock:
            if not self._in_flight:
                self._since = time.monotonic()
            self._in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1
                if not self._in_flight:
                    self._busy_s += time.monotonic() - self._since


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
