"""Looks into an environment: does it hold copies of the source, which Python, and does it hold hypothesis?

Invariant: no file outside the workspace equals a source file of the repository. A bug would not reach such a
copy, and a solver could copy its repair from it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.errors import EnvironmentBuildError
from selfplay.sandbox.base import WORKSPACE
from selfplay.source.trees import Tree

if TYPE_CHECKING:
    from selfplay.repositories.trial import BuildJob, Trial

MIN_COPY_BYTES = 200  # smaller source files may be equal by chance
# Folders of other projects that a repository carries along; their originals may well be installed.
VENDORED = re.compile(r"(^|/)_?(vendor|vendored|extern)/")

# Runs inside the sandbox, and is part of an environment's key. Reads the size and hash of each source file
# from stdin.
PROBE = """
import hashlib, json, os, sys
known = {(size, digest) for size, digest in json.load(sys.stdin)}
sizes = {size for size, _ in known}
copies = []
for folder, folders, files in os.walk("/"):
    if folder == "/":
        folders[:] = [name for name in folders if name not in \
("proc", "sys", "dev", "testbed", "tmp", "submit")]
    for name in files:
        path = os.path.join(folder, name)
        try:
            if name.endswith(".py") and os.path.getsize(path) in sizes:
                with open(path, "rb") as file:
                    data = file.read()
                if (len(data), hashlib.sha256(data).hexdigest()) in known:
                    copies.append(path)
        except OSError:
            pass
try:
    import hypothesis
    hypothesis.settings.get_profile("ci")
    has_profile = True
except Exception:
    has_profile = False
print(json.dumps({"copies": copies, "hypothesis": has_profile, "python": "%d.%d" % sys.version_info[:2]}))
"""


@dataclass(frozen=True)
class ProbeResult:
    """What the probe saw. copies: paths outside the workspace; has_hypothesis: with its profile `ci`."""

    copies: tuple[str, ...]
    python: str
    has_hypothesis: bool


def run_probe(trial: Trial, suffixes: tuple[str, ...], more: Tree | None = None) -> ProbeResult:
    """Run the probe; it looks for copies of source files with these suffixes, also of those in `more`.

    Raises EnvironmentBuildError if no Python runs in the environment.
    """
    trees = [trial.job.checkout.tree, *([more] if more is not None else [])]
    contents = [
        entry.content
        for tree in trees
        for path, entry in tree.items()
        if path.endswith(suffixes) and len(entry.content) >= MIN_COPY_BYTES and not VENDORED.search(path)
    ]
    known = dict.fromkeys((len(content), hashlib.sha256(content).hexdigest()) for content in contents)
    script = PROBE.replace('".py"', repr(suffixes))
    with trial.workspace(Tree(), {"PYTHONPATH": ""}) as box:
        result = box.run(
            f"python3 -c {shlex.quote(script)}",
            trial.job.settings.test_timeout_s,
            stdin=json.dumps(list(known)).encode(),
        )
    try:
        seen = json.loads(result.output.strip().rpartition(b"\n")[2])
        return ProbeResult(tuple(map(str, seen["copies"])), seen["python"], seen["hypothesis"])
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise trial.job.error("python does not run in its environment", result.text) from error


def refuse_copies(job: BuildJob, copies: Sequence[str]) -> None:
    """Raise EnvironmentBuildError if there are copies, naming the first five."""
    if not copies:
        return
    remedy = 'Name dependencies that do not bring it along with the hint install="pip install …".'
    if job.is_image:
        remedy = (
            f"The workspace covers only {WORKSPACE}: make an image that holds the repository there "
            "and nowhere else."
        )
    raise job.error(
        f"{len(copies)} of its source files also lie outside the workspace, so a repair could be copied: "
        f"{', '.join(copies[:5])}. {remedy}"
    )


def refuse_other_python(job: BuildJob, python: str) -> None:
    """Raise EnvironmentBuildError if the repository's line asks for another version of Python."""
    wanted = job.checkout.spec.python
    if wanted and wanted != python:
        raise EnvironmentBuildError(
            f"{job.checkout.name}: python={wanted} is asked for, and {job.backend.name} sandboxes have "
            f"Python {python} here. Leave the hint out, run selfplay with Python {wanted}, "
            "or give an image: docker:IMAGE:TAG#/FOLDER."
        )
