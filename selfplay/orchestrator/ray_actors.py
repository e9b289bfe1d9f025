"""What runs on the nodes of a Ray cluster: the classes that one machine runs too, behind the few methods that their other halves call.

Leaves choosing nodes, deadlines and blame to `ray_cluster`. Invariant: what an actor started ends with it.
"""

from __future__ import annotations

import fcntl
import os
import queue
import socket
import struct
from pathlib import Path

from selfplay.training.rank_link import PipeLink

_WAIT_S = 1.0  # of one look for messages
_SIOCGIFADDR = 0x8915


class RankActor:
    """The process of one trainer rank on this node; `PipeLink` does the work. The end of the actor closes the pipe, which ends the process."""

    def __init__(self, log: str, address: str) -> None:
        """address: of this node, as the other ranks reach it."""
        file = Path(log)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._messages: queue.Queue[bytes | None] = queue.Queue(maxsize=2)  # weights must not pile up here
        name = interface_of(address)
        given = {} if not name or "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": name}
        self._link = PipeLink(file, self._messages.put, given)

    def pid(self) -> int:
        return self._link.pid

    def send(self, message: bytes) -> None:
        self._link.send(message)

    def receive(self) -> list[bytes | None]:
        """What the rank said since, in order; waits a little for it. None ends it."""
        found: list[bytes | None] = []
        try:
            found.append(self._messages.get(timeout=_WAIT_S))
            while True:
                found.append(self._messages.get_nowait())
        except queue.Empty:
            return found

    def ended(self) -> str:
        return self._link.ended()

    def tail(self) -> str:
        return self._link.tail()

    def kill(self) -> None:
        self._link.kill()

    def wait(self) -> None:
        self._link.wait()


def interface_of(address: str) -> str:
    """The network interface that has this IPv4 address, "" where none has: gloo would take the host name's, which may be another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(told[20:24]) == address:
                return name
    return ""
