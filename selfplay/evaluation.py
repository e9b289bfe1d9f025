"""Repair rate of a policy on task records: attempts in fresh sandboxes, graded like in training, summed with standard errors.

Reads SWE-bench shaped records (ours carry the artifact too). Invariant: an attempt that the machine spoiled counts nowhere.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from selfplay.artifact import Artifact
from selfplay.chat import ChatFormat, load_tokenizer, policy_path
from selfplay.config import load_config
from selfplay.curriculum.store import BugRow, Store
from selfplay.environments import Environment
from selfplay.episode import FinishReason
from selfplay.errors import ArtifactError, PatchError, RunError, SandboxUnavailable, UsageError
from selfplay.grading import grade
from selfplay.orchestrator.recovery import RunFolder
from selfplay.orchestrator.start import build_engine, prepare_all
from selfplay.patches import apply_patch, parse_patch, reverse_patch
from selfplay.repos import parse_spec
from selfplay.roles import EpisodePlace, SolverTask, play_solver, sandbox_limits
from selfplay.sandbox import open_backend
from selfplay.test_runs import TestRunner
from selfplay.validator import BugState

REQUIRED = ("instance_id", "repo", "patch", "test_patch", "FAIL_TO_PASS", "PASS_TO_PASS")


@dataclass(frozen=True)
class Task:
    """One bug to repair. `repo` is a line of a repository list; `injected` records carry the artifact that made the bug.

    A record without one has the SWE-bench meaning: `repo` names the buggy state, `patch` mends it, `test_patch` adds the tests.
    """

    instance_id: str
    repo: str
    patch: str
    test_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    artifact: Mapping[str, str]
    attempt_patch: str = ""
    failure: str = ""
    order: int = 1


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


def _test_ids(value: object) -> tuple[str, ...]:
    """A list of ids, or the JSON text of one."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("test ids are neither a list of texts nor the JSON of one")
    return tuple(value)


def parse_task(record: Mapping[str, Any]) -> Task:
    """Raises ValueError naming what the record lacks."""
    if missing := [key for key in REQUIRED if key not in record]:
        raise ValueError(f"lacks {', '.join(missing)}")
    extra = record.get("selfplay") or {}
    return Task(
        instance_id=str(record["instance_id"]),
        repo=str(record["repo"]),
        patch=str(record["patch"]),
        test_patch=str(record["test_patch"]),
        fail_to_pass=_test_ids(record["FAIL_TO_PASS"]),
        pass_to_pass=_test_ids(record["PASS_TO_PASS"]),
        artifact=extra.get("artifact") or {},
        attempt_patch=extra.get("attempt_patch") or "",
        failure=extra.get("failure") or "",
        order=int(extra.get("order") or 1),
    )


def read_tasks(path: Path) -> list[Task]:
    """All tasks of a JSONL file. Raises UsageError that lists every bad line with its number."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the tasks {path}: {error}. `selfplay inspect-bugs --tasks FILE` writes some.") from error
    tasks: list[Task] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task = parse_task(json.loads(line))
            parse_spec(task.repo)
            if task.instance_id in {known.instance_id for known in tasks}:
                raise ValueError(f"repeats the instance_id {task.instance_id!r}")
            tasks.append(task)
        except (ValueError, TypeError, AttributeError, UsageError) as error:
            problems.append(f"  line {number}: {error}")
    if problems:
        raise UsageError(f"{path}: {len(problems)} unusable task record(s), nothing was started:\n" + "\n".join(problems))
    if not tasks:
        raise UsageError(f"{path} holds no task. `selfplay inspect-bugs --tasks FILE` writes some.")
    return tasks


def export_tasks(store: Store, bugs: Sequence[BugRow], run: RunFolder, path: Path) -> int:
    """Write `bugs` as task records, `repo` being the line of the run's repository list that names it."""
    lines = run.repositories_file.read_text(encoding="utf-8").splitlines()
    specs = {parse_spec(line).name: line for line in lines if line.strip()}
    with path.open("w", encoding="utf-8") as file:
        for bug in bugs:
            record = store.task_record(bug)
            record["repo"] = specs.get(bug.repository, bug.repository)
            record["selfplay"] = {
                "artifact": dict(bug.artifact),
                "attempt_patch": bug.attempt_patch,
                "failure": bug.failure,
                "order": bug.order,
            }
            file.write(json.dumps(record) + "\n")
    return len(bugs)


