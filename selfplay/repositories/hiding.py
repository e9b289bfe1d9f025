"""What an environment hides from a repository: other releases of it, and other copies of its source.

Invariant: no file outside the workspace equals a source file of the repository, and no function of it stands
there that a bug may change. A solver could copy its repair from there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.repositories.targets import Function
from selfplay.sandbox.base import WORKSPACE

if TYPE_CHECKING:
    from selfplay.repositories.probe import ProbeResult
    from selfplay.repositories.trial import BuildJob

# Files of Python's own library: whoever hides them has no Python.
STANDARD_LIBRARY = re.compile(r"/lib(64|32)?/python3(\.\d+)?/(?!(.*/)?(site|dist)-packages/)")
MAX_HIDDEN = 500  # paths; each is a mount of every sandbox


@dataclass(frozen=True)
class Hiding:
    """What is hidden in each sandbox, and the functions of the repository that stay in sight elsewhere."""

    paths: tuple[str, ...] = ()
    copied: tuple[Function, ...] = ()


def refuse_copies(job: BuildJob, seen: ProbeResult) -> None:
    """Raise EnvironmentBuildError if files equal a source file and nothing says that they may be hidden."""
    copies = [path for path in seen.same if not STANDARD_LIBRARY.search(path)]
    if len(seen.stores) + len(seen.releases) + len(seen.archives) > MAX_HIDDEN:
        copies += [*seen.releases, *seen.archives]
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


def hide_all(seen: ProbeResult) -> Hiding:
    """Hide everything that can be hidden."""
    hidden = {path for path in seen.equal if not STANDARD_LIBRARY.search(path)}
    compiled = {other for path in hidden for other in seen.equal[path].bytecode}
    paths = {*seen.stores, *seen.releases, *seen.archives, *hidden, *compiled}
    return Hiding(tuple(sorted(paths)[:MAX_HIDDEN]), _copied(seen, hidden))


def _hide_releases(seen: ProbeResult) -> Hiding:
    """Leave single files of other projects in sight: something needs them."""
    return Hiding(tuple(sorted({*seen.stores, *seen.releases, *seen.archives})), _copied(seen, set()))


def _copied(seen: ProbeResult, hidden: set[str]) -> tuple[Function, ...]:
    in_sight = (found for path, found in seen.equal.items() if path not in hidden)
    return tuple(sorted({function for found in in_sight for function in found.functions}))


def hiding_plans(seen: ProbeResult) -> list[Hiding]:
    """What may be hidden, most first. The last one leaves in sight what only looks like the repository."""
    return list(dict.fromkeys((hide_all(seen), _hide_releases(seen))))
