"""An admitted environment: a repository with everything that its tests need. Building it is left to `build`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from selfplay.outcomes import TestOutcomes
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.targets import (
    Calls,
    Target,
)
from selfplay.runtime.resources import resource
from selfplay.sandbox.base import WORKSPACE, Limits, Sandbox, SandboxBackend, SandboxSpec
from selfplay.source.trees import Tree

PYTEST = "pytest==9.2.0"


@dataclass(frozen=True)
class Environment:
    """A repository that runs. `baseline` holds the tests that pass on the original every time; all others are in `excluded_ids`.

    `calls` is what each test that ran called on the original, whether it passed or not; of code that is no test.
    """

    key: str
    reference: str
    repository: str
    base_commit: str
    licence: str
    tree: Tree
    checkout: Checkout
    test_files: tuple[str, ...]
    script: str
    parser: str
    baseline: TestOutcomes
    excluded_ids: frozenset[str]
    targets: tuple[Target, ...]
    calls: Calls
    variables: Mapping[str, str]
    options: str = ""  # of pytest, beyond the standard script's own
    command: str = (
        ""  # that runs all of the tests, where pytest does not; then there are no targets and no calls
    )

    def script_for(self, test_files: Sequence[str]) -> str:
        """The standard script for these test files only; a test command runs as a whole."""
        return command_script(self.command) if self.command else standard_script(test_files, self.options)


@contextmanager
def open_workspace(
    backend: SandboxBackend,
    environment: Environment,
    tree: Tree,
    labels: Mapping[str, str],
    limits: Limits | None = None,
) -> Iterator[Sandbox]:
    """A fresh sandbox of `environment` with `tree` in the workspace. Raises as `SandboxBackend.open` does."""
    spec = SandboxSpec(
        environment.reference, limits or Limits(), variables=environment.variables, labels=labels
    )
    with backend.open(spec) as box:
        box.write_archive(WORKSPACE, tree.to_tar())
        yield box


def standard_script(test_files: Sequence[str], options: str = "") -> str:
    template = shipped_text("test_script.sh")
    files = " \\\n    ".join(shlex.quote(path) for path in test_files)
    return template.replace("@OPTIONS@", options).replace("@TEST_FILES@", files)


def command_script(command: str) -> str:
    return f"#!/bin/bash\n# Runs the repository's own test command; the exit status is its own.\ncd {WORKSPACE} || exit 2\n{command}\n"


def standard_parser() -> str:
    return shipped_text("test_parser.py")


def shipped_text(name: str) -> str:
    return (resource("data/pytest") / name).read_text(encoding="utf-8")
