"""The way to one rank's process: whole messages there and back, how it ended, the end of its log. Reads no message.

`PipeLink` is the one for this machine; `orchestrator/ray_cluster.py` puts the same class on other nodes. Invariant: after the last message
one None is heard, and a process whose link is gone ends.
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
    """Made by `RankLinks.open`. What the rank says goes to `hear`, from a thread of the link's own; None once it has ended."""

    where: str  # its log, as a person finds it
    seat: tuple[
        int, ...
    ]  # which GPU of those it sees, and how many ranks share its machine; (): its number, and all

    @property
    def pid(self) -> int:
        """On its own machine."""
        ...

    def send(self, message: bytes) -> None:
        """Never waits; that a rank is gone is heard."""
        ...

    def ended(self) -> str:
        """How the process ended, "" while it runs."""
        ...

    def tail(self) -> str:
        """The end of its log, "" where that cannot be had."""
        ...

    def kill(self) -> None: ...

    def wait(self) -> None:
        """Returns once no process is left, if need be by force."""
        ...


class RankLinks(Protocol):
    """Where ranks run. `host`: this process, as they reach it."""

    host: str

    def open(self, number: int, log: Path, hear: Hear) -> RankLink: ...


class PipeLink:
    """A process on this machine. Threads of its own read and write, so that a process that stands still blocks nobody."""

    seat: tuple[int, ...] = ()

    def __init__(self, log: Path, hear: Hear, environment: Mapping[str, str]) -> None:
        """environment: on top of this process' own."""
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
        with contextlib.suppress(OSError):  # a rank that is gone is found by its reader
            while (message := self._outbox.get()) is not None:
                self._connection.send_bytes(message)
                del message  # weights must not stay here until the next call

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
            thread.join(2)  # its other end is closed now
        self._connection.close()


class PipeLinks:
    """All ranks on this machine, which meet on its loopback interface."""

    host = "127.0.0.1"

    def open(self, number: int, log: Path, hear: Hear) -> PipeLink:
        return PipeLink(log, hear, {} if "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": "lo"})
