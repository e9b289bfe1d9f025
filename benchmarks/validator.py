"""The cost of a verdict on about fifty real artifacts, compared with a straightforward validator, in one run.

    python -m benchmarks.validator [--sandbox docker bubblewrap] [--valid 36] [--invalid 16] [--json]

The reference makes all runs one after another, each in a new Docker container, and remembers no result. It
keeps the validator's order of checks, cheap ones first. So the ratio shows the effect of remembered results,
parallel runs and faster sandboxes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from unittest.mock import patch as replaced

from rich.console import Console
from rich.table import Table

from benchmarks.options import at_least_one
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import Config, load_config
from selfplay.evaluation.tasks import Task, find_tasks
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.runtime.resources import resource
from selfplay.sandbox import open_backend
from selfplay.source.apply import apply_parsed, diff_trees
from selfplay.source.diffs import parse_patch
from selfplay.source.path_policy import is_protected_path
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts import validator
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import MAX_STORED_PATCH
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.noise.passes import with_noise
from selfplay.verdicts.test_runs import ParsedLog, TestRun, TestRunner
from selfplay.verdicts.validator import validate
from selfplay.verdicts.verdict import Verdict

THRESHOLDS = Thresholds(3, 1, 1)  # the frozen set's own
PARTS = {
    "open_s": "starting sandboxes",
    "transfer_s": "moving files",
    "script_s": "the script (tests)",
    "parser_s": "the parser",
}
Cell = tuple[str, str, tuple[str, ...], tuple[str, ...]]  # the parts in which two verdicts must agree


class WatchedRunner(TestRunner):
    """Adds up the time of runs by part. Runs whose result was known do not count."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.spent: Counter[str] = Counter()
        self.count = 0

    def run(
        self,
        environment: Environment,
        tree: Tree,
        script: str,
        parser: str,
        number: int = 0,
        hash_seed: int | None = None,
    ) -> TestRun:
        run = super().run(environment, tree, script, parser, number, hash_seed)
        if not run.cached:
            self.count += 1
            self.spent.update(asdict(run.timings))
        return run


class StraightRunner(WatchedRunner):
    """A runner that remembers no result."""

    def run(
        self,
        environment: Environment,
        tree: Tree,
        script: str,
        parser: str,
        number: int = 0,
        hash_seed: int | None = None,
    ) -> TestRun:
        with_noise.cache_clear()
        seed = self.secret.hash_seed(tree.digest, str(number)) if hash_seed is None else hash_seed
        return super().run(environment, tree, script, parser, number, seed)

    def parse(self, environment: Environment, parser: str, log: bytes) -> ParsedLog:
        return self._parse_twice(parser, log)


@dataclass(frozen=True)
class Case:
    """An artifact. repo: the repository's specification. fault: a key of FAULTS, "" for a valid artifact."""

    name: str
    repo: str
    artifact: Artifact
    fault: str = ""


@dataclass(frozen=True)
class Measured:
    """The measurement of one validator. core_hours: wall clock times the machine's cores."""

    name: str
    sandbox: str
    seconds: float
    runs: int
    spent: Mapping[str, float]
    verdicts: Mapping[str, Cell]

    @property
    def core_hours(self) -> float:
        return self.seconds * (os.cpu_count() or 1) / 3600


# ---- artifacts


def _commented(tree: Tree, path: str) -> Tree:
    return tree.replace({path: FileEntry(tree[path].content + b"\n# nothing\n", tree[path].executable)})


def _unnoticed(tree: Tree, artifact: Artifact) -> Artifact:
    path = parse_patch(artifact.bug_inject, MAX_STORED_PATCH).changed_paths[0]
    return _with(artifact, bug_inject=diff_trees(tree, _commented(tree, path)))


def _padded(tree: Tree, artifact: Artifact) -> Artifact:
    """The bug with a change in another file that has no effect."""
    bug = parse_patch(artifact.bug_inject, MAX_STORED_PATCH)
    beside = (path for path in sorted(tree) if path.endswith(".py") and not is_protected_path(path, tree))
    other = next(path for path in beside if path not in bug.changed_paths)
    return _with(artifact, bug_inject=diff_trees(tree, _commented(apply_parsed(tree, bug), other)))


def _with(artifact: Artifact, **parts: str) -> Artifact:
    files = {
        f"{name}.{'diff' if name in ('bug_inject', 'test_weaken') else 'sh'}": text
        for name, text in parts.items()
    }
    return Artifact.from_files({**artifact.to_files(), **files})


FAULTS: Mapping[str, Callable[[Tree, Artifact], Artifact]] = {
    "breaks nothing": _unnoticed,
    "padded": _padded,
    "hides nothing": lambda _, artifact: _with(artifact, test_weaken=""),
    "no tests run": lambda _, artifact: _with(artifact, test_script="exit 1\n"),
}


def _of_today(environment: Environment, task: Task) -> Artifact:
    """A frozen bug with the script and the parser that injectors are given today."""
    artifact = Artifact.from_files(task.artifact)
    today = {
        "test_script.sh": environment.script_for(artifact.test_files),
        "test_parser.py": environment.parser,
    }
    return Artifact.from_files({**artifact.to_files(), **today})


