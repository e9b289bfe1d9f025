"""File trees as values: path -> content, with a hash and a comparison. Reads and writes folders and tars.

Uses no git. Limits no sizes: `repositories.archives` does, before it reads.

Invariant: a Tree holds regular files at safe relative paths only, and a folder can hold all of them together.
Links, devices and everything under `.git` are left out, whatever it was read from. So a tree can be written
anywhere on Linux without leaving the target folder. Names that differ in case or in their Unicode form alone
are different names there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pathspec

from selfplay.errors import TreeError

# Caches and bytecode.
ALWAYS_IGNORED = ("__pycache__/", "*.pyc", ".pytest_cache/", ".hypothesis/")
# What Linux takes: 255 bytes a name, 4095 a path with the folder before it.
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4000
MAX_DEPTH = 64  # names in a path: code that walks a tree calls itself for each folder


@dataclass(frozen=True)
class FileEntry:
    """A file's content and its executable bit."""

    content: bytes
    executable: bool = False


def is_safe_path(path: str) -> bool:
    """Whether `path` is relative, normalised, inside the tree, outside `.git`, and legal (`is_too_long`)."""
    if not path or path.startswith("/") or "\\" in path or "\0" in path or "\n" in path:
        return False
    try:
        path.encode("utf-8", "surrogateescape")  # Python's form of names that are not UTF-8
    except UnicodeEncodeError:
        return False
    parts = path.split("/")
    return all(part not in ("", ".", "..") and part.lower() != ".git" for part in parts) and not is_too_long(
        path
    )


def is_too_long(path: str, most_bytes: int = MAX_PATH_BYTES) -> bool:
    """Whether `path` has more than `most_bytes`, more than MAX_DEPTH names, or one beyond MAX_NAME_BYTES."""
    if 4 * len(path) <= MAX_NAME_BYTES:
        return False  # most paths
    parts = path.encode("utf-8", "replace").split(b"/")  # "?" for a byte that is not UTF-8
    return (
        sum(map(len, parts)) + len(parts) - 1 > most_bytes
        or len(parts) > MAX_DEPTH
        or max(map(len, parts)) > MAX_NAME_BYTES
    )


def folders_of(path: str) -> Iterator[str]:
    """Yield the folders that hold `path`, the deepest first, without the top of the tree."""
    folder = path.rpartition("/")[0]
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def folders_above(paths: Iterable[str]) -> frozenset[str]:
    """The folders that hold these paths."""
    found: set[str] = set()
    for path in paths:
        for folder in folders_of(path):
            if folder in found:
                break
            found.add(folder)
    return frozenset(found)


