"""The process of one rank: reads calls for its worker from an inherited connection, and answers on it.

The controller handles deadlines and errors. Invariant: the process ends when the connection ends, whatever
the rank is doing.
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

# Messages are pickled: (name, arguments) of a call to the rank, and (kind, value) back. Kinds:
PROGRESS, ITEM, DONE, FAILED, WHERE = "progress", "item", "done", "failed", "where"
ENDED = "ended"  # never sent: the reader's own kind for the end of a connection


class RankProcess:
    """Runs calls one after another in the main thread. A second thread reads the connection."""

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
            except BaseException as error:  # the controller decides what follows
                import traceback

                traceback.print_exc()
                text = str(error) if _known(error) else f"{type(error).__name__}: {error}"
                self._send(FAILED, (_known(error), text))
            if name == "close":
                return

    def _call(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "join":
            module, _, worker = arguments[0].partition(":")
            # Importing torch and DeepSpeed takes seconds.
            self._worker = getattr(importlib.import_module(module), worker)(*arguments[1:])
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
                if name == WHERE:  # this rank was silent: write all stacks to the log, answer the controller
                    faulthandler.dump_traceback(sys.stderr)
                    if self._sending.acquire(timeout=0.5):
                        self._sending.release()
                        self._send(WHERE, self._doing)
                else:
                    self._calls.put((name, arguments))
        except (EOFError, OSError):
            # The controller is gone. The main thread may wait in a collective for other ranks.
            os._exit(1)


def _known(error: BaseException) -> str:
    """Return the class name of an error that the controller raises again: a SelfplayError, or OSError."""
    if isinstance(error, SelfplayError):
        return type(error).__name__
    return "OSError" if isinstance(error, OSError) and not isinstance(error, ConnectionError) else ""


def main() -> None:
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the controller acts on Ctrl-C
    RankProcess(Connection(int(sys.argv[1]))).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # skips exit handlers of libraries, which wait for other ranks


if __name__ == "__main__":
    main()