def cases(
    environments: Mapping[str, Environment], tasks: Sequence[Task], valid: int, invalid: int
) -> Iterator[Case]:
    """`valid` frozen bugs, then `invalid` other ones with one fault each. Repositories take turns."""
    by_repo = [[task for task in tasks if task.repo == repo] for repo in environments]
    mixed = [task for turn in itertools.zip_longest(*by_repo) for task in turn if task is not None]
    for task in mixed[:valid]:
        yield Case(task.instance_id, task.repo, _of_today(environments[task.repo], task))
    for task, (fault, make) in zip(
        reversed(mixed), itertools.islice(itertools.cycle(FAULTS.items()), invalid), strict=False
    ):
        yield Case(
            f"{task.instance_id} {fault}",
            task.repo,
            make(environments[task.repo].tree, _of_today(environments[task.repo], task)),
            fault,
        )


# ---- measuring


def prepared(config: Config, repositories: Sequence[str], sandbox: str) -> dict[str, Environment]:
    backend = open_backend(sandbox, cache_root())[0]
    return {
        repo: prepare_environment(
            fetch(parse_spec(repo), cache_root()),
            backend,
            config.environment,
            sandbox_limits(config),
            cache_root(),
            lambda _: None,
        )
        for repo in repositories
    }


def measure(
    config: Config,
    sandbox: str,
    tasks: Sequence[Task],
    valid: int,
    invalid: int,
    *,
    straight: bool,
    console: Console,
) -> Measured:
    repositories = sorted({task.repo for task in tasks})
    environments = prepared(config, repositories, sandbox)
    chosen = list(cases(environments, tasks, valid, invalid))
    runner = (StraightRunner if straight else WatchedRunner)(
        open_backend(sandbox, cache_root())[0], config.validator, sandbox_limits(config), {"run": "bench"}
    )
    workers = 1 if straight else os.cpu_count() or 1
    name = "straightforward" if straight else "selfplay"
    started = time.monotonic()

    def judged(case: Case) -> tuple[str, Cell]:
        verdict: Verdict = validate(
            case.artifact, environments[case.repo], THRESHOLDS, runner, config.validator
        )
        return case.name, (verdict.kind, verdict.failed_check, verdict.fail_to_pass, verdict.pass_to_pass)

    with (
        replaced.object(validator, "PARALLEL_RUNS", 1 if straight else validator.PARALLEL_RUNS),
        console.status(f"{name}, {sandbox}: {len(chosen)} artifacts"),
        ThreadPoolExecutor(workers) as pool,
    ):
        verdicts = dict(pool.map(judged, chosen))
    return Measured(name, sandbox, time.monotonic() - started, runner.count, dict(runner.spent), verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sandbox", nargs="+", default=["docker", "bubblewrap"], choices=["docker", "bubblewrap"]
    )
    parser.add_argument(
        "--reference",
        default="docker",
        choices=["docker", "bubblewrap"],
        help="sandboxes of the straightforward validator",
    )
    parser.add_argument("--valid", type=at_least_one, default=36)
    parser.add_argument("--invalid", type=at_least_one, default=16)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    config = load_config(resource("recipes") / "learning.toml")
    listed = [
        line.split("#")[0].strip()
        for line in (resource("recipes") / "quickstart-repos.txt").read_text().splitlines()
    ]
    tasks = [task for task in find_tasks(["own"]) if task.repo in listed]
    counts = (options.valid, options.invalid)
    measured = [
        measure(config, sandbox, tasks, *counts, straight=False, console=console)
        for sandbox in options.sandbox
    ]
    reference = measure(config, options.reference, tasks, *counts, straight=True, console=console)
    unequal = {
        name: (found.verdicts[name], verdict)
        for found in measured
        for name, verdict in reference.verdicts.items()
        if found.verdicts[name] != verdict
    }
    if options.json:
        rows = [
            {
                "name": m.name,
                "sandbox": m.sandbox,
                "seconds": m.seconds,
                "runs": m.runs,
                **m.spent,
                "ratio": reference.seconds / m.seconds,
            }
            for m in [*measured, reference]
        ]
        print(json.dumps({"artifacts": len(reference.verdicts), "unequal": len(unequal), "contenders": rows}))
    else:
        show(measured, reference, console)
        for name, (ours, theirs) in unequal.items():
            console.print(f"[red]verdicts differ[/] on {name}: {ours[:2]} against {theirs[:2]}")
    raise SystemExit(1 if unequal else 0)


def show(measured: Sequence[Measured], reference: Measured, console: Console) -> None:
    accepted = sum(kind == "accepted" for kind, *_ in reference.verdicts.values())
    table = Table(title=f"{len(reference.verdicts)} artifacts, {accepted} accepted, {os.cpu_count()} cores")
    for column in ("", "sandbox", "runs", "seconds", "a core-hour", "times faster"):
        table.add_column(column, justify="left" if column in ("", "sandbox") else "right")
    for found in [*measured, reference]:
        rate = f"{len(found.verdicts) / found.core_hours:.0f}"
        table.add_row(
            found.name,
            found.sandbox,
            str(found.runs),
            f"{found.seconds:.1f}",
            rate,
            f"{reference.seconds / found.seconds:.2f}",
        )
    console.print(table)
    spent = Table(title="seconds of a run (runs may overlap)")
    spent.add_column("")
    for found in [*measured, reference]:
        spent.add_column(f"{found.name}, {found.sandbox}", justify="right")
    for part, words in PARTS.items():
        spent.add_row(
            words, *(f"{found.spent[part] / max(1, found.runs):.3f}" for found in [*measured, reference])
        )
    console.print(spent)
    failed = Counter(check for _, check, *_ in reference.verdicts.values() if check)
    console.print("rejected by: " + ", ".join(f"{check} {count}" for check, count in failed.most_common()))


if __name__ == "__main__":
    main()
