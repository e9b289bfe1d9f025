"""Rejection fine-tuning's episodes: the teacher plays both roles in sandboxes; kept are bugs that validate and repairs that pass.

Leaves training to the other stages. Invariant: every attempt is on disk before the next is counted, so a killed collection goes on where
it was; what a machine's failure spoiled is never kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.agent.episode import Episode, FinishReason, Role
from selfplay.agent.injector import InjectorTask, play_injector
from selfplay.agent.prompting import render
from selfplay.agent.solver import SolverTask, play_solver
from selfplay.agent.workspaces import EpisodeKey, sandbox_limits
from selfplay.config import Config, load_config
from selfplay.errors import ArtifactError, ConfigError, SandboxUnavailable
from selfplay.outcomes import parse_outcomes
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment, standard_parser
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.suspects import Suspect, failure_first, find_suspects
from selfplay.repositories.targets import Target, usable_targets
from selfplay.runtime.resources import resource
from selfplay.sandbox import SandboxBackend, open_backend
from selfplay.teacher.mutations import Mutation, choose_mutation, mutations_of_file
from selfplay.teacher.phrases import STILL_FAILING
from selfplay.teacher.player import TeacherPlayer
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_logs import short_failure
from selfplay.verdicts.test_runs import ParsedLog, TestRun, TestRunner
from selfplay.verdicts.validator import validate
from selfplay.warm_start.settings import ExecuteSettings, Progress

if TYPE_CHECKING:
    from selfplay.warm_start.sft import Document

ATTEMPTS, MADE_WITH = "attempts.jsonl", "made_with.json"
LABELS = {"selfplay.run": "warm-start"}
TRIES = 3  # of one mutation, where the machine failed
FAILURES_IN_A_ROW = 8  # of the machine: more end the collection
NOT_PLAYED = ("unnoticed", "not led to")
UNNOTICED_PLAYED = 8  # one in so many mutations that no test notices is played all the same: the teacher then breaks another line
FAILURES_READ = 20  # failing tests of a bug, in order of their names, that may lead to it
REPAIRS = 2  # of one bug at most, each shown another failing test
GUESSES = 0.4  # how often the teacher edits in vain (TeacherPlayer.guesses)
PROGRESS_EVERY_S = 30.0


@dataclass(frozen=True)
class Attempt:
    """One mutation and what became of it: a row of attempts.jsonl.

    outcome  not played: "unnoticed" (no test fails), "not led to" (to a repair, once only repairs are wanted); played: "validated",
             "too long" (for a training row), "duplicate", else the failed check
    """

    number: int
    repository: str
    target: str
    operator: str
    outcome: str
    seconds: float
    digest: str = ""  # of the tree that a solver sees
    injector: str = ""  # the kept episode's id
    solvers: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()  # of each solver episode "repaired", "too long" or why it is none


@dataclass(frozen=True)
class Place:
    """A mutation to be played. Its number is its place in the plan, which equal settings make equal."""

    number: int
    environment: Environment
    target: Target
    mutation: Mutation


@dataclass(frozen=True)
class Collection:
    """What a folder holds."""

    folder: Path
    attempts: tuple[Attempt, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Collection:
        """A last line that was cut short by a kill is left out."""
        attempts = {}
        for line in (
            (folder / ATTEMPTS).read_text("utf-8").split("\n")[:-1] if (folder / ATTEMPTS).exists() else ()
        ):
            try:
                row = json.loads(line)
                attempt = Attempt(**row | {name: tuple(row[name]) for name in ("solvers", "repairs")})
            except (ValueError, TypeError, KeyError):
                continue  # a piece of a line that a later call went on behind
            attempts[attempt.number] = attempt
        return cls(folder, tuple(attempts[number] for number in sorted(attempts)))

    @property
    def injectors(self) -> list[str]:
        return [attempt.injector for attempt in self.attempts if attempt.injector]

    @property
    def solvers(self) -> list[str]:
        return [name for attempt in self.attempts for name in attempt.solvers]

    def is_complete(self, settings: ExecuteSettings) -> bool:
        return (
            len(self.injectors) >= settings.injector_episodes
            and len(self.solvers) >= settings.solver_episodes
        )

    def documents(self, role: Role) -> list[Document]:
        names = self.injectors if role is Role.INJECTOR else self.solvers
        return [training_text(Episode.read(self.folder / f"{name}.json.gz")) for name in names]

    def table(self) -> list[str]:
        """Markdown rows: played, validated and repaired, for each repository."""
        rows = []
        for repository in [*dict.fromkeys(sorted(a.repository for a in self.attempts)), "all"]:
            some = [a for a in self.attempts if repository in (a.repository, "all")]
            played = [a for a in some if a.outcome not in NOT_PLAYED]
            cells = [len({a.target for a in some if a.injector}), len(some) - len(played), len(played)]
            cells += [
                sum(bool(a.injector) for a in some),
                sum(len(a.repairs) for a in some),
                sum(len(a.solvers) for a in some),
            ]
            rows.append(f"| {repository} | {' | '.join(map(str, cells))} |")
        return rows

    @property
    def seconds(self) -> float:
        return sum(attempt.seconds for attempt in self.attempts)


def training_text(episode: Episode) -> Document:
    """What the policy wrote counts, except turns that caused an error or were taken back; what it was shown counts a little."""
    from selfplay.warm_start.fabrication import Weights
    from selfplay.warm_start.sft import Document

    weights = [Weights.action if counts else Weights.shown for counts in episode.loss_mask]
    taken_back = [bool(STILL_FAILING.search(after.observation)) for after in episode.turns[1:]]
    for turn, is_wrong in zip(episode.turns, [*taken_back, False], strict=True):
        if turn.is_error or (is_wrong and turn.tool == "edit"):
            weights[turn.tokens[0] : turn.tokens[1]] = [0.0] * (turn.tokens[1] - turn.tokens[0])
    return Document(list(episode.token_ids), weights)


# ---- what is played


def read_recipe(settings: ExecuteSettings) -> Config:
    """The configuration that episodes are played with: the recipe's, with no repeated verdicts. Raises ConfigError."""
    path = Path(settings.recipe)
    config = load_config(path if path.exists() else resource("recipes") / path.name)
    validator = config.validator.model_copy(
        update={"determinism_runs": 1, "script_timeout_s": settings.script_timeout_s}
    )
    return config.model_copy(update={"validator": validator})


