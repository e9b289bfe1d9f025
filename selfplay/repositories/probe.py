"""Looks into an environment: copies of the source, other releases, which Python, and does it hold hypothesis?

The search itself is data/probe/search.py, which runs in the sandbox. What follows from it is the job of
`hiding`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.targets import Function
from selfplay.runtime.resources import resource
from selfplay.source.import_roots import import_roots
from selfplay.source.path_policy import is_protected_path
from selfplay.source.trees import Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from selfplay.repositories.trial import BuildJob, Trial

# Folders of other projects that a repository carries along; their originals may well be installed.
VENDORED = re.compile(r"(^|/)_?(vendor|vendored|extern)/")
TIMEOUT_S = 900.0  # it reads every Python file of the sandbox: seconds, minutes on a busy machine
# Top modules that many repositories have, and that say nothing about where they are from.
COMMON_MODULES = frozenset(
    {"setup", "noxfile", "conf", "doc", "docs", "test", "tests", "testing", "example", "examples", "build"}
    | {"benchmark", "benchmarks", "scripts", "tools", "tasks", "utils", "versioneer", "conftest"}
)
PROBE = (resource("data/probe") / "search.py").read_text(encoding="utf-8")  # part of an environment's key


@dataclass(frozen=True)
class EqualFile:
    """A Python file outside the workspace with functions of the repository. bytecode: its compiled forms."""

    functions: tuple[Function, ...]
    bytecode: tuple[str, ...]


@dataclass(frozen=True)
class ProbeResult:
    """What the probe saw, as absolute paths; those of folders end with a slash.

    same      files that equal a source file of the repository
    equal     Python files that hold functions of it
    releases  installed or vendored packages of its name, and what their installation says about them
    archives  archives with source of it
    stores    git repositories, caches, folders of packages to be installed
    """

    python: str
    has_hypothesis: bool
    same: tuple[str, ...] = ()
    equal: Mapping[str, EqualFile] = field(default_factory=dict)
    releases: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()


def run_probe(
    trial: Trial, suffixes: tuple[str, ...], projects: Sequence[str], repaired: Tree | None = None
) -> ProbeResult:
    """Run the probe; it looks for copies of source files with these suffixes.

    projects: the names under which the repository would be installed, in their canonical form.
    repaired: a tree to look for in place of the checkout's, its tests included.
    Raises EnvironmentBuildError if no Python runs in the environment.
    """
    tree = trial.job.checkout.tree if repaired is None else repaired
    files = [
        path
        for path in sorted(tree)
        if path.endswith(suffixes)
        and not VENDORED.search(path)
        and (repaired is not None or not path.endswith(".py") or not is_protected_path(path, tree))
    ]
    question = {
        "files": files,
        "modules": _top_modules(tree, files),
        "projects": list(projects),
        "suffixes": suffixes,
    }
    with trial.workspace(tree, {"PYTHONPATH": ""}) as box:
        # -I: no module of the workspace may take the place of one that the probe imports.
        result = box.run(
            f"cd / && python3 -I -c {shlex.quote(PROBE)}",
            TIMEOUT_S,
            stdin=json.dumps(question).encode(),
        )
    if result.timed_out:
        raise trial.job.error(
            f"the search for copies of its source did not end within {TIMEOUT_S:.0f} s; "
            "run it on a machine with less to do, or give an environment with fewer files"
        )
    try:
        return _read(json.loads(result.output.strip().rpartition(b"\n")[2]))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise trial.job.error("python does not run in its environment", result.text) from error


def _read(seen: Any) -> ProbeResult:
    equal = {
        str(path): EqualFile(
            tuple((str(where), str(name)) for where, name in found["functions"]),
            tuple(map(str, found["bytecode"])),
        )
        for path, found in seen["equal"].items()
    }
    kinds = ("same", "releases", "archives", "stores")
    same, releases, archives, stores = (tuple(sorted(map(str, seen[kind]))) for kind in kinds)
    return ProbeResult(
        str(seen["python"]), seen["hypothesis"] is True, same, equal, releases, archives, stores
    )


def _top_modules(tree: Tree, files: Sequence[str]) -> list[str]:
    """The names of the packages and modules that stand directly in an import root and hold code."""
    found = set()
    for root in import_roots(tree):
        start = f"{root}/" if root else ""
        for path in files:
            if path.startswith(start) and path.endswith(".py"):
                name, slash, _ = path.removeprefix(start).partition("/")
                if not slash or f"{start}{name}/__init__.py" in tree:
                    found.add(name.removesuffix(".py"))
    return sorted(found - COMMON_MODULES)


def refuse_other_python(job: BuildJob, python: str) -> None:
    """Raise EnvironmentBuildError if the repository's line asks for another version than it got.

    An image has its own Python, and a backend of one's own may know one only.
    """
    wanted = job.checkout.spec.python
    if wanted and wanted != python:
        raise EnvironmentBuildError(
            f"{job.checkout.name}: python={wanted} is asked for, and {job.backend.name} sandboxes have "
            f"Python {python} here. Leave the hint out, or give an image with Python {wanted}: "
            "docker:IMAGE:TAG#/FOLDER."
        )
