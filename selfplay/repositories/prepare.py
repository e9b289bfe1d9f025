"""Turns lines of a repository list into admitted environments, and prints a line on the console for each.

`fetching` fetches, `build` builds, `side_by_side` does several at a time. A repository that fails is left
out. On other machines of a cluster an `EnvironmentSource` says what is prepared.

Invariant: a run that has played on a repository never goes on without it; it stops instead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from selfplay.config import Config
from selfplay.errors import EnvironmentBuildError, RepositoryError, RunError, SelfplayError
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.side_by_side import in_order
from selfplay.repositories.specs import RepositorySpec, read_repository_list
from selfplay.sandbox.base import Limits, SandboxBackend


class EnvironmentRecords(Protocol):
    """Stores the environments of a run. The curriculum's store is one."""

    def has_played(self, repository: str) -> bool:
        """True if the run has groups on this repository."""

    def record_ready(self, environment: Environment) -> None: ...

    def record_failed(self, repository: str, reason: str, log_tail: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a preparation ended. notes: how the tree differs from the repository."""

    notes: tuple[str, ...]
    found: Environment | RepositoryError | EnvironmentBuildError


@dataclass(frozen=True)
class Preparer:
    """Prepares repositories. records: None to store nothing, as in evaluations and on hosts of a cluster."""

    backend: SandboxBackend
    config: Config
    limits: Limits
    console: Console
    records: EnvironmentRecords | None = None

    def prepare_all(self, specs: Sequence[RepositorySpec]) -> dict[str, Environment]:
        """Environments by repository name. Raises RunError if there is none."""
        prepared = zip(specs, self.prepare_each(specs), strict=True)
        found = {spec.name: environment for spec, environment in prepared if environment is not None}
        if not found:
            raise RunError(
                "no repository's tests run here, so there is nothing to play on. "
                "The reasons stand above; fix one, or list another."
            )
        return found

    def prepare_each(self, specs: Sequence[RepositorySpec]) -> list[Environment | None]:
        """Fetch and build repositories, as many at a time as there are cores.

        In the order of `specs`: the environment, or None if that fails. Then the reason is printed and
        recorded. Raises RunError if the run has played on it before.
        """
        with closing(in_order(specs, lambda spec: spec.name, self._outcome, self.console)) as outcomes:
            return [self._admitted(spec, outcome) for spec, outcome in zip(specs, outcomes, strict=True)]

    def _outcome(self, spec: RepositorySpec, report: Callable[[str], None]) -> Outcome:
        """Fetch and build one repository. Runs in a thread; prints and records nothing."""
        notes: tuple[str, ...] = ()
        report("fetching")
        try:
            checkout = fetch(spec, cache_root())
            notes = checkout.notes
            return Outcome(
                notes,
                prepare_environment(
                    checkout, self.backend, self.config.environment, self.limits, cache_root(), report
                ),
            )
        except (RepositoryError, EnvironmentBuildError) as error:
            return Outcome(notes, error)

    def _admitted(self, spec: RepositorySpec, outcome: Outcome) -> Environment | None:
        """Print and record how a preparation ended."""
        for note in outcome.notes:
            self.console.print(f"  {spec.name}: {note}", markup=False, highlight=False)
        found = outcome.found
        if isinstance(found, SelfplayError):
            self._leave_out(spec, found)
            return None
        self._show(found, spec.name)
        if self.records is not None:
            self.records.record_ready(found)
        return found

    def _leave_out(self, spec: RepositorySpec, error: SelfplayError) -> None:
        if self.records is not None and self.records.has_played(spec.name):
            raise RunError(
                f"this run has played on {spec.name}, which cannot be prepared now: {error}\n"
                "Fix that, then resume."
            ) from error
        self.console.print(f"[red]✗[/red] {spec.name}: left out.", highlight=False)
        self.console.print(str(error), markup=False, highlight=False)
        tail = getattr(error, "log_tail", "")
        if tail:
            self.console.print(tail, markup=False, highlight=False, style="dim")
        if self.records is not None:
            self.records.record_failed(spec.name, str(error), tail)

    def _show(self, environment: Environment, name: str) -> None:
        excluded = f", {len(environment.excluded_ids)} unstable left out" if environment.excluded_ids else ""
        licence = f", {environment.licence}" if environment.licence else ""
        self.console.print(
            f"[green]✓[/green] {name}: {len(environment.baseline.passed)} tests pass{excluded}, "
            f"{len(environment.targets)} covered functions{licence}",
            highlight=False,
        )
        for note in environment.notes:
            self.console.print(f"  {note}", markup=False, highlight=False)
        if environment.left_out:
            missing = f"not installed, so tests may miss it: {', '.join(environment.left_out)}"
            self.console.print(f"  {missing}", markup=False, highlight=False)
        if environment.command and "target" in self.config.injector.help:
            note = (
                "pytest does not run its tests, so it has no targets: "
                "no injector plays on it while injector.help names 'target'"
            )
            self.console.print(f"  {note}", markup=False, highlight=False)


# ---- on other machines


class EnvironmentSource(Protocol):
    """What the episode hosts of other machines prepare: a plain value that travels there."""

    def prepare(self, preparer: Preparer) -> Mapping[str, Environment]:
        """The environments, by the name that work for a host gives. Raises RunError if there is none."""
        ...


@dataclass(frozen=True)
class ListedRepositories:
    """Implements `EnvironmentSource`. lines: a repository list, with absolute paths."""

    lines: str

    def prepare(self, preparer: Preparer) -> Mapping[str, Environment]:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "repositories.txt"
            file.write_text(self.lines, encoding="utf-8")
            specs = read_repository_list(file)
        return preparer.prepare_all(specs)
