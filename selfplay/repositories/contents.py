"""Gathers the files of a folder, archive or commit into a tree, and says what it leaves out and why.

Links become copies of what they lead to, as long as that is in the repository: a tree holds files only.

Invariants: a tree holds no leftovers of builds and tools, because a copy of the source among them would give
a repair away. No file is left out without a note, but for bytecode.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from selfplay.errors import RepositoryError
from selfplay.source.trees import FileEntry, Tree, folders_above, is_safe_path

MAX_TREE_BYTES = 256 << 20
MAX_TREE_FILES = 50_000
MAX_LINKS = 1_000
MAX_HOPS = 40  # of a link that leads to links
MAX_ROUNDS = 8  # of links in folders that links lead to
SHOWN = 3  # names in a note

# Leftovers of builds and tools, such as `build/lib`, a copy of the source.
LEFTOVERS = re.compile(
    r"^(build/(lib|bdist|temp|scripts)[^/]*/|dist/[^/]+\.(whl|tar\.gz|zip|egg)$)"
    r"|(^|/)(\.eggs|\.tox|\.nox|\.venv|\.hg|\.svn|\.mypy_cache|\.ruff_cache|node_modules|__pycache__)/"
    r"|\.(pyc|pyo|egg)$"
)
BYTECODE = re.compile(r"(^|/)__pycache__/|\.py[co]$")
# What merges and patches leave beside a file: copies of it.
MERGE_LEFTOVER = re.compile(r"^(?P<file>.+)\.(orig|rej)$")
LFS_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-[^\n]*\n)*oid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)

UNSAFE = "names that no tree may hold"
UNPRINTABLE = "names that cannot be printed"
LEFTOVER = "leftovers of builds and tools, which may be copies of the source"
OUTSIDE = "links that lead out of the repository"
TOO_MANY = f"links beyond the first {MAX_LINKS}"
NOWHERE = "links that lead to nothing"
CIRCLE = "links that lead in a circle"
CLASHING = "files whose name is that of a folder too"
SPECIAL = "neither files nor links"
IGNORED = "files that .gitignore names"
SUBMODULE = "submodules"
POINTER = "files whose content is in Git LFS, and was not fetched, are pointers"
GENERATED = "kept modules that .gitignore names, because others import them"
COPIED = "links became copies of what they lead to"


class Contents(NamedTuple):
    """A tree, and what is to say about it, a line for each reason."""

    tree: Tree
    notes: tuple[str, ...] = ()


def is_text(path: str) -> bool:
    """Whether the path is valid Unicode, and its characters are printable or spaces."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return all(char.isprintable() or unicodedata.category(char) == "Zs" for char in path)


def is_kept(path: str) -> bool:
    """Whether a tree may hold the path: it is safe, and no leftover of a build or tool."""
    return is_safe_path(path) and not LEFTOVERS.search(path)


def check_size(files: int, total: int, what: str) -> None:
    """Raise RepositoryError, which names `what`, if a workspace cannot hold so many files or bytes."""
    if files > MAX_TREE_FILES or total > MAX_TREE_BYTES:
        raise RepositoryError(
            f"{what}: {files} files, {total >> 20} MiB, are more than a workspace may hold "
            f"({MAX_TREE_FILES} files, {MAX_TREE_BYTES >> 20} MiB)"
        )


def lfs_pointer(content: bytes) -> tuple[str, int] | None:
    """The SHA-256 and the size of the content that a Git LFS pointer stands for. None for other files."""
    found = LFS_POINTER.fullmatch(content) if len(content) < 1024 else None
    return (found[1].decode(), int(found[2])) if found else None


