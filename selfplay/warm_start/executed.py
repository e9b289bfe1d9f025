"""Plays episodes for rejection fine-tuning: the scripted teacher plays both roles in real sandboxes.

Keeps injector episodes whose bug validates, and solver episodes whose repair passes. Does not train on them.
Invariants: each attempt is on disk before the next one counts, so a killed collection continues where it
stopped. An episode in which the machine failed is never kept: its outcome says nothing about the players.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from selfplay.agent.episode import Episode
from selfplay.agent.injector import InjectorTask, play_injector
from selfplay.agent.prompting import render
from selfplay.agent.runner import EpisodeRunner, unspoiled
from selfplay.agent.solver import SolverTask, play_solver
from selfplay.agent.workspaces import EpisodeContext, EpisodeKey, sandbox_limits
from selfplay.config import Config, load_config
from selfplay.errors import ArtifactError, ConfigError, SandboxUnavailable
from selfplay.outcomes import parse_outcomes
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.scripts import standard_parser
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.suspects import Suspect, failure_first, find_suspects
from selfplay.runtime.resources import resource
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.teacher.mutations import Mutation
from selfplay.teacher.player import TeacherPlayer
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_logs import short_failure
from selfplay.verdicts.test_runs import ParsedLog, TestRun, TestRunner
from selfplay.verdicts.validator import validate
from selfplay.warm_start.attempts import ATTEMPTS, Attempt, Collection
from selfplay.warm_start.mutation_plan import PlannedMutation, plan_mutations
from selfplay.warm_start.settings import ExecuteSettings, Progress

PlayedMutation = tuple[Attempt, list[Episode]]  # the attempt and its kept episodes
Play = Callable[[PlannedMutation, bool], PlayedMutation]  # the bool is `repairs_only`

MADE_WITH = "made_with.json"
LABELS = {"selfplay.run": "warm-start"}
TRIES = 3  # of one mutation, if the machine fails
FAILURES_IN_A_ROW = 8  # machine failures that end the collection
# One in this many mutations that no test notices is still played: the teacher then breaks another line.
UNNOTICED_PLAYED = 8
FAILURES_READ = 20  # failing tests of a bug that may lead to it, in order of their names
REPAIRS = 2  # most solver episodes of one bug; each shows another failing test
FAILURE_END = 200  # failures with so many equal characters at the end count as the same
GUESS_RATE = 0.4  # see TeacherPlayer.guess_rate
PROGRESS_EVERY_S = 30.0


# ---- what episodes are played with


def read_recipe(settings: ExecuteSettings) -> Config:
    """The recipe's configuration, but tests run once and under `script_timeout_s`. Raises ConfigError."""
    path = Path(settings.recipe)
    config = load_config(path if path.exists() else resource("recipes") / path.name)
    validator = config.validator.model_copy(
        update={"determinism_runs": 1, "script_timeout_s": settings.script_timeout_s}
    )
    return config.model_copy(update={"validator": validator})


class Machine:
    """Configuration, sandbox backend and environments. Built first, since any of them may be missing."""

    def __init__(self, settings: ExecuteSettings, progress: Progress) -> None:
        """Raises ConfigError, PrerequisiteError, RepositoryError and EnvironmentBuildError."""
        self.settings = settings
        self.config = read_recipe(settings)
        self.limits = sandbox_limits(self.config)
        specs = [parse_spec(text) for text in settings.repositories]
        checkouts = [fetch(spec, cache_root()) for spec in specs]
        self.backend: SandboxBackend = open_backend(settings.sandbox, cache_root())[0]
        self.environments = [
            prepare_environment(
                checkout, self.backend, self.config.environment, self.limits, cache_root(), progress
            )
            for checkout in checkouts
        ]

    @property
    def thresholds(self) -> Thresholds:
        """The strictest thresholds that the configuration allows."""
        injector = self.config.injector
        return Thresholds(
            injector.min_passing_tests[1], injector.min_failing_tests[1], injector.min_changed_files[1]
        )


# ---- playing


