"""The `.git` folder of a tree: one commit that holds the whole tree, made without git.

Every sandbox with a workspace gets one: of the solver, of the injector, and of each run of tests. So code
cannot tell them apart by it. To make it here takes a part of the time that git takes for it in each sandbox.
Invariants: equal trees give equal bytes, and the folder holds nothing but the tree.
"""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

from selfplay.source.trees import FileEntry, Tree

WHO = "selfplay <selfplay@localhost> 946684800 +0000"  # the first of January 2000
MESSAGE = "The repository as it is"
# Git protects other systems from names such as `git~1`. Here they are harmless, and a bug may add one.
CONFIG = """\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\tlogAllRefUpdates = false
\tprotectNTFS = false
\tprotectHFS = false
[user]
\tname = selfplay
\temail = selfplay@localhost
[gc]
\tauto = 0
"""
# They win over the repository's `.gitattributes`: git gives back bytes as they were, and shows text as text.
ATTRIBUTES = "* -text -ident !filter !working-tree-encoding !diff\n"
EMPTY_FOLDERS = ("objects/info", "refs/tags")
COMMIT, TREE, BLOB = 1, 2, 3  # types of objects in a pack
TYPE_NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob"}
FILE_MODE, PROGRAM_MODE = 0o100644, 0o100755
FAST = 1  # of zlib's levels

Object = tuple[bytes, bytes]  # an object's id, and its form in a pack
Folder = dict[bytes, "Folder | tuple[int, bytes]"]  # name -> folder, or mode and id of a file


def git_archive(tree: Tree) -> bytes:
    """An uncompressed tar of `.git`."""
    blobs = {path: _blob(entry) for path, entry in sorted(tree.items())}
    objects = dict(blobs.values())
    root = _add_trees(_folders(tree, blobs), objects)
    text = f"tree {root.hex()}\nauthor {WHO}\ncommitter {WHO}\n\n{MESSAGE}\n"
    commit, packed = _object(COMMIT, text.encode())
    objects[commit] = packed
    pack, index = _pack(objects)
    name = f"objects/pack/pack-{pack[-20:].hex()}"
    files = {
        "HEAD": b"ref: refs/heads/main\n",
        "config": CONFIG.encode(),
        "index": _stage(tree, blobs),
        "info/attributes": ATTRIBUTES.encode(),
        f"{name}.idx": index,
        f"{name}.pack": pack,
        "refs/heads/main": f"{commit.hex()}\n".encode(),
    }
    return _tar(files)


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in EMPTY_FOLDERS:
            info = tarfile.TarInfo(f".git/{folder}")
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for path, content in files.items():
            info = tarfile.TarInfo(f".git/{path}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# ---- objects


def _object(kind: int, content: bytes) -> Object:
    size = len(content)
    head = [kind << 4 | size & 15]
    size >>= 4
    while size:  # seven bits a byte; the highest bit says that more follow
        head[-1] |= 0x80
        head.append(size & 127)
        size >>= 7
    identity = hashlib.sha1(b"%s %d\0" % (TYPE_NAMES[kind], len(content)) + content).digest()
    return identity, bytes(head) + zlib.compress(content, FAST)


@lru_cache(maxsize=2048)  # the trees of one bug differ in few files
def _small_blob(content: bytes) -> Object:
    return _object(BLOB, content)


def _blob(entry: FileEntry) -> Object:
    return _small_blob(entry.content) if len(entry.content) < 1 << 16 else _object(BLOB, entry.content)


def _mode(entry: FileEntry) -> int:
    return PROGRAM_MODE if entry.executable else FILE_MODE


def _folders(tree: Tree, blobs: Mapping[str, Object]) -> Folder:
    root: Folder = {}
    for path, entry in tree.items():
        *parents, name = _name(path).split(b"/")
        folder = root
        for parent in parents:
            inner = folder.setdefault(parent, {})
            assert isinstance(inner, dict)
            folder = inner
        folder[name] = (_mode(entry), blobs[path][0])
    return root


def _add_trees(folder: Folder, objects: dict[bytes, bytes]) -> bytes:
    """Add the objects of a folder and of the folders in it. Returns its id."""
    lines = []
    # Git sorts a folder as if its name ended in a slash.
    for name, found in sorted(folder.items(), key=lambda item: item[0] + b"/" * isinstance(item[1], dict)):
        mode, identity = (0o40000, _add_trees(found, objects)) if isinstance(found, dict) else found
        lines.append(b"%o %s\0" % (mode, name) + identity)
    identity, packed = _object(TREE, b"".join(lines))
    objects[identity] = packed
    return identity


def _name(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


# ---- files


def _pack(objects: Mapping[bytes, bytes]) -> tuple[bytes, bytes]:
    """The pack and its index, both in version 2."""
    parts, offsets, at = [struct.pack(">4sLL", b"PACK", 2, len(objects))], [], 12
    ordered = sorted(objects.items())
    for _, packed in ordered:
        offsets.append(at)
        parts.append(packed)
        at += len(packed)
    pack = _with_sum(parts)
    firsts = [identity[0] for identity, _ in ordered]
    counts = [0] * 256
    for first in firsts:
        counts[first] += 1
    totals = [sum(counts[: number + 1]) for number in range(256)]
    index = [
        b"\377tOc",
        struct.pack(">L256L", 2, *totals),
        *(identity for identity, _ in ordered),
        *(struct.pack(">L", zlib.crc32(packed)) for _, packed in ordered),
        *(struct.pack(">L", offset) for offset in offsets),
        pack[-20:],
    ]
    return pack, _with_sum(index)


def _stage(tree: Tree, blobs: Mapping[str, Object]) -> bytes:
    """git's index. It has no times: git compares the contents when it is first asked."""
    parts = [struct.pack(">4sLL", b"DIRC", 2, len(tree))]
    for name, path in sorted((_name(path), path) for path in tree):
        entry = tree[path]
        size = len(entry.content) & 0xFFFFFFFF
        fields = (0, 0, 0, 0, 0, 0, _mode(entry), 0, 0, size, blobs[path][0], min(len(name), 0xFFF))
        line = struct.pack(">10L20sH", *fields) + name
        parts.append(line + bytes(8 - len(line) % 8))
    return _with_sum(parts)


def _with_sum(parts: Iterable[bytes]) -> bytes:
    data = b"".join(parts)
    return data + hashlib.sha1(data).digest()