def bug_of(task: Task, environment: Environment) -> tuple[Environment, BugState]:
    """The environment with the task's original (mended) tree, and the bug as the solver meets it.

    Raises PatchError or ArtifactError when the record's patches do not fit the repository.
    """
    if task.artifact:
        return environment, BugState(
            Artifact.from_files(task.artifact), task.order, task.attempt_patch, task.fail_to_pass, task.pass_to_pass
        )
    from dataclasses import replace

    original = apply_patch(apply_patch(environment.tree, task.patch), task.test_patch)
    touched = tuple(path for path in parse_patch(task.test_patch, 1 << 20).changed_paths if path in original)
    files = {
        "bug_inject.diff": reverse_patch(task.patch),
        "test_weaken.diff": reverse_patch(task.test_patch),
        "test_files.txt": "".join(f"{path}\n" for path in touched),
        "test_script.sh": environment.script_for(touched),
        "test_parser.py": environment.parser,
    }
    state = BugState(Artifact.from_files(files), 1, "", task.fail_to_pass, task.pass_to_pass)
    return replace(environment, tree=original), state


def evaluate_file(
    path: Path, config_file: Path | None, overrides: Sequence[str], attempts: int, output: Path | None, as_json: bool
) -> dict[str, Any]:
    """`selfplay eval`: plays what `output` does not hold yet, prints the table (or JSON) and returns the figures."""
    config = load_config(config_file, overrides)
    tasks = read_tasks(path)
    model = policy_path(config.policy.model)
    backend, why = open_backend(config.sandbox.type)
    console = Console(stderr=as_json)
    console.print(f"{len(tasks)} task(s), {attempts} attempt(s) each; sandboxes: {why}", highlight=False)
    limits = sandbox_limits(config)
    specs = {task.repo: parse_spec(task.repo) for task in tasks}
    environments = prepare_all(list(specs.values()), backend, config, limits, console)
    by_repo = {repo: environments[spec.name] for repo, spec in specs.items() if spec.name in environments}
    results: list[AttemptResult] = []
    with tempfile.TemporaryDirectory(prefix="selfplay-eval-") as scratch:
        folder = output or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        results_file = folder / "results.jsonl"
        results += _finished(results_file)
        done = {(result.instance_id, result.attempt) for result in results}
        labels = {"run": "eval", "owner": str(os.getpid())}
        engine = build_engine(config, str(model), environments)
        chat = ChatFormat(load_tokenizer(str(model)))
        chat.check()
        runner = TestRunner(backend, config.validator, limits, labels)

        def attempt_one(task: Task, number: int) -> AttemptResult:
            try:
                environment, bug = bug_of(task, by_repo[task.repo])
                place = EpisodePlace(config.seed, 0, task.instance_id, number, labels)
                solver_task = SolverTask(environment, task.instance_id, bug, task.failure)
                episode = play_solver(solver_task, place, engine, chat, backend, config, limits)
                episode.write(folder / "episodes")
                if episode.finish is FinishReason.ENV_ERROR:
                    return _spoiled(task, number, episode.error)
                verdict = grade(bug, episode.submission.get("patch", ""), environment, runner)
                passed = verdict.passed and verdict.confirmed is not False
                size = (len(episode.turns), episode.action_tokens)
                return AttemptResult(task.instance_id, task.repo, number, passed, verdict.reason, episode.finish.value, *size)
            except SandboxUnavailable as failure:
                return _spoiled(task, number, str(failure))
            except (PatchError, ArtifactError) as error:
                raise RunError(f"task {task.instance_id} does not fit {task.repo}: {error}") from error

        todo = [(task, n) for n in range(attempts) for task in tasks if task.repo in by_repo and (task.instance_id, n) not in done]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        try:
            with (
                results_file.open("a", encoding="utf-8") as file,
                Progress(*columns, console=console) as progress,
                ThreadPoolExecutor(min(config.train.episodes_in_flight, max(1, len(todo)))) as pool,
            ):
                bar = progress.add_task("attempts", total=len(todo))
                for result in pool.map(lambda pair: attempt_one(*pair), todo):
                    results.append(result)
                    if result.passed is not None:
                        file.write(json.dumps(asdict(result)) + "\n")
                        file.flush()
                    progress.advance(bar)
        finally:
            engine.close()
    figures = summarise(results, attempts)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _print(figures, console, output)
    return figures