@dataclass
class _Players:
    """Plays planned mutations with the teacher. Threads may share it: it only caches test runs and mutations.

    max_tokens: of an episode that can be trained on.
    """

    machine: Machine
    tokenizer: Any
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        from selfplay.agent.chat import chat_format

        machine = self.machine
        self.chat = chat_format(self.tokenizer, machine.config.policy, machine.config.agent)
        trees = [environment.tree for environment in machine.environments]
        self.teacher = TeacherPlayer(
            trees,
            skill=1.0,
            guess_rate=GUESS_RATE,
            chat=self.chat,
            whole_lines=machine.settings.whole_lines,
        )
        self.runner = _LocalParserRunner(machine.backend, machine.config.validator, machine.limits, LABELS)

    def play(self, planned: PlannedMutation, repairs_only: bool) -> PlayedMutation:
        """Play both roles. Returns the attempt and its kept episodes.

        repairs_only: skip a mutation if no failing test leads the teacher to it.
        Raises SandboxUnavailable if the machine fails.
        """
        started = time.monotonic()
        target = planned.target
        attempt = Attempt(
            planned.number,
            planned.environment.repository,
            f"{target.path}::{target.name}",
            planned.mutation.operator,
            "unnoticed",
            0.0,
        )
        kept: list[Episode] = []
        failures = self._expected_failures(planned)
        if not failures.texts and (repairs_only or planned.number % UNNOTICED_PLAYED):
            pass
        elif repairs_only and not failures.leading_to(planned.mutation, self.teacher):
            attempt = replace(attempt, outcome="not led to")
        else:
            attempt, kept = self._play_both_roles(planned, attempt)
        return replace(attempt, seconds=round(time.monotonic() - started, 2)), kept

    def _expected_failures(self, planned: PlannedMutation) -> _Failures:
        """Failures of the tests with the mutation. Validation repeats this run, from the cache."""
        environment, mutation = planned.environment, planned.mutation
        entry = environment.tree[mutation.path]
        content = mutation.apply(environment.tree.text(mutation.path)).encode()
        tree = environment.tree.replace({mutation.path: replace(entry, content=content)})
        script = environment.script_for((planned.target.test_file,))
        run = self.runner.run(environment, tree, script, environment.parser)
        failing = frozenset() if run.error else run.outcomes.failed & environment.baseline.passed
        return self._failures(environment, run, failing)

    def _failures(self, environment: Environment, run: TestRun, failing: Set[str]) -> _Failures:
        solver = self.machine.config.solver
        suspects: tuple[Suspect, ...] = ()
        if "suspects" in solver.help:
            suspects = find_suspects(environment.calls, failing, environment.tree, solver.max_suspects)
        texts = (short_failure(run.log, name) for name in sorted(failing)[:FAILURES_READ])
        return _Failures(tuple(texts), suspects)

    def _play_both_roles(self, planned: PlannedMutation, attempt: Attempt) -> PlayedMutation:
        from selfplay.engines.scripted_engine import ScriptedEngine

        machine, environment = self.machine, planned.environment
        player = replace(self.teacher, first_mutation=planned.mutation)
        engine = ScriptedEngine(player, self.tokenizer)
        context = EpisodeContext(
            machine.config, engine, self.chat, machine.backend, machine.limits, self.runner
        )
        task = InjectorTask(environment, "direct", planned.target, machine.thresholds)
        episode = unspoiled(play_injector(task, self._key(planned, 0), context))
        try:
            artifact = Artifact.from_files(episode.submission)
        except ArtifactError:
            return replace(attempt, outcome="readable"), []
        verdict = validate(artifact, environment, machine.thresholds, self.runner, machine.config.validator)
        if not verdict.accepted:
            return replace(attempt, outcome=verdict.failed_check), []
        attempt = replace(attempt, outcome="too long", digest=verdict.buggy_digest)
        kept = []
        if len(episode.token_ids) <= self.max_tokens:
            kept.append(episode)
            attempt = replace(attempt, outcome="validated", injector=episode.episode_id)
        bug = BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)
        repairs, solvers = self._play_solvers(planned, bug, player, context)
        solver_ids = tuple(solver.episode_id for solver in solvers)
        return replace(attempt, repairs=repairs, solvers=solver_ids), [*kept, *solvers]

    def _play_solvers(
        self, planned: PlannedMutation, bug: BugState, player: TeacherPlayer, context: EpisodeContext
    ) -> tuple[tuple[str, ...], list[Episode]]:
        """(`Attempt.repairs`, the kept episodes)."""
        environment, artifact = planned.environment, bug.artifact
        buggy = build_states(environment.tree, bug).buggy
        run = self.runner.run(environment, buggy, artifact.test_script, artifact.test_parser)
        failures = self._failures(environment, run, run.outcomes.failed.intersection(bug.fail_to_pass))
        repairs, kept = list[str](), list[Episode]()
        for member, failure in enumerate(failures.for_repairs(planned.mutation, player)):
            suspects = failure_first(failures.suspects, failure)
            task = SolverTask(environment, f"bug-{planned.number}", bug, failure, suspects)
            episode = unspoiled(play_solver(task, self._key(planned, member), context))
            result = grade(bug, episode.submission.get("patch", ""), environment, self.runner, confirm=False)
            is_short = len(episode.token_ids) <= self.max_tokens
            repairs.append(("repaired" if is_short else "too long") if result.passed else result.reason)
            if result.passed and is_short:
                kept.append(episode)
        return tuple(repairs), kept

    def _key(self, planned: PlannedMutation, member: int) -> EpisodeKey:
        return EpisodeKey(self.seed, 0, f"e{planned.number:05d}", member, LABELS)


