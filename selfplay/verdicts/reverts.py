"""Which paths of a bug are reverted together. Pure.

Reverting is left to `validator`. Invariant: after any unit is reverted, a folder can still hold the tree.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from selfplay.source.diffs import FilePatch
from selfplay.source.trees import folders_of


def revert_units(files: Sequence[FilePatch], changed: Collection[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and paths of each unit, by name.

    Both paths of a rename are one unit if both still differ. So are a file and the files of a folder of its
    name: no folder can hold one of them beside the original of the other.

    files: the sections of bug_inject.diff. changed: the paths that differ from the original.
    """
    paths = set(changed)
    top = {path: next((f for f in reversed([*folders_of(path)]) if f in paths), path) for path in paths}
    names: dict[str, str] = {}
    for file in files:
        if file.kind == "rename" and paths.issuperset(file.paths):
            old, new = (top[path] for path in file.paths)
            top = {path: new if first == old else first for path, first in top.items()}
            names[new] = file.path
    units: dict[str, list[str]] = {}
    for path in sorted(paths):
        units.setdefault(top[path], []).append(path)
    return sorted((names.get(first, first), tuple(members)) for first, members in units.items())
