"""How many repositories of a list are admitted without hints, and what preparing them costs.

    python -m benchmarks.repositories [--list FILE] [--jobs 2] [--sandbox bubblewrap] [--json]

It prepares each repository of the list, as `selfplay train` does, and prints a row when it is done: admitted
or the reason, seconds, tests, covered functions, and how many notes name files that were left out. A second
call finds all environments in the cache. SELFPLAY_CACHE=FOLDER chooses an empty cache for a first one.

The last lines have the admitted share, the seconds that all took together and their sum, whose ratio is what
the jobs gain, and the load of the machine. A refusal is kept as an environment is, so a second call takes
seconds. benchmarks/repositories.txt has 60 well-known packages; its comments say how they were chosen.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.options import at_least_one
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import Config
from selfplay.errors import EnvironmentBuildError, RepositoryError
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import RepositorySpec, read_repository_list
from selfplay.runtime.cores import usable_cores
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.viewing.tables import Column, Listing

LIST = Path(__file__).with_name("repositories.txt")
COLUMNS = (
    Column("repository", least=16),
    Column("admitted", right=True),
    Column("seconds", right=True),
    Column("tests", rank=1, right=True),
    Column("functions", rank=2, right=True),
    Column("notes", rank=3, right=True),
    Column("reason", least=20),
)


@dataclass(frozen=True)
class Prepared:
    """How the preparation of a repository ended.

    reason     "" if it was admitted
    functions  covered functions of its code
    notes      lines on what its tree or its tests leave out
    """

    repository: str
    reason: str
    seconds: float
    tests: int = 0
    functions: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_admitted(self) -> bool:
        return not self.reason

    def row(self) -> dict[str, str]:
        return {
            "repository": self.repository,
            "admitted": "yes" if self.is_admitted else "no",
            "seconds": f"{self.seconds:.1f}",
            "tests": str(self.tests),
            "functions": str(self.functions),
            "notes": str(len(self.notes)),
            "reason": self.reason.partition("\n")[0],
        }


def prepared(spec: RepositorySpec, backend: SandboxBackend, config: Config) -> Prepared:
    """Fetch and build one repository. Its faults become the reason; those of the machine are raised."""
    began = time.monotonic()
    notes: tuple[str, ...] = ()
    try:
        checkout = fetch(spec, cache_root())
        notes = checkout.notes
        found = prepare_environment(
            checkout, backend, config.environment, sandbox_limits(config), cache_root(), lambda _: None
        )
    except (RepositoryError, EnvironmentBuildError) as error:
        return Prepared(spec.name, str(error), time.monotonic() - began, notes=notes)
    seconds = time.monotonic() - began
    notes = (*notes, *found.notes, *found.left_out)
    return Prepared(spec.name, "", seconds, len(found.baseline.passed), len(found.targets), notes)


def prepare_all(
    specs: list[RepositorySpec], jobs: int, prepare: Callable[[RepositorySpec], Prepared], console: Console
) -> list[Prepared]:
    """All repositories in the order of the list, `jobs` at a time. Prints a line when one is done."""
    done = 0

    def shown(spec: RepositorySpec) -> Prepared:
        nonlocal done
        result = prepare(spec)
        done += 1
        mark = "✓" if result.is_admitted else "✗"
        why = f": {result.reason.partition(chr(10))[0]}" if result.reason else ""
        line = f"{done} of {len(specs)} {mark} {result.repository}, {result.seconds:.0f} s{why}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(shown, specs))


def main() -> None:
    options = argparse.ArgumentParser(description="Prepare each repository of a list without hints.")
    options.add_argument("--list", type=Path, default=LIST, help="a repository list")
    options.add_argument("--jobs", type=at_least_one, default=2, help="repositories at a time")
    options.add_argument("--sandbox", default="auto", help="docker, bubblewrap or auto")
    options.add_argument("--json", action="store_true", help="print data instead of a table")
    chosen = options.parse_args()
    specs, config = list(read_repository_list(chosen.list)), Config()
    backend, why = open_backend(chosen.sandbox)
    progress = Console(stderr=True)
    progress.print(f"{len(specs)} repositories, sandboxes: {why}", highlight=False)
    began = time.monotonic()
    results = prepare_all(specs, chosen.jobs, lambda spec: prepared(spec, backend, config), progress)
    passed_s = time.monotonic() - began
    if chosen.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
        return
    console = Console()
    console.print(Listing(COLUMNS, [result.row() for result in results]), highlight=False)
    admitted, all_s = sum(result.is_admitted for result in results), sum(result.seconds for result in results)
    console.print(f"{admitted} of {len(results)} admitted, {admitted / len(results):.0%}", highlight=False)
    ratio = f"{all_s / passed_s:.1f} times as fast as one after another"
    console.print(
        f"{passed_s:.0f} s with {chosen.jobs} job(s), {all_s:.0f} s in all: {ratio}; "
        f"{usable_cores()} cores, load {os.getloadavg()[2]:.1f} (mean of 15 minutes)",
        highlight=False,
    )


if __name__ == "__main__":
    main()
