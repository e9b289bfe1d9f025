"""The process of one rank: takes calls for its worker from a connection it inherited, answers on it, and ends with it.

Leaves deadlines and blame to `ranks`. Invariant: whatever the rank is doing, the end of the connection ends the process.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from selfplay.errors import SelfplayError

# What travels, pickled: calls (name, args) one way, (kind, value) the other, kind one of
PROGRESS, ITEM, DONE, FAILED, WHERE = "progress", "item", "done", "failed", "where"
ENDED = "ended"  # never sent: what a reader notes at the end of a connection


class RankProcess:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._calls: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue()
        self._doing = "starting"
        self._worker: Any = None

    def serve(self) -> None:
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        while True:
            name, arguments = self._calls.get()
            self._doing = name
            try:
                self._call(name, arguments)
            except (
                BaseException
            ) as error:  # every end of a call is told to the controller, which decides what follows
                import traceback

                traceback.print_exc()
                self._send(
                    FAILED,
                    (_known(error), str(error) if _known(error) else f"{type(error).__name__}: {error}"),
                )
            if name == "close":
                return

    def _call(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "join":
            module, _, worker = arguments[0].partition(":")
            self._worker = getattr(importlib.import_module(module), worker)(
                *arguments[1:]
            )  # torch, DeepSpeed: seconds
            self._worker.progress = self._progress
            self._send(DONE, None)
            return
        value = getattr(self._worker, name)(*arguments)
        if isinstance(value, Iterator):
            for item in value:
                if item:
                    self._send(ITEM, item)
            value = None
        self._send(DONE, value)

    def _progress(self, what: str) -> None:
        self._doing = what
        self._send(PROGRESS, what)

    def _send(self, kind: str, value: Any) -> None:
        message = pickle.dumps((kind, value), protocol=pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._connection.send_bytes(message)

    def _listen(self) -> None:
        try:
            while True:
                name, arguments = pickle.loads(self._connection.recv_bytes())
                if (
                    name == WHERE
                ):  # asked of a rank that is silent: the stacks go to its log, a word to the controller
                    faulthandler.dump_traceback(sys.stderr)
                    if self._sending.acquire(timeout=0.5):
                        self._sending.release()
                        self._send(WHERE, self._doing)
                else:
                    self._calls.put((name, arguments))
        except (EOFError, OSError):
            os._exit(
                1
            )  # the controller is gone; a collective that waits for other ranks must not keep this one


def _known(error: BaseException) -> str:
    """The class of an error that the controller raises as it is: ours, and a disk's."""
    if isinstance(error, SelfplayError):
        return type(error).__name__
    return "OSError" if isinstance(error, OSError) and not isinstance(error, ConnectionError) else ""


def main() -> None:
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to act on
    RankProcess(Connection(int(sys.argv[1]))).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # past the exit handlers of libraries that wait for other ranks


if __name__ == "__main__":
    main()