def plan(
    environments: Sequence[Environment], settings: ExecuteSettings, least_tests: int, seed: int
) -> list[Place]:
    """Every mutation of every function that may be used, once: rounds of one mutation a function, in an order of `seed`'s making."""
    generator = random.Random(seed)
    orders: list[tuple[Environment, Target, list[Mutation]]] = []
    for environment in environments:
        known: dict[str, dict[int, list[Mutation]]] = {}
        for target in usable_targets(
            environment.targets, environment.baseline.passed, settings.max_lines, least_tests
        ):
            if target.path not in known:
                functions = mutations_of_file(
                    target.path, environment.tree.text(target.path), settings.max_lines
                )
                known[target.path] = {function.first_line: mutations for function, mutations in functions}
            orders.append(
                (
                    environment,
                    target,
                    _in_drawn_order(known[target.path].get(target.first_line, ()), generator),
                )
            )
    found: list[tuple[Environment, Target, Mutation]] = []
    for turn in range(max((len(mutations) for _, _, mutations in orders), default=0)):
        once = [
            (environment, target, mutations[turn])
            for environment, target, mutations in orders
            if turn < len(mutations)
        ]
        generator.shuffle(once)
        found += once
    return [Place(number, *what) for number, what in enumerate(found)]


def _in_drawn_order(mutations: Sequence[Mutation], generator: random.Random) -> list[Mutation]:
    left, order = list(mutations), list[Mutation]()
    while left:
        order.append(choose_mutation(left, generator))
        left.remove(order[-1])
    return order


# ---- playing


class Machine:
    """What episodes are played with. Opening it is what can fail for want of a sandbox or a repository."""

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
        injector = self.config.injector
        return Thresholds(
            injector.min_passing_tests[1], injector.min_failing_tests[1], injector.min_changed_files[1]
        )


