"""The connection to one rank's process: messages in both directions, how it ended, the end of its log.

It does not read messages. `PipeLink` is for this machine; `cluster/ray_ranks.py` runs the same class on other
nodes. Invariants: after the last message comes one None; a process whose link is gone ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Protocol

_TAIL_BYTES = 4000

Hear = Callable[[bytes | None], None]


class RankLink(Protocol):
    """Made by `RankLinks.open`. A thread of it passes the rank's messages to `hear`, and None after its end.

    where: its log, as a person finds it.
    seat: index of its GPU among those it sees, and the number of ranks on its machine. (): all ranks share
    one machine and all GPUs, and the index is the rank.
    """

    where: str
    seat: tuple[int, ...]

    @property
    def pid(self) -> int:
        """Process id on its own machine."""
        ...

    def send(self, message: bytes) -> None:
        """Queue a message and return at once. If the rank is gone, `hear` gets None."""
        ...

    def ended(self) -> str:
        """Return how the process ended, or "" while it runs."""
        ...

    def tail(self) -> str:
        """Return the end of its log, or "" if it cannot be read."""
        ...

    def kill(self) -> None: ...

    def wait(self) -> None:
        """Wait until the process has ended. Kills it if that takes too long."""
        ...


class RankLinks(Protocol):
    """Where ranks run. host: address of this process, as the ranks reach it."""

    host: str

    def open(self, number: int, log: Path, hear: Hear) -> RankLink: ...


class PipeLink:
    """A process on this machine. Two threads read and write, so that a process that hangs blocks nobody."""

    seat: tuple[int, ...] = ()

    def __init__(self, log: Path, hear: Hear, environment: Mapping[str, str]) -> None:
        """environment: variables besides those of this process."""
        self.where = str(log)
        self._log, self._hear = log, hear
        self._connection, theirs = Pipe()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "selfplay.training.ranks.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            )
        theirs.close()
        self._reader = threading.Thread(target=self._read, name=f"{log.stem}-reader", daemon=True)
        self._reader.start()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name=f"{log.stem}-writer", daemon=True)
        self._writer.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: bytes) -> None:
        self._outbox.put(message)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the reader notices that a rank is gone
            while (message := self._outbox.get()) is not None:
                self._connection.send_bytes(message)
                del message  # frees the samples before the next call

    def _read(self) -> None:
        try:
            while True:
                self._hear(self._connection.recv_bytes())
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._hear(None)

    def ended(self) -> str:
        code = self._process.poll()
        if code is None:
            return ""
        if code >= 0:
            return f"ended with status {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    def tail(self) -> str:
        try:
            return self._log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace").strip()
        except OSError:
            return ""

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._outbox.put(None)
        for thread in (self._reader, self._writer):
            thread.join(2)  # both end, since the process has closed its side
        self._connection.close()


class PipeLinks:
    """All ranks on this machine, connected over its loopback interface."""

    host = "127.0.0.1"

    def open(self, number: int, log: Path, hear: Hear) -> PipeLink:
        return PipeLink(log, hear, {} if "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": "lo"})
