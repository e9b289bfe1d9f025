"""Repository list -> pinned checkouts: what to fetch, and its file tree, commit, history and licence. Running it is left to environments.

Invariant: nothing of a repository is ever executed here: archives are read in memory, git objects without a work tree, hooks or filters.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selfplay.repositories.specs import RepositorySpec
from selfplay.source.trees import Tree


def cache_root() -> Path:
    """Where fetched repositories and prepared environments are kept: SELFPLAY_CACHE, else ~/.cache/selfplay."""
    return Path(os.environ.get("SELFPLAY_CACHE") or "~/.cache/selfplay").expanduser()


@dataclass(frozen=True)
class Checkout:
    """A pinned repository. `commit` may be one made here (releases, plain folders, images); `git_dir` is bare and holds it."""

    spec: RepositorySpec
    name: str
    commit: str
    tree: Tree
    git_dir: Path | None
    commits: int
    licence: str


@contextlib.contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A folder that appears at `place` complete or not at all; where another process was first, its folder stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    try:
        yield temporary
        try:
            temporary.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
