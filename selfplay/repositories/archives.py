"""Reads folders and archives as trees, in memory and within limits of size.

What becomes of links, and what is left out, is decided in `contents`.

Invariants: nothing is unpacked to disk, and limits are checked before memory is spent, since an archive may
be a bomb.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selfplay.errors import RepositoryError
from selfplay.repositories import contents
from selfplay.repositories.contents import (
    MAX_TREE_BYTES,
    MAX_TREE_FILES,
    Contents,
    Gathering,
    check_size,
    is_kept,
)
from selfplay.source.trees import FileEntry, Tree, ignore_rules, is_safe_path

Member = tuple[str, FileEntry | str | None]  # path; a file, the target of a link, or None for a device
MAX_ARCHIVE_BYTES = 64 << 20
# ---- folders


def read_folder(folder: Path) -> Contents:
    """Read a plain folder, without leftovers of tools, virtual environments and what its .gitignore names.

    A module that .gitignore names stays if a module that stays imports it: a build has generated it.
    """
    found = Gathering(str(folder))
    for current, folders, names in os.walk(folder):
        here = Path(current)
        linked = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(name for name in folders if name.lower() != ".git" and name not in linked)
        for name in list(folders):
            path = (here / name).relative_to(folder).as_posix()
            if (here / name / "pyvenv.cfg").exists() or not is_kept(f"{path}/x"):
                folders.remove(name)
                if not contents.BYTECODE.search(f"{path}/"):
                    found.leave_out(f"{path}/", contents.LEFTOVER)
        for name in sorted([*names, *linked]):
            _add(found, here / name, (here / name).relative_to(folder).as_posix())
    _leave_out_ignored(found)
    return found.contents()


def _add(found: Gathering, file: Path, path: str) -> None:
    status = file.lstat()
    if not found.takes(path):
        return
    if stat.S_ISLNK(status.st_mode):
        found.add_link(path, str(file.readlink()))
    elif stat.S_ISREG(status.st_mode):
        check_size(len(found.files) + 1, status.st_size, found.what)
        found.add_file(path, FileEntry(file.read_bytes(), bool(status.st_mode & 0o100)))
    else:
        found.leave_out(path, contents.SPECIAL)


def _leave_out_ignored(found: Gathering) -> None:
    rules = ignore_rules(Tree(found.files))
    ignored = {path for path in (*found.files, *found.links) if rules.match_file(path)}
    imported = _imported_modules(found.files, ignored)
    for path in sorted(ignored - imported):
        found.remove(path, contents.IGNORED)
    for path in sorted(imported):
        found.say(path, contents.GENERATED)


def _imported_modules(files: Mapping[str, FileEntry], ignored: Collection[str]) -> set[str]:
    """The modules of `ignored` beside a module that stays and imports them by name."""
    beside: dict[str, list[bytes]] = {}
    for path, entry in files.items():
        if path.endswith(".py") and path not in ignored:
            beside.setdefault(path.rpartition("/")[0], []).append(entry.content)
    imported = set()
    for path in ignored:
        folder, _, name = path.rpartition("/")
        module = name.removesuffix(".py")
        if name.endswith(".py") and module.isidentifier():
            word = re.compile(rf"^[ \t]*(from|import)\b[^\n#]*\b{module}\b".encode(), re.MULTILINE)
            if any(word.search(content) for content in beside.get(folder, [])):
                imported.add(path)
    return imported


# ---- archives


def read_bounded(chunks: Any, most: int, what: str) -> bytes:
    """Join chunks of bytes. Raises RepositoryError, which names `what`, at more than `most` bytes."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise RepositoryError(f"{what}: more than {most >> 20} MiB")
    return bytes(data)


def read_archive(name: str, data: bytes) -> Contents:
    """Read a source distribution, without its top folder and devices. The name says how it is packed.

    Raises RepositoryError if it is no archive of a known kind, or unpacks to more than a workspace may hold.
    """
    try:
        members = _zip_members(name, data) if name.endswith(".zip") else tar_members(_decompress(name, data))
        return without_top(members, name)
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


def _zip_members(name: str, data: bytes) -> Iterator[Member]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        check_size(len(members), sum(member.file_size for member in members), name)
        for member in members:
            if member.is_dir():
                continue
            mode = member.external_attr >> 16
            with archive.open(member) as opened:
                content = opened.read(member.file_size)
            if stat.S_ISLNK(mode):
                yield member.filename, os.fsdecode(content)
            else:
                is_file = stat.S_IFMT(mode) in (0, stat.S_IFREG)
                yield member.filename, FileEntry(content, bool(mode & 0o100)) if is_file else None


def tar_members(data: bytes) -> Iterator[Member]:
    """Yield the files, links and devices of an uncompressed tar. Raises tarfile.TarError."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            path = member.name.removeprefix("./")
            if member.isreg():
                opened = archive.extractfile(member)
                content = opened.read() if opened is not None else b""
                yield path, FileEntry(content, bool(member.mode & 0o100))
            elif member.issym():
                yield path, member.linkname
            elif member.islnk():  # a hard link names its file from the archive's root
                target = member.linkname.removeprefix("./")
                is_inside = is_safe_path(target) and is_safe_path(path)
                yield path, posixpath.relpath(target, posixpath.dirname(path)) if is_inside else "/"
            elif not member.isdir():
                yield path, None


def without_top(members: Iterable[Member], what: str) -> Contents:
    """The contents of an archive, without the top folder if everything is in one.

    Raises as `check_size` does.
    """
    found = Gathering(what)
    safe: dict[str, FileEntry | str | None] = {}
    for path, member in members:
        if is_safe_path(path):
            safe[path] = member
        else:
            found.leave_out(path, contents.UNSAFE)
    tops = {path.split("/", 1)[0] for path in safe}
    has_top = len(tops) == 1 and all("/" in path for path in safe)
    for path, member in safe.items():
        name = path.split("/", 1)[1] if has_top else path
        if not found.takes(name):
            continue
        if isinstance(member, FileEntry):
            found.add_file(name, member)
        elif isinstance(member, str):
            found.add_link(name, member)
        else:
            found.leave_out(name, contents.SPECIAL)
    return found.contents()
