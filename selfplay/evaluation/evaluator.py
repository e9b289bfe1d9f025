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
from pathlib import Path
from typing import Any, Literal

from selfplay.agent.chat import ChatFormat
from selfplay.agent.episode import Episode, FinishReason
from selfplay.agent.roles import EpisodePlace, play_solver, solver_task
from selfplay.config import Config
from selfplay.engines.base import Engine
from selfplay.errors import ArtifactError, PatchError, RunError, SandboxUnavailable, UsageError
from selfplay.evaluation.statistics import estimate, paired_difference, pass_at_k
from selfplay.evaluation.tasks import Task, bug_of, export_tasks, parse_task, read_tasks
from selfplay.repositories.environments import Environment
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import BugState, build_states

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

Mode = Literal["sampled", "greedy"]
MODES: tuple[Mode, ...] = ("sampled", "greedy")
MACHINE_RETRIES = 2
DIGESTED = (".safetensors", ".bin", ".json", ".jinja")  # of a policy's folder: what decides its words


@dataclass(frozen=True)
class AttemptResult:
    instance_id: str
    repo: str
    attempt: int
    passed: bool | None  # None: the machine failed
    reason: str
    finish: str
    turns: int
    tokens: int
    mode: Mode = "sampled"
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, Mode, int]:
        return self.instance_id, self.mode, self.attempt


# ---- the folder


@dataclass(frozen=True)
class TaskEntry:
    """What a folder knows of a task: whether another folder's task of this id is the same, and where it belongs in a table."""

    digest: str
    set: str = ""
    part: str = ""
    repository: str = ""


