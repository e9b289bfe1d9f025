"""An admitted environment: a repository, its installed dependencies, and what its tests do there.

Building and admitting one is the job of `build`.

Imports the modules of its fields for type checkers only: nearly every package imports this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.repositories.scripts import command_script, records_ids, standard_script
from selfplay.sandbox.base import WORKSPACE, Limits, Sandbox, SandboxBackend, SandboxSpec

if TYPE_CHECKING:
    from selfplay.outcomes import TestOutcomes
    from selfplay.repositories.checkouts import Checkout
    from selfplay.repositories.targets import Calls, Target
    from selfplay.source.trees import Tree

BESIDE = "/opt/selfplay/beside"  # in the image of a record: what belongs into a workspace beside the tree
SCHEMA = 1  # of environments in the cache, their facts included; a new number builds all of them anew


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
    beside        paths below BESIDE that each workspace gets as links
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
    beside: tuple[str, ...] = ()

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


@contextmanager
def open_workspace(
    backend: SandboxBackend,
    environment: Environment,
    tree: Tree,
    labels: Mapping[str, str],
    limits: Limits | None = None,
) -> Iterator[Sandbox]:
    """Open a fresh sandbox of `environment` with `tree` in the workspace.

    Raises what `SandboxBackend.open` raises.
    """
    spec = SandboxSpec(
        environment.reference, limits or Limits(), variables=environment.variables, labels=labels
    )
    with backend.open(spec) as box:
        fill_workspace(box, environment, tree)
        yield box


# A parent that is a file gets no link. A patch can do that, and only its own tests fail then.
LINK = f"""\
cd {WORKSPACE} && while IFS= read -r -d '' path; do
    [ "$path" = "${{path%/*}}" ] || mkdir -p -- "${{path%/*}}" 2>/dev/null
    ln -s -- "{BESIDE}/$path" "$path" 2>/dev/null
done
true
"""
LINK_TIMEOUT_S = 120.0


def fill_workspace(box: Sandbox, environment: Environment, tree: Tree) -> None:
    """Write `tree` into the workspace of a fresh sandbox, and link what lies beside it in the image.

    A link wins over what the tree has in its place: a patch could bring its own runner of the tests. Raises
    ArtifactError if the tree does not fit.
    """
    linked = frozenset(environment.beside)
    taken = [path for path in tree if linked and not linked.isdisjoint(_with_parents(path))]
    box.write_archive(WORKSPACE, tree.replace(dict.fromkeys(taken)).to_tar() if taken else tree.to_tar())
    if environment.beside:
        paths = b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in environment.beside)
        box.run(f"(\n{LINK})", LINK_TIMEOUT_S, stdin=paths)


def _with_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]
