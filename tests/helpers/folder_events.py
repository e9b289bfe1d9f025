"""Watches a folder for changes with inotify, without another package. It knows paths, not what files mean.

Invariant: an event is reported at most once. New folders are watched as soon as they appear; files that were
in them before that are not reported.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from contextlib import suppress
from pathlib import Path

MODIFY, MOVED_TO, CREATE, DELETE = 0x2, 0x80, 0x100, 0x200
IS_FOLDER = 0x40000000
HEADER = struct.Struct("iIII")


class FolderEvents:
    """Changes below `root`, which must exist, as paths relative to it."""

    def __init__(self, root: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._root = root
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(
                ctypes.get_errno(), "inotify refused to start. Raise fs.inotify.max_user_instances."
            )
        self._folders: dict[int, Path] = {}
        self._waiting: list[str] = []
        self._watch(root)

    def __enter__(self) -> FolderEvents:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def next(self, timeout_s: float) -> str | None:
        """The next change. None if there is none within `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while not self._waiting:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                return None
            self._read()
        return self._waiting.pop(0)

    def forget(self) -> None:
        """Drop the changes that happened until now."""
        with suppress(BlockingIOError):
            while True:
                self._read()
        self._waiting.clear()

    def _read(self) -> None:
        data = os.read(self._fd, 1 << 16)
        at = 0
        while at < len(data):
            watch, mask, _, size = HEADER.unpack_from(data, at)
            name = (
                data[at + HEADER.size : at + HEADER.size + size]
                .rstrip(b"\0")
                .decode("utf-8", "surrogateescape")
            )
            at += HEADER.size + size
            folder = self._folders.get(watch)
            if folder is None or not name:
                continue
            if mask & IS_FOLDER and mask & (CREATE | MOVED_TO):
                self._watch(folder / name)
            self._waiting.append(str((folder / name).relative_to(self._root)))

    def _watch(self, folder: Path) -> None:
        number = self._libc.inotify_add_watch(
            self._fd, os.fsencode(folder), MODIFY | MOVED_TO | CREATE | DELETE
        )
        if number < 0:
            return  # the folder was deleted meanwhile
        self._folders[number] = folder
        with suppress(OSError):
            for inner in folder.iterdir():
                if inner.is_dir():
                    self._watch(inner)
