"""What runs on the nodes of a Ray cluster: the classes that one machine runs too, behind the few methods that their other halves call.

Leaves choosing nodes, deadlines and blame to `ray_cluster`. Invariant: what an actor started ends with it.
"""

from __future__ import annotations

import fcntl
import os
import queue
import shutil
import socket
import struct
import time
from pathlib import Path

from selfplay.engines.vllm_launch import Launch, check_installed
from selfplay.engines.vllm_servers import OwnServer, sweep
from selfplay.sandbox.owners import abandoned, unique_name
from selfplay.training.ranks.link import PipeLink

_WAIT_S = 1.0  # of one look for messages
_SIOCGIFADDR = 0x8915
_MEMORY = Path("/dev/shm")
_SENT = "-sent"


class RankActor:
    """The process of one trainer rank on this node; `PipeLink` does the work. The end of the actor closes its pipe."""

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


class ServerActor:
    """One vLLM server on this node; `OwnServer` does the work."""

    def __init__(self, name: str, launch: Launch) -> None:
        self._name, self._launch = name, launch
        self._closed = False
        self._server: OwnServer | None = None
        for left in _MEMORY.glob(f"selfplay-*{_SENT}"):
            if abandoned(left.name):  # a killed actor's: memory that nobody else would free
                shutil.rmtree(left, ignore_errors=True)
        self._folder = _MEMORY / f"{unique_name()}{_SENT}"

    def start(self) -> str:
        """Its URL once it answers. Raises EngineError."""
        check_installed()
        sweep()
        self._server = OwnServer(self._name, self._launch, lambda: self._closed)
        return self._server.client.url

    def is_running(self) -> bool:
        """Waits a little before it answers that all is well."""
        end = time.monotonic() + _WAIT_S
        while self._server is not None and self._server.is_running:
            if time.monotonic() > end:
                return True
            time.sleep(0.1)
        return False

    def log_tail(self) -> str:
        return self._server.log_tail() if self._server is not None else ""

    def take(self, version: str, name: str, data: bytes) -> str:
        """One more piece of a file of `version`; the first lets go of every other version. Returns the folder."""
        folder = self._folder / version
        if not folder.is_dir():
            shutil.rmtree(self._folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
        with (folder / name).open("ab") as file:
            file.write(data)
        return str(folder)

    def close(self) -> None:
        self._closed = True
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)


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