@dataclass
class _Table:
    """Plays places: no state but the test runs that are known and the teacher's lists."""

    machine: Machine
    tokenizer: Any
    longest: int
    seed: int

    def __post_init__(self) -> None:
        from selfplay.agent.chat import ChatFormat

        self.chat = ChatFormat(self.tokenizer)
        machine = self.machine
        self.teacher = TeacherPlayer([e.tree for e in machine.environments], skill=1.0, guesses=GUESSES)
        self.runner = _HouseRunner(machine.backend, machine.config.validator, machine.limits, LABELS)

    def play(self, place: Place, repairs_only: bool) -> tuple[Attempt, list[Episode]]:
        """repairs_only: leave out what no failing test leads the teacher to. Raises SandboxUnavailable after TRIES failures."""
        for number in range(TRIES):
            try:
                return self._play(place, repairs_only)
            except SandboxUnavailable:
                if number == TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _play(self, place: Place, repairs_only: bool) -> tuple[Attempt, list[Episode]]:
        started = time.monotonic()
        target = place.target
        attempt = Attempt(
            place.number,
            place.environment.repository,
            f"{target.path}::{target.name}",
            place.mutation.operator,
            "unnoticed",
            0.0,
        )
        kept: list[Episode] = []
        failures = self._foreseen(place)
        if not failures.texts and (repairs_only or place.number % UNNOTICED_PLAYED):
            pass
        elif repairs_only and not failures.leading(place.mutation, self.teacher):
            attempt = replace(attempt, outcome="not led to")
        else:
            attempt, kept = self._both_roles(place, attempt)
        return replace(attempt, seconds=round(time.monotonic() - started, 2)), kept

    def _foreseen(self, place: Place) -> _Failures:
        """How tests will fail. The very run that validation asks for: known by then, it costs nothing."""
        environment, mutation = place.environment, place.mutation
        entry = environment.tree[mutation.path]
        tree = environment.tree.replace(
            {
                mutation.path: replace(
                    entry, content=mutation.apply(environment.tree.text(mutation.path)).encode()
                )
            }
        )
        run = self.runner.run(
            environment, tree, environment.script_for((place.target.test_file,)), environment.parser
        )
        return self._failures(
            environment, run, frozenset() if run.error else run.outcomes.failed & environment.baseline.passed
        )

    def _failures(self, environment: Environment, run: TestRun, failing: Set[str]) -> _Failures:
        solver = self.machine.config.solver
        is_given = "suspects" in solver.help
        suspects = (
            find_suspects(environment.calls, failing, environment.tree, solver.max_suspects)
            if is_given
            else ()
        )
        return _Failures(
            tuple(short_failure(run.log, name) for name in sorted(failing)[:FAILURES_READ]), suspects
        )

    def _both_roles(self, place: Place, attempt: Attempt) -> tuple[Attempt, list[Episode]]:
        from selfplay.engines.scripted_engine import ScriptedEngine

        machine, environment = self.machine, place.environment
        player = replace(self.teacher, first=place.mutation)
        engine = ScriptedEngine(player, self.tokenizer)
        where = EpisodeKey(self.seed, 0, f"e{place.number:05d}", 0, LABELS)
        players = (engine, self.chat, machine.backend, machine.config, machine.limits, self.runner)
        episode = _unspoiled(
            play_injector(
                InjectorTask(environment, "direct", place.target, machine.thresholds), where, *players
            )
        )
        try:
            artifact = Artifact.from_files(episode.submission)
        except ArtifactError:
            return replace(attempt, outcome="readable"), []
        verdict = validate(artifact, environment, machine.thresholds, self.runner, machine.config.validator)
        if not verdict.accepted:
            return replace(attempt, outcome=verdict.failed_check), []
        attempt = replace(attempt, outcome="validated", digest=verdict.buggy_digest)
        kept = []
        if len(episode.token_ids) <= self.longest:
            kept.append(episode)
            attempt = replace(attempt, injector=episode.episode_id)
        else:
            attempt = replace(attempt, outcome="too long")
        bug = BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)
        run = self.runner.run(
            environment, build_states(environment.tree, bug).buggy, artifact.test_script, artifact.test_parser
        )
        failures = self._failures(environment, run, run.outcomes.failed.intersection(bug.fail_to_pass))
        for member, failure in enumerate(failures.of_repairs(place.mutation, player)):
            where = EpisodeKey(self.seed, 0, f"e{place.number:05d}", member, LABELS)
            task = SolverTask(
                environment, f"bug-{place.number}", bug, failure, failure_first(failures.suspects, failure)
            )
            repair = _unspoiled(play_solver(task, where, *players))
            result = grade(bug, repair.submission.get("patch", ""), environment, self.runner, confirm=False)
            said = result.reason
            if result.passed:
                said = "repaired" if len(repair.token_ids) <= self.longest else "too long"
            if said == "repaired":
                kept.append(repair)
                attempt = replace(attempt, solvers=(*attempt.solvers, repair.episode_id))
            attempt = replace(attempt, repairs=(*attempt.repairs, said))
        return attempt, kept