@dataclass(frozen=True)
class Identity:
    """What the attempts of one folder have in common. policy: whatever names its weights. settings: dotted key -> value."""

    policy: Mapping[str, Any]
    settings: Mapping[str, Any]
    tasks: Mapping[str, TaskEntry]

    @property
    def settings_digest(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {
            "policy": dict(self.policy),
            "settings_digest": self.settings_digest,
            "settings": dict(self.settings),
            "tasks": {name: asdict(entry) for name, entry in self.tasks.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Identity:
        return cls(
            data["policy"],
            data["settings"],
            {name: TaskEntry(**entry) for name, entry in data["tasks"].items()},
        )


def identity_of(config: Config, policy: Mapping[str, Any], tasks: Iterable[Task]) -> Identity:
    """The settings that an attempt can depend on; how many run at a time is none of them."""
    whole = config.model_dump(mode="json")
    settings = {
        f"{name}.{key}": value
        for name in ("agent", "validator", "sandbox")
        for key, value in whole[name].items()
    }
    del (
        settings["sandbox.type"],
        settings["sandbox.ready"],
    )  # where and how early sandboxes open changes no result
    del settings["agent.redraws"]  # training's alone
    settings |= {
        "seed": config.seed,
        "solver.given": whole["solver"]["given"],
        "engine.type": config.engine.type,
    }
    if "suspects" in config.solver.given:
        settings["solver.max_suspects"] = config.solver.max_suspects
    entries = {
        task.instance_id: TaskEntry(task.digest, task.set, task.part, task.repository) for task in tasks
    }
    return Identity(policy, settings, entries)


def policy_identity(model: str, path: str) -> dict[str, Any]:
    """The policy as `policy.model` names it, and the digest of its files where it is a folder."""
    folder = Path(path)
    if not folder.is_dir():
        return {"model": model}
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.suffix in DIGESTED):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return {"model": model, "digest": digest.hexdigest()[:16]}


@dataclass(frozen=True)
class Folder:
    """`evaluation.json` (whose attempts), `results.jsonl` (one a line, as they finish), `episodes/`."""

    path: Path

    @property
    def identity_file(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def results_file(self) -> Path:
        return self.path / "results.jsonl"

    @property
    def episodes(self) -> Path:
        return self.path / "episodes"

    def identity(self) -> Identity | None:
        """None where there is none: a new folder, or one of an earlier version. Raises RunError when it cannot be read."""
        if not self.identity_file.is_file():
            return None
        try:
            return Identity.from_json(json.loads(self.identity_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.identity_file} cannot be read as an evaluation: {error!r}. Use another --output."
            ) from error

    def results(self) -> list[AttemptResult]:
        """What is finished, each attempt once; a line that a kill cut short is left out."""
        if not self.results_file.is_file():
            return []
        found: dict[tuple[str, Mode, int], AttemptResult] = {}
        for line in self.results_file.read_text(encoding="utf-8").splitlines():
            try:
                result = AttemptResult(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found[result.key] = result
        return list(found.values())

    def check(self, identity: Identity) -> None:
        """Raises UsageError when the folder belongs to another evaluation. Changes nothing."""
        known = self.identity()
        if known is None and self.results():
            raise UsageError(
                f"{self.path} holds results without an evaluation.json, so whose they are is not known. "
                "They are untouched; give another --output."
            )
        if known is not None and (problem := _mismatch(known, identity)):
            raise UsageError(
                f"{self.path} holds another evaluation: {problem}. Its results are untouched; give another --output."
            )

    def begin(self, identity: Identity) -> None:
        """Make the folder, or continue it. Raises as `check` does."""
        self.check(identity)
        if not self.identity_file.is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            partial = self.identity_file.with_suffix(".partial")
            partial.write_text(json.dumps(identity.to_json(), indent=1) + "\n", encoding="utf-8")
            partial.rename(self.identity_file)
        if self.results_file.is_file():
            self._mend()

    def _mend(self) -> None:
        """End a last line that a kill cut short, so that the next one stands alone."""
        with self.results_file.open("rb+") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.write(b"\n")


def _mismatch(there: Identity, here: Identity) -> str:
    """What differs, in words; "" for nothing."""
    if dict(there.policy) != dict(here.policy):
        return f"of the policy {_policy_text(there.policy)}, not {_policy_text(here.policy)}"
    if differing := settings_difference(there, here):
        return f"with {differing}"
    ours, theirs = {n: e.digest for n, e in here.tasks.items()}, {n: e.digest for n, e in there.tasks.items()}
    if ours != theirs:
        changed = sum(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())
        return f"of other tasks ({len(theirs)} there, {len(ours)} now, {len(ours.keys() & theirs.keys()) - changed} of them the same)"
    return ""


def settings_difference(there: Identity, here: Identity) -> str:
    """`agent.max_turns = 10 there, 12 here`; "" for none."""
    keys = sorted(
        key for key in {*there.settings, *here.settings} if there.settings.get(key) != here.settings.get(key)
    )
    return ", ".join(
        f"{key} = {there.settings.get(key)!r} there and {here.settings.get(key)!r} here" for key in keys
    )


def _policy_text(policy: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in policy.items())


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
        place = EpisodePlace(self.config.seed, 0, attempt.group, attempt.number, self.labels)
        if (found := _written(folder, place)) is not None:
            return found
        how = {"redraws": 0} | ({"temperature": 0.0} if attempt.mode == "greedy" else {})
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


def _episode_id(place: EpisodePlace) -> str:
    """Unlike a task's id, a file's name; the digest keeps apart what becomes equal by that."""
    plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in place.group)[:120]
    return f"{plain}-{hashlib.sha256(place.group.encode()).hexdigest()[:6]}-m{place.member}"


def _written(folder: Folder, place: EpisodePlace) -> Episode | None:
    path = folder.episodes / f"{_episode_id(place)}.json.gz"
    if not path.is_file():
        return None
    try:
        return Episode.read(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        path.unlink()
        return None


# ---- figures


def rates_by_bug(results: Iterable[AttemptResult], mode: Mode) -> dict[str, list[bool]]:
    """The judged outcomes of each bug in one mode; a bug without any is left out."""
    outcomes: dict[str, list[bool]] = {}
    for result in results:
        if result.mode == mode and result.passed is not None:
            outcomes.setdefault(result.instance_id, []).append(result.passed)
    return outcomes


def groups_of(entries: Mapping[str, TaskEntry]) -> dict[str, dict[str, list[str]]]:
    """{"sets": {set or set/part: ids}, "repositories": {name: ids}}; a single one of either is all of the tasks."""
    sets: dict[str, list[str]] = {}
    repositories: dict[str, list[str]] = {}
    for name, entry in sorted(entries.items()):
        sets.setdefault(f"{entry.set}/{entry.part}" if entry.part else entry.set, []).append(name)
        repositories.setdefault(entry.repository, []).append(name)
    return {"sets": dict(sorted(sets.items())), "repositories": dict(sorted(repositories.items()))}


def entries_of(folder: Folder) -> dict[str, TaskEntry]:
    """What the folder's evaluation.json says of its tasks; for an older folder, what its results say."""
    identity = folder.identity()
    if identity is not None:
        return dict(identity.tasks)
    return {result.instance_id: TaskEntry("", repository=result.repo) for result in folder.results()}


def summarise(results: Sequence[AttemptResult], entries: Mapping[str, TaskEntry], k: int) -> dict[str, Any]:
    """Per mode: pass@1 with its standard error clustered by bug, pass@k and means, over all, per set and per repository."""
    summary: dict[str, Any] = {
        "k": k,
        "spoiled_by_the_machine": sum(result.passed is None for result in results),
    }
    for mode in MODES:
        judged = [result for result in results if result.mode == mode and result.passed is not None]
        if not judged:
            continue
        found: dict[str, Any] = {"all": _figures(judged, mode, k)}
        for kind, groups in groups_of(entries).items():
            found[kind] = {}
            for name, ids in groups.items():
                members = set(ids)
                if some := [result for result in judged if result.instance_id in members]:
                    found[kind][name] = _figures(some, mode, k)
        summary[mode] = found
    return summary


def _figures(judged: Sequence[AttemptResult], mode: Mode, k: int) -> dict[str, Any]:
    outcomes = list(rates_by_bug(judged, mode).values())
    rate = estimate([sum(some) / len(some) for some in outcomes])
    figures: dict[str, Any] = {
        "tasks": rate.count,
        "attempts": len(judged),
        "pass@1": rate.mean,
        "standard_error": rate.error,
        "turns": sum(result.turns for result in judged) / len(judged),
        "tokens": sum(result.tokens for result in judged) / len(judged),
        "seconds": sum(result.seconds for result in judged) / len(judged),
    }
    if mode == "sampled" and k > 1:
        figures[f"pass@{k}"] = sum(pass_at_k(len(o), sum(o), min(k, len(o))) for o in outcomes) / len(
            outcomes
        )
    return figures


# ---- two policies


def compare(first: Folder, second: Folder) -> dict[str, Any]:
    """Paired differences, second minus first, over the bugs that both have attempts at; per mode over all, per set and repository.

    Raises UsageError when a folder holds no results, when no bug is in both, or when one id names two different bugs.
    """
    for folder in (first, second):
        if not folder.path.is_dir():
            raise UsageError(
                f"there is no folder {folder.path}. `selfplay eval --tasks … --output {folder.path}` makes one."
            )
        if not folder.results():
            raise UsageError(
                f"{folder.path} holds no finished attempt (results.jsonl). `selfplay eval --output {folder.path}` plays some."
            )
    entries, others = entries_of(first), entries_of(second)
    both = entries.keys() & others.keys()
    if not both:
        raise UsageError(
            f"{first.path} and {second.path} have no task in common, so there is nothing to compare."
        )
    if unlike := sorted(
        n for n in both if entries[n].digest and others[n].digest and entries[n].digest != others[n].digest
    ):
        raise UsageError(
            f"{len(unlike)} task(s) of {first.path} and {second.path} share an id and are different bugs, {unlike[0]!r} for one; "
            "evaluate both policies on one file."
        )
    there, here = first.identity(), second.identity()
    comparison: dict[str, Any] = {
        "first": {"folder": str(first.path), "policy": dict(there.policy) if there else {}},
        "second": {"folder": str(second.path), "policy": dict(here.policy) if here else {}},
        "left_out": len(entries.keys() ^ others.keys()),
        "settings": settings_difference(there, here) if there and here else "",
    }
    shared = {name: entries[name] for name in both}
    for mode in MODES:
        a, b = rates_by_bug(first.results(), mode), rates_by_bug(second.results(), mode)
        if found := _paired(a, b, list(shared)):
            comparison[mode] = {"all": found}
            for kind, groups in groups_of(shared).items():
                pairs = {name: _paired(a, b, ids) for name, ids in groups.items()}
                comparison[mode][kind] = {name: pair for name, pair in pairs.items() if pair}
    if not any(mode in comparison for mode in MODES):
        raise UsageError(
            f"{first.path} and {second.path} have no bug with attempts of one kind in both, so there is nothing to compare."
        )
    temperature = float((here or there or Identity({}, {}, {})).settings.get("agent.temperature", 1.0))
    comparison["temperature"] = temperature
    comparison["verdict"] = verdict_of(
        _direction(comparison, "sampled"), _direction(comparison, "greedy"), temperature
    )
    return comparison


def _paired(
    a: Mapping[str, Sequence[bool]], b: Mapping[str, Sequence[bool]], ids: Sequence[str]
) -> dict[str, Any]:
    """The figures of one row; {} where no bug has attempts in both."""
    both = sorted(name for name in ids if name in a and name in b)
    if not both:
        return {}
    before, after = (
        [sum(a[name]) / len(a[name]) for name in both],
        [sum(b[name]) / len(b[name]) for name in both],
    )
    difference = paired_difference(before, after)
    first, second = estimate(before), estimate(after)
    return {
        "first": {"pass@1": first.mean, "standard_error": first.error},
        "second": {"pass@1": second.mean, "standard_error": second.error},
        **asdict(difference),
        "direction": difference.direction,
    }


def _direction(comparison: Mapping[str, Any], mode: Mode) -> int | None:
    return int(comparison[mode]["all"]["direction"]) if mode in comparison else None


def verdict_of(sampled: int | None, greedy: int | None, temperature: float = 1.0) -> str:
    """The comparison in a sentence. 1 better, -1 worse, 0 no difference shown, None not measured."""
    words = {1: "better", -1: "worse", 0: "no difference shown", None: "not measured"}
    drawn = f"at T = {temperature:g}"
    if not sampled and not greedy:
        return "no difference shown."
    if sampled == greedy:
        return f"{words[sampled]}: {drawn} and greedily."
    if (sampled, greedy) == (1, 0):
        return (
            f"sharpening: better {drawn}, no difference shown greedily. The policy draws repairs that it knew more often; "
            "that it knows better ones is not shown."
        )
    if (sampled, greedy) == (1, None):
        return f"better {drawn}; greedily not measured, so this may be no more than sharpening."
    if sampled and greedy:
        return f"mixed: {words[sampled]} {drawn}, {words[greedy]} greedily."
    return f"{words[sampled]} {drawn}, {words[greedy]} greedily."
