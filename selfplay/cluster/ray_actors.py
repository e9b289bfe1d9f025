"""Ray actors for trainer ranks and rollout servers. They use the same classes as a run on one machine.

Choosing nodes is in `placement`; the run's side of these actors is in `ray_ranks` and `ray_servers`.
Invariant: what an actor started ends with it.
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

from selfplay import parts
from selfplay.engines.vllm_launch import Launch, check_installed
from selfplay.engines.vllm_servers import OwnServer, sweep
from selfplay.sandbox.owners import abandoned, unique_name
from selfplay.training.ranks.link import PipeLink

_WAIT_S = 1.0  # how long one call waits for news
_SIOCGIFADDR = 0x8915  # Linux: IPv4 address of an interface
_MEMORY = Path("/dev/shm")
_SENT = "-sent"


class RankActor:
    """Runs the process of one trainer rank on this node, through a `PipeLink`.

    Its pipe closes with the actor.
    """

    def __init__(self, log: str, address: str, parts_folder: str) -> None:
        """address: this node's address for the other ranks. parts_folder: where modules of one's own are."""
        file = Path(log)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Bounded, so that weights do not pile up here.
        self._messages: queue.Queue[bytes | None] = queue.Queue(maxsize=2)
        name = interface_of(address)
        is_set = "GLOO_SOCKET_IFNAME" in os.environ
        variables = {parts.FOLDER_VARIABLE: parts_folder}
        if name and not is_set:
            variables["GLOO_SOCKET_IFNAME"] = name
        self._link = PipeLink(file, self._messages.put, variables)

    def pid(self) -> int:
        return self._link.pid

    def send(self, message: bytes) -> None:
        self._link.send(message)

    def receive(self) -> list[bytes | None]:
        """The rank's messages since the last call, in order; waits up to _WAIT_S for one.

        The last message is None.
        """
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
    """Runs one vLLM server on this node, through an `OwnServer`."""

    def __init__(self, name: str, launch: Launch) -> None:
        self._name, self._launch = name, launch
        self._closed = False
        self._server: OwnServer | None = None
        for left in _MEMORY.glob(f"selfplay-*{_SENT}"):
            if abandoned(left.name):  # memory of a killed actor, which nobody else frees
                shutil.rmtree(left, ignore_errors=True)
        self._folder = _MEMORY / f"{unique_name()}{_SENT}"

    def start(self) -> str:
        """Start the server and return its URL once it answers. Raises EngineError."""
        check_installed()
        sweep()
        self._server = OwnServer(self._name, self._launch, lambda: self._closed)
        return self._server.client.url

    def is_running(self) -> bool:
        """False as soon as the server has ended; True after _WAIT_S otherwise."""
        end = time.monotonic() + _WAIT_S
        while self._server is not None and self._server.is_running:
            if time.monotonic() > end:
                return True
            time.sleep(0.1)
        return False

    def log_tail(self) -> str:
        return self._server.log_tail() if self._server is not None else ""

    def take(self, version: str, name: str, data: bytes) -> str:
        """Append a piece to the file `name` of `version` and return its folder.

        Other versions are deleted.
        """
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
    """The network interface with this IPv4 address; "" if none has it.

    Without it gloo would use the interface of the host name, which may be another one.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