@dataclass(frozen=True)
class _Failures:
    """Of one bug: how its failing tests fail, in order of their names, and the suspects that they make."""

    texts: tuple[str, ...]
    suspects: tuple[Suspect, ...]

    def leading(self, mutation: Mutation, player: TeacherPlayer) -> list[str]:
        """Those with which the teacher comes to look at the mutation."""

        def told(failure: str) -> str:
            suspects = failure_first(self.suspects, failure)
            return render("solver/repair", "terse", specification="", failure=failure, suspects=suspects).text

        return [text for text in self.texts if player.leads_to(told(text), mutation)]

    def of_repairs(self, mutation: Mutation, player: TeacherPlayer) -> list[str]:
        """The failures that repairs are shown: the one that play shows before others; at most REPAIRS."""
        by_end = {failure[-200:]: failure for failure in reversed(self.leading(mutation, player))}
        return list(reversed(by_end.values()))[:REPAIRS]


class _HouseRunner(TestRunner):
    """Reads logs with the house's own parser here: it is no code of the repository's or a policy's, so it needs no sandbox."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._own = standard_parser()
        names: dict[str, Any] = {"__name__": "standard_parser"}
        exec(compile(self._own, "test_parser.py", "exec"), names)
        self._read = names["parse"]

    def parse(self, environment: Environment, parser: str, log: bytes) -> ParsedLog:
        if parser != self._own:
            return super().parse(environment, parser, log)
        return ParsedLog(
            parse_outcomes(
                json.dumps(self._read(log.decode("utf-8", errors="replace"))).encode(),
                self.settings.max_test_ids,
            )
        )


def _unspoiled(episode: Episode) -> Episode:
    if episode.finish is FinishReason.ENV_ERROR:
        raise SandboxUnavailable(episode.error or "a sandbox failed in an episode")
    return episode


# ---- collecting


def collect(
    settings: ExecuteSettings,
    folder: Path,
    tokenizer_folder: Path,
    longest: int,
    seed: int,
    progress: Progress,
    machine: Machine | None = None,
) -> Collection:
    """Play until both numbers of episodes are reached, or every mutation was played. What `folder` holds already counts.

    longest: tokens of the longest episode that can be trained on. Raises ConfigError when `folder` was made with other settings,
    SandboxUnavailable when the machine keeps failing, and as Machine does.
    """
    _check_same(settings, folder, tokenizer_folder, longest, seed)
    known = Collection.read(folder)
    if known.is_complete(settings):
        progress(
            f"executed: {len(known.injectors)} injector and {len(known.solvers)} solver episodes were played before"
        )
        return known
    from transformers import AutoTokenizer

    machine = machine or Machine(settings, progress)
    table = _Table(machine, AutoTokenizer.from_pretrained(tokenizer_folder), longest, seed)
    done = {attempt.number for attempt in known.attempts}
    places = [
        p
        for p in plan(machine.environments, settings, machine.thresholds.min_passing_tests, seed)
        if p.number not in done
    ]
    return Collecting(settings, known, progress).run(places, table.play)


def _check_same(
    settings: ExecuteSettings, folder: Path, tokenizer_folder: Path, longest: int, seed: int
) -> None:
    """Token ids mean nothing under another tokenizer, and numbers nothing under another plan."""
    config = read_recipe(settings)
    made_with = {
        "tokenizer": hashlib.sha256((tokenizer_folder / "tokenizer.json").read_bytes()).hexdigest(),
        "repositories": list(settings.repositories),
        "max_lines": settings.max_lines,
        "sequence_tokens": longest,
        "seed": seed,
        "prompt_style": config.agent.prompt_style,
        "solver_given": list(config.solver.help),
        "limits": [config.agent.context_tokens, config.agent.observation_tokens, config.agent.max_turns],
    }
    file = folder / MADE_WITH
    if file.exists():
        before = json.loads(file.read_text("utf-8"))
        differing = [key for key, value in made_with.items() if before.get(key) != value]
        if differing:
            raise ConfigError(
                f"{folder} holds episodes that were played with another {', '.join(differing)}. Remove that folder to play anew."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made_with, indent=2) + "\n", encoding="utf-8")


@dataclass
class Collecting:
    """The bounded pool around `play`, and the one writer."""

    settings: ExecuteSettings
    known: Collection
    progress: Progress
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.attempts = list(self.known.attempts)
        self.digests = {attempt.digest for attempt in self.attempts if attempt.digest}
        self.told = self.started

    def run(
        self, places: Sequence[Place], play: Callable[[Place, bool], tuple[Attempt, list[Episode]]]
    ) -> Collection:
        left: Iterator[Place] = iter(places)
        failures = 0
        with ThreadPoolExecutor(self.settings.workers, thread_name_prefix="executed") as pool:
            running: set[Future[tuple[Attempt, list[Episode]]]] = set()
            while True:
                while len(running) < self.settings.workers and not self.now.is_complete(self.settings):
                    place = next(left, None)
                    if place is None:
                        break
                    running.add(
                        pool.submit(play, place, len(self.now.injectors) >= self.settings.injector_episodes)
                    )
                if not running:
                    break
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    try:
                        attempt, episodes = future.result()
                    except SandboxUnavailable as failure:
                        failures += 1
                        self.progress(f"executed: the machine failed, nothing of it is kept: {failure}")
                        if failures >= FAILURES_IN_A_ROW:
                            raise
                        continue
                    failures = 0
                    self.keep(attempt, episodes)
        self.tell()
        if not self.now.is_complete(self.settings):
            self.progress("executed: every mutation was played; the numbers asked for were not reached")
        return self.now

    @property
    def now(self) -> Collection:
        return Collection(self.known.folder, tuple(sorted(self.attempts, key=lambda attempt: attempt.number)))

    def keep(self, attempt: Attempt, episodes: Sequence[Episode]) -> None:
        """Episodes first, then the row that names them: a kill between the two leaves files that nothing counts."""
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
        if time.monotonic() - self.told >= PROGRESS_EVERY_S:
            self.tell()

    def tell(self) -> None:
        self.told = time.monotonic()
        now, settings = self.now, self.settings
        new = len(self.attempts) - len(self.known.attempts)
        each = (self.told - self.started) / max(new, 1)
        shares = [
            (settings.injector_episodes - len(now.injectors), len(now.injectors) - len(self.known.injectors)),
            (settings.solver_episodes - len(now.solvers), len(now.solvers) - len(self.known.solvers)),
        ]
        left_s = max(missing * (self.told - self.started) / max(made, 1) for missing, made in shares)
        outcomes = Counter(attempt.outcome for attempt in self.attempts)
        told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        self.progress(
            f"executed: {len(now.injectors)} of {settings.injector_episodes} injector and {len(now.solvers)} of "
            f"{settings.solver_episodes} solver episodes ({told}), {each:.1f} s a mutation, about {max(left_s, 0) / 60:.0f} min left"
        )
