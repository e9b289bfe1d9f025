"""Which server a request goes to. A conversation stays with its server, whose prefix cache holds it; a new one goes where there is room.

Bounded loads by rendezvous hashing (Mirrokni, Thorup, Zadimoghaddam 2016). Invariant: no server has more requests of ours than its bound.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from selfplay.errors import EngineError

Server = TypeVar("Server")
_SLACK = 1.25  # how far above the mean a server may be loaded to get the conversations that hash to it
_REMEMBERED = 1 << 16  # conversations; those that were quiet longest are forgotten first


def conversation_of(tag: str) -> str:
    """role/group/member of a turn's tag: what shares a growing prompt."""
    return tag.rpartition("/")[0] or tag


def group_of(conversation: str) -> str:
    """role/group: conversations that begin with the same prompt."""
    return conversation.rpartition("/")[0] or conversation


def rendezvous(key: str, names: Sequence[str]) -> list[str]:
    """`names`, best first: each key has its own order, which a name's coming or going does not change for the others."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{key}\x1f{name}".encode()).digest(), reverse=True)


def choose(key: str, loads: Mapping[str, float]) -> str:
    """The first server in the key's order that is not loaded far above the mean; so the members of a group keep together."""
    most = _SLACK * (sum(loads.values()) + 1) / len(loads)
    return next(name for name in rendezvous(key, list(loads)) if loads[name] < most)


class Router(Generic[Server]):
    """Hands out servers by name; threads wait for a place in one."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._servers: dict[str, Server] = {}
        self._in_flight: dict[str, int] = {}
        self._foreign: dict[str, float] = {}  # what a server says it holds beyond our requests
        self._homes: OrderedDict[str, str] = OrderedDict()
        self._failure: EngineError | None = None
        self._changed = threading.Condition()

    def add(self, name: str, server: Server) -> None:
        with self._changed:
            self._servers[name] = server
            self._in_flight.setdefault(name, 0)
            self._failure = None
            self._changed.notify_all()

    def remove(self, name: str, server: Server) -> bool:
        """No new request goes there. False when this server is gone already."""
        with self._changed:
            if self._servers.get(name) is not server:
                return False
            del self._servers[name]
            self._foreign.pop(name, None)
            self._homes = OrderedDict((key, home) for key, home in self._homes.items() if home != name)
            self._changed.notify_all()
            return True

    def fail(self, error: EngineError) -> None:
        """Those who wait while there is no server are told why there will be none."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def servers(self) -> dict[str, Server]:
        with self._changed:
            return dict(self._servers)

    def wait_until_idle(self, deadline_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not any(self._in_flight.values()), deadline_s)

    def report(self, name: str, requests: float) -> None:
        """What a server says of itself: all it runs and lets wait, other callers' requests included."""
        with self._changed:
            self._foreign[name] = max(0.0, requests - self._in_flight.get(name, 0))

    @contextmanager
    def place(self, conversation: str, deadline_s: float) -> Iterator[Server]:
        """A place in the conversation's server, for one request; waits while it is full. Raises EngineError when there is no server."""
        name, server = self._enter(conversation, deadline_s)
        try:
            yield server
        finally:
            with self._changed:
                self._in_flight[name] -= 1
                self._changed.notify_all()

    def _enter(self, conversation: str, deadline_s: float) -> tuple[str, Server]:
        end = time.monotonic() + deadline_s
        with self._changed:
            while True:
                if self._servers:
                    name = self._home(conversation)
                    if self._in_flight[name] < self._bound:
                        self._in_flight[name] += 1
                        return name, self._servers[name]
                elif self._failure is not None:
                    raise type(self._failure)(str(self._failure)) from self._failure
                if not self._changed.wait(max(0.0, end - time.monotonic())):
                    state = (
                        f"{len(self._servers)} server(s), {sum(self._in_flight.values())} requests in flight"
                    )
                    raise EngineError(
                        f"no place in a server within {deadline_s:g} s ({state}). Raise engine.request_timeout_s or servers."
                    )

    def _home(self, conversation: str) -> str:
        home = self._homes.get(conversation)
        if home is None:
            loads = {name: self._in_flight[name] + self._foreign.get(name, 0.0) for name in self._servers}
            home = choose(group_of(conversation), loads)
        self._homes[conversation] = home
        self._homes.move_to_end(conversation)
        if len(self._homes) > _REMEMBERED:
            self._homes.popitem(last=False)
        return home
