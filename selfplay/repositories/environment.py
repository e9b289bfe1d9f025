"""An admitted environment: a repository, its installed dependencies, and what its tests do there.

Building and admitting one is the job of `build`.

Imports the modules of its fields for type checkers only: nearly every package imports this one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.repositories.scripts import command_script, records_ids, standard_script
from selfplay.sandbox.base import Limits, Sandbox, SandboxBackend, SandboxSpec
from selfplay.sandbox.workspace import fill_workspace
from selfplay.source.test_material import NO_MATERIAL, TestMaterial

if TYPE_CHECKING:
    from selfplay.outcomes import TestOutcomes
    from selfplay.repositories.checkouts import Checkout
    from selfplay.repositories.targets import Calls, Function, Target
    from selfplay.source.trees import Tree

SCHEMA = 2  # of environments in the cache, their facts included; a new number builds all of them anew


@dataclass(frozen=True)
class Environment:
    """A repository whose tests run.

    key           hash of everything that decides the environment
    reference     the backend's name for the installed dependencies: a folder or an image
    script        runs all tests; prints the log that `parser` reads
    baseline      the tests that pass on the original in every run
    excluded_ids  the ids of all other tests
    targets       functions that an injector can be pointed at
    calls         per test, passing or not: the functions of non-test code that it called on the original
    variables     of the shell in every sandbox
    options       of pytest, beyond those of the standard script
    notes         for people: which options and files of its tests do not run
    command       runs all tests if pytest cannot run them, else ""; with it there are no targets and no calls
    left_out      requirements of the tests that could not be installed
    material      what its tests rest on outside of their own files
    beside        paths of its image that each workspace gets as links (`sandbox.workspace`)
    hidden        paths that no sandbox shows: other releases of the repository, other copies of its source
    copied        its functions that stand in sight outside the workspace: no bug may change them
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
    options: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    material: TestMaterial = NO_MATERIAL
    hidden: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    copied: tuple[Function, ...] = ()

    def script_for(self, test_files: Sequence[str]) -> str:
        """The script that runs these test files only. A test command always runs all of its tests."""
        return command_script(self.command) if self.command else standard_script(test_files, self.options)

    def excluded_from(self, script: str) -> frozenset[str]:
        """The ids that count for nothing in runs of this script.

        A script without the recorder of ids, as in older artifacts, cannot tell where some ids end.
        """
        if not records_ids(self.options) or records_ids(script):
            return self.excluded_ids
        return self.excluded_ids.union(name for name in self.baseline.passed if " - " in name)

    def fixed_files(self, changed: Collection[str]) -> tuple[str, ...]:
        """The files that no repair of a bug in the files `changed` may change, beside those that
        `path_policy` knows by name: tests, what they rest on, and code that the bug has nothing to do with.
        """
        return (*self.test_files, *self.material.files, *self.material.unrelated(changed))


@contextmanager
def open_workspace(
    backend: SandboxBackend,
    environment: Environment,
    tree: Tree,
    labels: Mapping[str, str],
    limits: Limits | None = None,
    hash_seed: int = 0,
) -> Iterator[Sandbox]:
    """Open a fresh sandbox of `environment` with `tree` in the workspace.

    hash_seed: of Python, from 0 to 2**32 - 1, since a run of tests has one too.
    Raises what `SandboxBackend.open` raises.
    """
    spec = SandboxSpec(
        environment.reference,
        limits or Limits(),
        variables={**environment.variables, "PYTHONHASHSEED": str(hash_seed)},
        labels=labels,
        hidden=environment.hidden,
    )
    with backend.open(spec) as box:
        fill_workspace(box, tree, environment.beside)
        yield box
