"""Reads folders and archives as trees, in memory and within limits of size.

Invariants: nothing is unpacked to disk, and limits are checked before memory is spent, since an archive may
be a bomb. No tree holds leftovers of builds and tools, because a copy of the source among them would give a
repair away.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from selfplay.errors import RepositoryError
from selfplay.source.trees import FileEntry, Tree, ignore_rules, is_safe_path

MAX_ARCHIVE_BYTES = 64 << 20
MAX_TREE_BYTES = 256 << 20
MAX_TREE_FILES = 50_000

# Leftovers of builds and tools, such as `build/lib`, a copy of the source.
LEFTOVERS = re.compile(
    r"^(build/(lib|bdist|temp|scripts)[^/]*/|dist/[^/]+\.(whl|tar\.gz|zip|egg)$)"
    r"|(^|/)(\.eggs|\.tox|\.nox|\.venv|\.hg|\.svn|\.mypy_cache|\.ruff_cache|node_modules|__pycache__)/"
    r"|\.(pyc|pyo|egg|orig|rej)$"
)


# ---- what a tree may hold


def is_text(path: str) -> bool:
    """Whether the path is valid Unicode and printable."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return path.isprintable()


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


# ---- folders


def tree_of_folder(folder: Path) -> Tree:
    """Read a plain folder, without files that its .gitignore names, leftovers, and virtual environments."""
    files: dict[str, FileEntry] = {}
    total = 0
    for current, folders, names in os.walk(folder):
        here = Path(current)
        folders[:] = sorted(
            name
            for name in folders
            if name.lower() != ".git"
            and not (here / name / "pyvenv.cfg").exists()
            and not (here / name).is_symlink()
        )
        folders[:] = [
            name for name in folders if is_kept(f"{(here / name).relative_to(folder).as_posix()}/x")
        ]
        for name in sorted(names):
            found = here / name
            path = found.relative_to(folder).as_posix()
            status = found.lstat()
            if stat.S_ISREG(status.st_mode) and is_kept(path) and is_text(path):
                total += status.st_size
                check_size(len(files) + 1, total, str(folder))
                files[path] = FileEntry(found.read_bytes(), bool(status.st_mode & 0o100))
    ignored = ignore_rules(Tree(files))
    return Tree({path: entry for path, entry in files.items() if not ignored.match_file(path)})


# ---- archives


def read_bounded(chunks: Any, most: int, what: str) -> bytes:
    """Join chunks of bytes. Raises RepositoryError, which names `what`, at more than `most` bytes."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise RepositoryError(f"{what}: more than {most >> 20} MiB")
    return bytes(data)


def read_archive(name: str, data: bytes) -> Tree:
    """Read a source distribution, without its top folder, links and devices. The name says how it is packed.

    Raises RepositoryError if it is no archive of a known kind, or unpacks to more than a workspace may hold.
    """
    try:
        if name.endswith(".zip"):
            return strip_top(_read_zip(name, data))
        return strip_top(Tree.from_tar(_decompress(name, data)))
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
    ) as error:
        raise RepositoryError(f"{name} cannot be read as an archive: {error}") from error


def _decompress(name: str, data: bytes) -> bytes:
    most = MAX_TREE_BYTES + (MAX_TREE_FILES << 10)  # each member has a header and padding
    if name.endswith((".tar.gz", ".tgz")):
        worker = zlib.decompressobj(wbits=31)
        plain = worker.decompress(data, most + 1)
    elif name.endswith(".tar.bz2"):
        plain = bz2.BZ2Decompressor().decompress(data, most + 1)
    elif name.endswith(".tar.xz"):
        plain = lzma.LZMADecompressor().decompress(data, most + 1)
    elif name.endswith(".tar"):
        plain = data
    else:
        raise RepositoryError(
            f"{name} is no archive of a known kind (.tar.gz, .tgz, .tar.bz2, .tar.xz, .tar, .zip)"
        )
    if len(plain) > most:
        raise RepositoryError(f"{name} unpacks to more than {most >> 20} MiB")
    return plain


def _read_zip(name: str, data: bytes) -> Tree:
    files: dict[str, FileEntry] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        check_size(len(members), sum(member.file_size for member in members), name)
        for member in members:
            mode = member.external_attr >> 16
            if (
                not member.is_dir()
                and is_safe_path(member.filename)
                and (not mode or stat.S_ISREG(mode) or stat.S_IFMT(mode) == 0)
            ):
                with archive.open(member) as opened:
                    files[member.filename] = FileEntry(opened.read(member.file_size), bool(mode & 0o100))
    return Tree(files)


def strip_top(tree: Tree) -> Tree:
    """The tree without its top folder, if all files are in one, and without leftovers.

    Raises as `check_size` does.
    """
    tops = {path.split("/", 1)[0] for path in tree}
    if len(tops) == 1 and all("/" in path for path in tree):
        tree = Tree(
            {
                path.split("/", 1)[1]: entry
                for path, entry in tree.items()
                if is_safe_path(path.split("/", 1)[1])
            }
        )
    return _cleaned(tree)


def _cleaned(tree: Tree) -> Tree:
    files = {path: entry for path, entry in tree.items() if is_kept(path) and is_text(path)}
    check_size(len(files), sum(len(entry.content) for entry in files.values()), "the tree")
    return Tree(files)
