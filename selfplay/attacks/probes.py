"""Helpers of several modules of attacks: a listening socket, this machine's addresses, the check of a canary.

Invariant: nothing here connects to another machine.
"""

from __future__ import annotations

import shlex
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selfplay.attacks.base import Broken, Held, Outcome

METADATA_SERVICE = ("169.254.169.254", 80)


def python(code: str, *arguments: str) -> str:
    """The shell command that runs Python code with these arguments."""
    return f"python3 -c {shlex.quote(code)} {shlex.join(arguments)}"


def ran(canary: Path, how: str) -> Outcome:
    """Broken if the canary exists. how: what the harness did, for the evidence."""
    return Broken(f"{how} ran a program on the host") if canary.exists() else Held("nothing was run")


@contextmanager
def listening(
    family: socket.AddressFamily, address: str | tuple[str, int]
) -> Iterator[tuple[socket.socket, list[str]]]:
    """Open a socket on this machine. Yields it and a list, to which each caller's address is added."""
    callers: list[str] = []
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()

        def answer() -> None:
            with suppress(OSError):
                while True:
                    caller, where = listener.accept()
                    callers.append(str(where))
                    caller.close()

        threading.Thread(target=answer, daemon=True).start()
        yield listener, callers
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def own_addresses() -> list[str]:
    """Addresses where a sandbox could reach this machine: loopback, an engine's bridge, its own address."""
    found = ["127.0.0.1", "172.17.0.1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chooser, suppress(OSError):
        chooser.connect(("192.0.2.1", 9))  # sends nothing
        found.append(chooser.getsockname()[0])
    return found
