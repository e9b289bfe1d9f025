"""Read-only folders of this machine as layers: an overlay of its own for each sandbox, and device files.

A plain bind shows the folder's own inodes. What one sandbox reads can then be watched in all others, and what
the harness reads too. An overlay has inodes of its own over the same contents. Invariant: the overlays are in
a mount namespace that only one start sees. So nothing has to be unmounted, and a killed harness leaves an
empty folder at most.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

NEW_MOUNTS = CLONE_NEWNS = 0x20000
OWN_FOLDER = CLONE_FS = 0x200  # the thread's working directory is its own
READ_ONLY, NO_SETUID, NO_DEVICES, RECURSIVE, SLAVE = 1, 2, 4, 0x4000, 1 << 19
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
DEV = "/dev"
EMPTY = "empty"  # an overlay without a writable layer needs a second one


class Layers:
    """Mounts overlays for one start of a sandbox. Every method runs in the same thread, and no other."""

    def __init__(self) -> None:
        """Raises OSError where this process may not mount."""
        self._stage = Path(_stage())
        _call("unshare", OWN_FOLDER)
        self._home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    @contextmanager
    def mounted(self, folders: Mapping[str, str]) -> Iterator[None]:
        """While this is open, this thread and what it starts see an overlay of each folder.

        folders: folder -> where `places` puts its overlay. For DEV it is a folder of new device files.
        Raises OSError.
        """
        self._stage.mkdir(exist_ok=True)  # `doctor --clean` removes it after a day
        try:
            _call("unshare", NEW_MOUNTS)
            _mount("none", "/", "", RECURSIVE | SLAVE, "")
            if folders:
                self._mount_all(folders)
            yield
        finally:
            _call("setns", self._home, NEW_MOUNTS)

    def _mount_all(self, folders: Mapping[str, str]) -> None:
        """Relative names of links, so that the table of mounts in a sandbox names no path of this machine."""
        _mount("none", str(self._stage), "tmpfs", NO_SETUID | NO_DEVICES, "mode=755,size=64k")
        os.chdir(self._stage)
        Path(EMPTY).mkdir()
        for folder, place in folders.items():
            name = Path(place).name
            Path(name).mkdir()
            if folder == DEV:
                _mount("none", name, "tmpfs", NO_SETUID, "mode=755,size=64k")
                for device, numbers in DEVICES.items():
                    os.mknod(f"{name}/{device}", stat.S_IFCHR, os.makedev(*numbers))
                    Path(name, device).chmod(0o666)
                continue
            Path(f"of-{name}").symlink_to(folder)
            options = f"lowerdir=of-{name}:{EMPTY}"
            _mount("overlay", name, "overlay", READ_ONLY | NO_SETUID | NO_DEVICES, options)


def places(folders: Sequence[str]) -> dict[str, str]:
    """Folder -> where `Layers.mounted` mounts its overlay."""
    return {folder: f"{_stage()}/{number}" for number, folder in enumerate(dict.fromkeys(folders))}


@cache
def can_layer() -> bool:
    """Whether overlays can be mounted here: as root, with an overlay file system in the kernel."""
    works: list[bool] = []

    def try_it() -> None:
        with suppress(OSError):
            found = places(["/usr", DEV])
            with Layers().mounted(found), Path(found[DEV], "zero").open("rb") as device:
                works.append(device.read(1) == b"\0" and Path(found["/usr"], "bin").exists())

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return works == [True]


@cache
def _stage() -> str:
    """An empty folder. What is mounted on it is only seen in the namespace of one start."""
    folder = tempfile.mkdtemp(prefix="selfplay-")
    Path(folder).chmod(0o755)
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child, which has the same function to call
        with suppress(OSError):
            Path(folder).rmdir()


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    _call("mount", *(os.fsencode(text) for text in (source, target, kind)), flags, options.encode())


def _call(name: str, *arguments: int | bytes) -> None:
    """Call a function of the C library that answers 0. Raises OSError."""
    given = [
        ctypes.c_ulong(part) if name == "mount" and isinstance(part, int) else part for part in arguments
    ]
    if getattr(_libc(), name)(*given):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
