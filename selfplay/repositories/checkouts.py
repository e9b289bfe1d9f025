"""A checkout: the pinned tree, commit, history and licence of one line of a repository list; and the cache's
folder.

Fetching is the job of `fetching`, running the tests the job of `build`.

Invariant: nothing of a repository runs before it is in a sandbox. Archives are read in memory, and git
objects without a work tree, hooks or filters.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfplay.repositories.specs import RepositorySpec
    from selfplay.source.trees import Tree


@dataclass(frozen=True)
class Checkout:
    """A pinned repository.

    commit       of the repository, or made here from releases, a plain folder or an image
    git_dir      a bare repository in the cache that holds the commit
    commits      how many the history of `commit` has
    licence      as the repository states it, else "unknown"
    tag_version  the version that git's tags give the commit, else ""
    notes        how the tree differs from the repository, a line each: files left out, links, made files
    """

    spec: RepositorySpec
    name: str
    commit: str
    tree: Tree
    git_dir: Path | None
    commits: int
    licence: str
    tag_version: str = ""
    notes: tuple[str, ...] = ()


def cache_root() -> Path:
    """The folder of fetched repositories and built environments: SELFPLAY_CACHE, else ~/.cache/selfplay."""
    return Path(os.environ.get("SELFPLAY_CACHE") or "~/.cache/selfplay").expanduser()


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder and rename it to `target` at the end, so that `target` is complete or absent.

    If another process made `target` first, its folder stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        yield temporary
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