@dataclass
class Gathering:
    """Files and links on their way into a tree.

    what        named in an error about size
    submodules  the commit of each submodule, by path
    """

    what: str
    files: dict[str, FileEntry] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)
    submodules: dict[str, str] = field(default_factory=dict)
    _bytes: int = 0

    def leave_out(self, path: str, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(path)

    def takes(self, path: str) -> bool:
        """Whether a tree may hold the path. If not, it is noted."""
        if not is_safe_path(path):
            self.leave_out(path, UNSAFE)
        elif not is_kept(path):
            if not BYTECODE.search(path):
                self.leave_out(path, LEFTOVER)
        elif not is_text(path):
            self.leave_out(path, UNPRINTABLE)
        else:
            return True
        return False

    def add_file(self, path: str, entry: FileEntry) -> None:
        """Add a file whose path was taken. Raises as `check_size` does."""
        before = self.files.get(path)
        self._bytes += len(entry.content) - (len(before.content) if before else 0)
        check_size(len(self.files) + (before is None), self._bytes, self.what)
        self.files[path] = entry

    def remove(self, path: str, reason: str) -> None:
        """Leave out what was added before."""
        entry = self.files.pop(path, None)
        self._bytes -= len(entry.content) if entry is not None else 0
        self.links.pop(path, None)
        self.leave_out(path, reason)

    def say(self, path: str, what: str) -> None:
        """Note something else about a path that stays."""
        self.said.setdefault(what, []).append(path)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link, with its target as it is written."""
        if len(self.links) < MAX_LINKS:
            self.links[path] = target
        else:
            self.leave_out(path, TOO_MANY)

    def contents(self) -> Contents:
        """The tree of what was added. Raises as `check_size` does."""
        self._drop_merge_leftovers()
        self._copy_links()
        for path in sorted(folders_above(self.files) & self.files.keys()):
            self.remove(path, CLASHING)
        for path, entry in self.files.items():
            if lfs_pointer(entry.content):
                self.say(path, POINTER)
        notes = [_note(f"left out {reason}", paths) for reason, paths in sorted(self.left_out.items())]
        notes += [_note(what, paths) for what, paths in sorted(self.said.items())]
        return Contents(Tree(self.files), tuple(notes))

    def _drop_merge_leftovers(self) -> None:
        for path in list(self.files):
            found = MERGE_LEFTOVER.match(path)
            if found and found["file"] in self.files:
                self.remove(path, LEFTOVER)

    # ---- links

    def _copy_links(self) -> None:
        """Put files in place of links."""
        waiting = dict(self.links)
        self._leave_out_links(waiting, (OUTSIDE, CIRCLE))
        for _ in range(MAX_ROUNDS):
            done = [path for path in sorted(waiting) if self._copy(path, waiting)]
            for path in done:
                self.say(f"{path} → {waiting.pop(path)}", COPIED)
            if not done and not self._leave_out_links(waiting, (NOWHERE,)):
                break
        for path in waiting:
            self.leave_out(path, CIRCLE)

    def _leave_out_links(self, waiting: dict[str, str], reasons: Sequence[str]) -> bool:
        """Leave out the waiting links with one of these reasons. Whether there were any."""
        present = {folder for path in (*self.files, *self.links) for folder in _with_folders(path)}
        found = {path: reason for path in waiting if (reason := self._reason(path, present)) in reasons}
        for path, reason in found.items():
            del waiting[path]
            self.leave_out(path, reason)
        return bool(found)

    def _copy(self, link: str, waiting: Mapping[str, str]) -> bool:
        """Copy what a link leads to, if no link is left on the way."""
        target = self._resolved(link)
        if not target or f"{link}/".startswith(f"{target}/"):
            return False
        if target in self.files:
            self.add_file(link, self.files[target])
            return True
        below = [path for path in self.files if path.startswith(f"{target}/")]
        if not below or any(path != link and path.startswith(f"{target}/") for path in waiting):
            return False
        for path in below:
            self.add_file(f"{link}{path.removeprefix(target)}", self.files[path])
        return True

    def _resolved(self, link: str) -> str:
        """The path that a link leads to, through other links. "" if it leaves the tree, or has no end."""
        path, hops = link, 0
        while (first := self._first_link(path)) is not None:
            hops += 1
            target = self.links[first]
            path = posixpath.normpath(posixpath.join(posixpath.dirname(first), target) + path[len(first) :])
            if hops > MAX_HOPS or target.startswith("/") or path == ".." or path.startswith(("../", "/")):
                return ""
        return path

    def _first_link(self, path: str) -> str | None:
        """The shortest part of the path that is a link."""
        parts = path.split("/")
        candidates = ("/".join(parts[: count + 1]) for count in range(len(parts)))
        return next((part for part in candidates if part in self.links), None)

    def _reason(self, link: str, present: Collection[str]) -> str:
        """Why a link cannot be copied, "" if nothing is wrong with it. present: all files and folders."""
        target = self.links[link]
        plain = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
        if target.startswith("/") or plain == ".." or plain.startswith("../"):
            return OUTSIDE
        resolved = self._resolved(link)
        if not resolved or plain == "." or f"{link}/".startswith(f"{resolved}/"):
            return CIRCLE
        return "" if resolved in present else NOWHERE


def _with_folders(path: str) -> Iterator[str]:
    """Yield a path and all folders above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]


def _note(reason: str, paths: list[str]) -> str:
    shown = ", ".join(map(_printable, sorted(paths)[:SHOWN]))
    more = f", … ({len(paths)} in all)" if len(paths) > SHOWN else ""
    return f"{_printable(reason)}: {shown}{more}"


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