@dataclass(frozen=True)
class Tree(Mapping[str, FileEntry]):
    """An immutable file tree. Equality and `hash` depend on paths, contents and executable bits only.

    Raises TreeError for an unsafe path, and for a path that is a file and a folder at once.
    """

    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.files:
            if not is_safe_path(path):
                raise TreeError(f"unsafe path in tree: {path[:200]!r}")
        if both := min(self.folders & self.files.keys(), default=""):
            raise TreeError(f"{both[:200]!r} is a file and a folder at once, which no folder can hold")

    def __getitem__(self, path: str) -> FileEntry:
        return self.files[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over (path, executable bit, content), in path order."""
        sha = hashlib.sha256()
        for path in sorted(self.files):
            entry = self.files[path]
            sha.update(
                f"{path}\0{int(entry.executable)}\0{len(entry.content)}\0".encode("utf-8", "surrogateescape")
            )
            sha.update(entry.content)
        return sha.hexdigest()

    @cached_property
    def folders(self) -> frozenset[str]:
        """Every folder that holds a file, at any depth, without the top of the tree."""
        return folders_above(self.files)

    def text(self, path: str) -> str:
        """The file's content as UTF-8, with replacement characters for the bytes that are not."""
        return self.files[path].content.decode("utf-8", errors="replace")

    def replace(self, changes: Mapping[str, FileEntry | None]) -> Tree:
        """A copy with `changes` made. None removes a path; the path may be absent."""
        files = dict(self.files)
        for path, entry in changes.items():
            if entry is None:
                files.pop(path, None)
            else:
                files[path] = entry
        return Tree(files)

    def restore(self, original: Tree, paths: Iterable[str]) -> Tree:
        """A copy in which each of `paths` is as in `original`: restored, or removed if it is absent there.

        What stands in the way of a restored file goes: a file where it needs a folder, or a folder where it
        stands. The original has neither.
        """
        wanted = {path: original.files.get(path) for path in paths}
        back = {path for path, entry in wanted.items() if entry is not None}
        in_the_way = {folder for path in back for folder in folders_of(path) if folder in self.files}
        if back & self.folders:
            in_the_way |= {path for path in self.files if not back.isdisjoint(folders_of(path))}
        return self.replace(dict.fromkeys(in_the_way) | wanted)

    def changed_paths(self, other: Tree) -> list[str]:
        """Paths whose entry differs between this tree and `other`, sorted."""
        return sorted(
            p for p in self.files.keys() | other.files.keys() if self.files.get(p) != other.files.get(p)
        )

    def to_tar(self) -> bytes:
        """An uncompressed tar of the tree.

        Owner, time and order are fixed, so equal trees give equal bytes.
        """
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path in sorted(self.files):
                entry = self.files[path]
                info = tarfile.TarInfo(path)
                info.size = len(entry.content)
                info.mode = 0o755 if entry.executable else 0o644
                tar.addfile(info, io.BytesIO(entry.content))
        return buffer.getvalue()

    def write_to(self, folder: Path) -> None:
        """Write every file below `folder`; other files there stay."""
        for path, entry in self.files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.content)
            if entry.executable:
                target.chmod(0o755)

    @classmethod
    def from_tar(cls, data: bytes, ignored: IgnoreRules | None = None) -> Tree:
        """Read the regular files of a tar. Links, devices, unsafe names and ignored files are left out."""
        files: dict[str, FileEntry] = {}
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                path = member.name.removeprefix("./")
                if not member.isreg() or not is_safe_path(path) or (ignored and ignored.match_file(path)):
                    continue
                extracted = tar.extractfile(member)
                if extracted is not None:
                    files[path] = FileEntry(extracted.read(), bool(member.mode & 0o100))
        return cls(files)

    @classmethod
    def from_folder(cls, folder: Path) -> Tree:
        """Read the regular files below `folder`, without `.git`, ALWAYS_IGNORED and symbolic links."""
        ignored = ignore_rules(None)
        files: dict[str, FileEntry] = {}
        for found in sorted(folder.rglob("*")):
            path = found.relative_to(folder).as_posix()
            if (
                found.is_symlink()
                or not found.is_file()
                or not is_safe_path(path)
                or ignored.match_file(path)
            ):
                continue
            files[path] = FileEntry(found.read_bytes(), bool(found.stat().st_mode & 0o100))
        return cls(files)


class IgnoreRules:
    """Decides which paths git would ignore: those that match a rule, and those in a folder that does."""

    def __init__(self, patterns: Sequence[Any]) -> None:
        self._spec = pathspec.GitIgnoreSpec(patterns)
        self._folders: dict[str, bool] = {"": False}

    def match_file(self, path: str) -> bool:
        return self._has_ignored_folder(path.rpartition("/")[0]) or self._spec.match_file(path)

    def _has_ignored_folder(self, folder: str) -> bool:
        if folder not in self._folders:
            self._folders[folder] = self._has_ignored_folder(
                folder.rpartition("/")[0]
            ) or self._spec.match_file(f"{folder}/")
        return self._folders[folder]


def ignore_rules(tree: Tree | None) -> IgnoreRules:
    """The `.gitignore` rules of a tree, nested files included. ALWAYS_IGNORED is ignored whatever they say.

    Skips lines that are not rules, as git does.
    """
    patterns: list[Any] = []
    files = [path for path in tree or () if PurePosixPath(path).name == ".gitignore"]
    # The last rule that matches wins, so the rules of deeper files come last.
    for path in sorted(files, key=lambda path: (path.count("/"), path)):
        assert tree is not None
        prefix = re.sub(r"([*?\[\]])", r"\\\1", path.removesuffix(".gitignore"))
        for raw in tree.text(path).removeprefix("\ufeff").split("\n"):
            rule = raw.removesuffix("\r")
            negated = rule.startswith("!")
            body = rule[1:] if negated else rule
            if rule.startswith("#") or not body.strip().strip(" /"):
                continue
            if prefix:
                anchored = "/" in body.rstrip("/ ")
                body = f"/{prefix}{body.lstrip('/')}" if anchored else f"/{prefix}**/{body}"
            with contextlib.suppress(ValueError):
                patterns += pathspec.GitIgnoreSpec.from_lines([f"!{body}" if negated else body]).patterns
    patterns += pathspec.GitIgnoreSpec.from_lines(ALWAYS_IGNORED).patterns
    return IgnoreRules(patterns)