def _spoiled(task: Task, number: int, reason: str) -> AttemptResult:
    return AttemptResult(task.instance_id, task.repo, number, None, reason, FinishReason.ENV_ERROR.value, 0, 0)


def _finished(path: Path) -> list[AttemptResult]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(AttemptResult(**json.loads(line)))
        except (ValueError, TypeError):
            continue  # the torn last line of a killed evaluation
    return rows


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k from c passes in n attempts, 1 - C(n-c, k)/C(n, k) (Chen et al. 2021, arXiv 2107.03374)."""
    return 1.0 if n - c < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def clustered(rates: Sequence[float]) -> tuple[float, float]:
    """Mean of per-task rates and its standard error, tasks being the clusters; the error of one task is unknown (nan)."""
    mean = sum(rates) / len(rates)
    if len(rates) < 2:
        return mean, math.nan
    variance = sum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1)
    return mean, math.sqrt(variance / len(rates))


def summarise(results: Iterable[AttemptResult], k: int) -> dict[str, Any]:
    """pass@1 with its clustered standard error and pass@k, over all tasks and per repository."""
    by_task: dict[tuple[str, str], list[bool]] = {}
    spoiled = 0
    for result in results:
        outcomes = by_task.setdefault((result.repo, result.instance_id), [])
        if result.passed is None:
            spoiled += 1
        else:
            outcomes.append(result.passed)
    judged = {key: outcomes for key, outcomes in by_task.items() if outcomes}

    def figures(tasks: Sequence[list[bool]]) -> dict[str, Any]:
        mean, error = clustered([sum(outcomes) / len(outcomes) for outcomes in tasks])
        at_k = [pass_at_k(len(o), sum(o), min(k, len(o))) for o in tasks]
        return {
            "tasks": len(tasks),
            "attempts": sum(map(len, tasks)),
            "pass@1": mean,
            "standard_error": None if math.isnan(error) else error,
            f"pass@{k}": sum(at_k) / len(at_k),
        }

    repositories = sorted({repo for repo, _ in judged})
    return {
        "all": figures(list(judged.values())) if judged else {"tasks": 0, "attempts": 0},
        "repositories": {repo: figures([o for (r, _), o in judged.items() if r == repo]) for repo in repositories},
        "spoiled_by_the_machine": spoiled,
        "k": k,
    }


def _print(figures: dict[str, Any], console: Console, output: Path | None) -> None:
    k = figures["k"]
    table = Table(title="Repair rate")
    for name in ("repository", "tasks", "attempts", "pass@1", f"pass@{k}"):
        table.add_column(name, justify="left" if name == "repository" else "right")
    for name, row in [*figures["repositories"].items(), ("all", figures["all"])]:
        if row["tasks"]:
            error = row["standard_error"]
            rate = f"{row['pass@1']:.1%}" + (f" ± {error:.1%}" if error is not None else "")
            table.add_row(name, str(row["tasks"]), str(row["attempts"]), rate, f"{row[f'pass@{k}']:.1%}")
    console.print(table)
    console.print("± is one standard error, clustered by task.")
    if figures["spoiled_by_the_machine"]:
        console.print(f"{figures['spoiled_by_the_machine']} attempt(s) were spoiled by the machine and count nowhere.")
    if output is not None:
        console.print(f"Episodes and results are in {output}; the same command continues there.")