@dataclass(frozen=True)
class _Failures:
    """Failures of one bug's tests, in order of the tests' names, and the suspects that follow from them."""

    texts: tuple[str, ...]
    suspects: tuple[Suspect, ...]

    def leading_to(self, mutation: Mutation, player: TeacherPlayer) -> list[str]:
        """The failures with which the teacher, as solver, shows the mutated line."""

        def task(failure: str) -> str:
            suspects = failure_first(self.suspects, failure)
            shown = {"failure": failure, "suspects": suspects}
            return render("solver/repair", "terse", None, issue="", specification="", **shown).text

        return [text for text in self.texts if player.leads_to(task(text), mutation)]

    def for_repairs(self, mutation: Mutation, player: TeacherPlayer) -> list[str]:
        """At most REPAIRS failures to show to solvers, first the one that play shows. No two end alike."""
        by_end = {failure[-FAILURE_END:]: failure for failure in reversed(self.leading_to(mutation, player))}
        return list(reversed(by_end.values()))[:REPAIRS]


class _LocalParserRunner(TestRunner):
    """Runs the standard parser in this process. It is selfplay's own code, so it needs no sandbox."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._source = standard_parser()
        names: dict[str, Any] = {"__name__": "standard_parser"}
        exec(compile(self._source, "test_parser.py", "exec"), names)
        self._parse = names["parse"]

    def parse(self, environment: Environment, parser: str, log: bytes) -> ParsedLog:
        if parser != self._source:
            return super().parse(environment, parser, log)
        outcomes = json.dumps(self._parse(log.decode("utf-8", errors="replace"))).encode()
        return ParsedLog(parse_outcomes(outcomes, self.settings.max_test_ids))


# ---- collecting


def collect(
    settings: ExecuteSettings,
    folder: Path,
    tokenizer_folder: Path,
    max_tokens: int,
    seed: int,
    progress: Progress,
    machine: Machine | None = None,
) -> Collection:
    """Play until both numbers of episodes are reached or no mutation is left. Earlier attempts count.

    max_tokens: of an episode that can be trained on.
    Raises ConfigError if `folder` was made with other settings, SandboxUnavailable if the machine keeps
    failing, and what Machine raises.
    """
    _check_same(settings, folder, tokenizer_folder, max_tokens, seed)
    known = Collection.read(folder)
    if known.is_complete(settings):
        progress(
            f"executed: {len(known.injectors)} injector and {len(known.solvers)} solver episodes "
            "were played before"
        )
        return known
    from transformers import AutoTokenizer

    machine = machine or Machine(settings, progress)
    players = _Players(machine, AutoTokenizer.from_pretrained(tokenizer_folder), max_tokens, seed)
    played = {attempt.number for attempt in known.attempts}
    plan = plan_mutations(machine.environments, settings, machine.thresholds.min_passing_tests, seed)
    left = [planned for planned in plan if planned.number not in played]
    return Collecting(settings, known, progress).run(left, players.play)


def _check_same(
    settings: ExecuteSettings, folder: Path, tokenizer_folder: Path, max_tokens: int, seed: int
) -> None:
    """Write the settings into the folder, or compare them with those that it has.

    Token ids belong to one tokenizer, and the numbers of attempts to one plan. Raises ConfigError if the
    settings differ.
    """
    config = read_recipe(settings)
    made_with = {
        "tokenizer": hashlib.sha256((tokenizer_folder / "tokenizer.json").read_bytes()).hexdigest(),
        "repositories": list(settings.repositories),
        "max_lines": settings.max_lines,
        "sequence_tokens": max_tokens,
        "seed": seed,
        "prompt_style": config.agent.prompt_style,
        "solver_given": list(config.solver.help),
        "limits": [config.agent.context_tokens, config.agent.observation_tokens, config.agent.max_turns],
    }
    file = folder / MADE_WITH
    # Folders of earlier versions do not name these.
    if config.agent.tool_format != "tags":
        made_with["tool_format"] = config.agent.tool_format
    if settings.whole_lines:
        made_with["whole_lines"] = True
    if config.policy.template_args:
        made_with["template_args"] = config.policy.template_args
    if config.policy.chat_template:
        made_with["chat_template"] = config.policy.chat_template
    if file.exists():
        before = json.loads(file.read_text("utf-8"))
        differing = [key for key in before | made_with if before.get(key) != made_with.get(key)]
        if differing:
            raise ConfigError(
                f"{folder} holds episodes that were played with another {', '.join(differing)}. "
                "Remove that folder to play anew."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made_with, indent=2) + "\n", encoding="utf-8")


@dataclass
class Collecting:
    """Plays in a pool of `settings.workers` threads. Only the calling thread writes attempts."""

    settings: ExecuteSettings
    known: Collection
    progress: Progress
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.attempts = list(self.known.attempts)
        self.digests = {attempt.digest for attempt in self.attempts if attempt.digest}
        self.reported_at = self.started

    def run(self, plan: Sequence[PlannedMutation], play: Play) -> Collection:
        """Play until both numbers of episodes are reached or no mutation is left.

        play: called with a mutation and `repairs_only`, up to TRIES times if it raises SandboxUnavailable.
        Raises SandboxUnavailable after FAILURES_IN_A_ROW mutations without an attempt.
        """
        asyncio.run(self._play_all(iter(plan), play))
        self.report()
        if not self.now.is_complete(self.settings):
            self.progress("executed: every mutation was played; the numbers asked for were not reached")
        return self.now

    async def _play_all(self, left: Iterator[PlannedMutation], play: Play) -> None:
        settings = self.settings
        runner = EpisodeRunner(settings.workers, judges=1, waits_s=(0.0,) * (TRIES - 1))

        async def play_one_after_another() -> None:
            while not self.now.is_complete(settings) and (planned := next(left, None)) is not None:
                repairs_only = len(self.now.injectors) >= settings.injector_episodes
                try:
                    attempt, episodes = await runner.play(partial(play, planned, repairs_only))
                except SandboxUnavailable as failure:
                    self.progress(f"executed: the machine failed, nothing of it is kept: {failure}")
                    if runner.counts.spoiled_in_a_row >= FAILURES_IN_A_ROW:
                        raise
                else:
                    self.keep(attempt, episodes)

        try:
            await asyncio.gather(*(play_one_after_another() for _ in range(settings.workers)))
        finally:
            runner.close()

    @property
    def now(self) -> Collection:
        """All attempts so far, those of earlier calls included."""
        return Collection(self.known.folder, tuple(sorted(self.attempts, key=lambda attempt: attempt.number)))

    def keep(self, attempt: Attempt, episodes: Sequence[Episode]) -> None:
        """Write the episodes, then their row. A kill in between leaves files that do not count."""
        if attempt.digest and attempt.digest in self.digests:
            attempt, episodes = replace(attempt, outcome="duplicate", injector="", solvers=()), ()
        self.digests.add(attempt.digest)
        for episode in episodes:
            episode.write(self.known.folder)
        with (self.known.folder / ATTEMPTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(attempt)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.attempts.append(attempt)
        if time.monotonic() - self.reported_at >= PROGRESS_EVERY_S:
            self.report()

    def report(self) -> None:
        """Say how many episodes are kept, and how long the rest takes at the speed of this call."""
        self.reported_at = time.monotonic()
        now, settings = self.now, self.settings
        new = len(self.attempts) - len(self.known.attempts)
        each = (self.reported_at - self.started) / max(new, 1)
        shares = [
            (settings.injector_episodes - len(now.injectors), len(now.injectors) - len(self.known.injectors)),
            (settings.solver_episodes - len(now.solvers), len(now.solvers) - len(self.known.solvers)),
        ]
        left_s = max(missing * (self.reported_at - self.started) / max(made, 1) for missing, made in shares)
        outcomes = Counter(attempt.outcome for attempt in self.attempts)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        self.progress(
            f"executed: {len(now.injectors)} of {settings.injector_episodes} injector and "
            f"{len(now.solvers)} of {settings.solver_episodes} solver episodes ({counts}), "
            f"{each:.1f} s a mutation, about {max(left_s, 0) / 60:.0f} min left"
        )
