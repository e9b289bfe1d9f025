"""Whether noise keeps what real code does: the outcomes of whole test suites, with and without it.

    python -m benchmarks.noise [--list FILE] [--noises 5] [--seed 0] [--output FILE]

It changes all code files of each repository of the list as the audit does, several times, and runs the whole
suite on each. A row has the number of files, tests, noises whose outcomes differ, and the tests that do.
Without --list it takes the repositories of the frozen sets.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.audit import QuickRunner, own_config, table
from benchmarks.options import at_least_one
from selfplay.agent.workspaces import sandbox_limits
from selfplay.errors import EnvironmentBuildError, RepositoryError
from selfplay.evaluation.tasks import find_tasks
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.source.path_policy import is_other_code, is_protected_path
from selfplay.verdicts.perturbation import perturb
from selfplay.verdicts.test_runs import TestRunner

TIMEOUT_S = 300.0  # of one run of a suite


@dataclass(frozen=True)
class Row:
    """What the noises did to one repository.

    growth: size of the changed files with noise, in parts of their size without, mean of the noises
    seconds: of a processor for one noise over all files, mean
    slower: time of the suite with noise, in parts of its time without, mean
    moved: of each noise whose outcomes differ, some tests that do, or why the run gave none
    """

    repository: str
    files: int
    kilobytes: int
    tests: int
    noises: int
    growth: float
    seconds: float
    slower: float
    moved: tuple[str, ...]


def code_files(environment: Environment) -> list[str]:
    """The files that the audit may change: code that is no test and does not steer the run."""
    tree = environment.tree
    return [
        path
        for path in sorted(tree)
        if (path.endswith(".py") or is_other_code(path))
        and path not in environment.test_files
        and not is_protected_path(path, tree)
    ]


def play(environment: Environment, runner: TestRunner, name: str, noises: int, seed: int) -> Row:
    tree, paths = environment.tree, code_files(environment)

    def size(some: object) -> int:
        return sum(len(some[path].content) for path in paths)  # type: ignore[index]

    first = runner.run(environment, tree, environment.script, environment.parser)
    moved, grown, spent, script_s = [], 0.0, 0.0, 0.0
    for number in range(seed + 1, seed + noises + 1):
        started = time.thread_time()
        changed = perturb(tree, paths, number)
        spent += time.thread_time() - started
        grown += size(changed) / max(size(tree), 1)
        run = runner.run(environment, changed, environment.script, environment.parser)
        script_s += run.timings.script_s
        different = sorted(first.outcomes.differing(run.outcomes))
        if run.error or different:
            moved.append(f"{number}: {run.error or ', '.join(different[:3])} ({len(different)})")
    return Row(
        name,
        len(paths),
        size(tree) // 1000,
        len(first.outcomes.ids),
        noises,
        round(grown / noises, 2),
        round(spent / noises, 2),
        round(script_s / noises / max(first.timings.script_s, 0.001), 2),
        tuple(moved),
    )


def environment_of(line: str, backend: SandboxBackend) -> Environment:
    config = own_config()
    checkout = fetch(parse_spec(line), cache_root())
    limits = sandbox_limits(config)
    return prepare_environment(checkout, backend, config.environment, limits, cache_root(), lambda _: None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", type=Path, help="a repository list; default: those of the frozen sets")
    parser.add_argument("--noises", type=at_least_one, default=5)
    parser.add_argument("--seed", type=int, default=0, help="the seeds begin after it")
    parser.add_argument("--output", type=Path, help="file of one JSON row for each repository")
    parser.add_argument("--sandbox", default="bubblewrap", choices=["auto", "docker", "bubblewrap"])
    options = parser.parse_args()
    lines = (
        [line for line in options.list.read_text("utf-8").splitlines() if line and line[0] != "#"]
        if options.list
        else list(dict.fromkeys(task.repo for task in find_tasks(["own", "human"])))
    )
    config, backend = own_config(), open_backend(options.sandbox, cache_root())[0]
    settings = config.validator.model_copy(update={"script_timeout_s": TIMEOUT_S})
    runner = QuickRunner(backend, settings, sandbox_limits(config), {"selfplay.run": "noise"})
    rows = []
    for line in lines:
        try:
            environment = environment_of(line, backend)
        except (EnvironmentBuildError, RepositoryError) as error:
            print(f"{line}: left out: {error}", flush=True)
            continue
        rows.append(play(environment, runner, line, options.noises, options.seed))
        print(rows[-1], flush=True)
        if options.output:
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(rows[-1])) + "\n")
    head = ["repository", "files", "kB", "tests", "noises", "moved", "growth", "s a noise", "slower"]
    body = [
        [str(cell) for cell in (r.repository, r.files, r.kilobytes, r.tests, r.noises, len(r.moved))]
        + [f"{cell:g}" for cell in (r.growth, r.seconds, r.slower)]
        for r in rows
    ]
    print(table([head, *body]))


if __name__ == "__main__":
    main()
