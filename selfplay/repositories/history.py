"""The history of a commit, as packs of git that lie in the cache and travel into a sandbox one by one.

Invariant: a pack has at most PACK_BYTES, unless a single object of the history is larger. So what is in
memory at a time does not grow with the history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from selfplay.errors import RepositoryError
from selfplay.repositories.checkouts import Checkout, new_folder
from selfplay.repositories.git import run_git
from selfplay.repositories.locks import locked
from selfplay.repositories.specs import RepositorySpec
from selfplay.sandbox.base import Limits

PACK_BYTES = 24 << 20
SHALLOW = "shallow"  # git's list of the commits whose parents were not fetched


@dataclass(frozen=True)
class History:
    """folder: holds the packs with their indices, and SHALLOW if the history is cut off somewhere."""

    folder: Path
    commit: str

    def packs(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file of git's folder `objects/pack`. One at a time."""
        for path in self._files():
            yield path.name, path.read_bytes()

    @property
    def shallow(self) -> bytes:
        path = self.folder / SHALLOW
        return path.read_bytes() if path.is_file() else b""

    @property
    def size(self) -> int:
        """Bytes of all packs, which a sandbox with this history holds in memory."""
        return sum(path.stat().st_size for path in self._files())

    def added_to(self, limits: Limits) -> Limits:
        """Limits of a sandbox that has the history beside everything else."""
        sizes = [path.stat().st_size for path in self._files()]
        return replace(
            limits,
            memory_bytes=limits.memory_bytes + sum(sizes),
            workspace_bytes=limits.workspace_bytes + sum(sizes),
            file_bytes=max(limits.file_bytes, *sizes),
        )

    def _files(self) -> list[Path]:
        # An index after its pack: git ignores a pack without one.
        return sorted(self.folder.glob("*.pack")) + sorted(self.folder.glob("*.idx"))


def has_history(checkout: Checkout) -> bool:
    """Whether there is a commit before the checkout's own."""
    return checkout.git_dir is not None and checkout.commits > 1


def history_of(checkout: Checkout) -> History | None:
    """The ancestry of the checkout's commit, packed unless the cache has it. None with one commit only.

    Raises RepositoryError if git cannot pack it.
    """
    if checkout.git_dir is None or not has_history(checkout):
        return None
    return packed_history(checkout.git_dir, checkout.commit)


def packed_history(git_dir: Path, commit: str) -> History:
    """A commit with its ancestry, of a bare repository in the cache. Raises as `history_of` does."""
    folder = git_dir.parent.parent / "histories" / f"{git_dir.name}-{commit[:16]}"
    if not folder.is_dir():
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                _pack(git_dir.absolute(), commit, folder)
    return History(folder, commit)


def _pack(git_dir: Path, commit: str, target: Path) -> None:
    with new_folder(target) as folder:
        run_git(
            git_dir,
            *("pack-objects", "--quiet", "--revs", "--delta-base-offset", f"--max-pack-size={PACK_BYTES}"),
            str(folder / "pack"),
            stdin=f"{commit}\n".encode(),
        )
        shallow = git_dir / SHALLOW
        if shallow.is_file():
            (folder / SHALLOW).write_bytes(shallow.read_bytes())


def known_commits(spec: RepositorySpec) -> int | None:
    """How many commits a line of a repository list stands for, as far as that is known without a fetch."""
    if spec.kind == "docker" or (spec.kind == "pypi" and ".." not in (spec.rev or "")):
        return 1
    if spec.kind != "path":
        return None
    folder = Path(spec.location)
    git_dir = folder / ".git" if (folder / ".git").exists() else folder
    if git_dir == folder and not (folder / "objects").is_dir():
        return 1
    try:
        return int(run_git(git_dir, "rev-list", "--count", spec.rev or "HEAD", "--"))
    except (RepositoryError, ValueError):
        return None
