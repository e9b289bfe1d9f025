"""Chooses the server of each request. A conversation stays with its server, which has it in its prefix cache.

New conversations go by rendezvous hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016).
Invariant: no server has more of our requests than its bound.
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
_SLACK = 1.25  # a server gets the conversations that hash to it up to this multiple of the mean load
_MAX_CONVERSATIONS = 1 << 16  # whose server is remembered; the least recently used ones are forgotten first


def conversation_of(tag: str) -> str:
    """Return role/group/member of a turn's tag: turns of one conversation share a growing prompt."""
    return tag.rpartition("/")[0] or tag


def group_of(conversation: str) -> str:
    """Return role/group: its conversations begin with the same prompt."""
    return conversation.rpartition("/")[0] or conversation


def rendezvous(key: str, names: Sequence[str]) -> list[str]:
    """Return `names` in the key's own order.

    Adding or removing a name does not change the order of the others.
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{key}\x1f{name}".encode()).digest(), reverse=True)


def choose(key: str, loads: Mapping[str, float]) -> str:
    """Return the first server in the key's order whose load is not far above the mean.

    This keeps a group's members together.
    """
    max_load = _SLACK * (sum(loads.values()) + 1) / len(loads)
    return next(name for name in rendezvous(key, list(loads)) if loads[name] < max_load)


class Router(Generic[Server]):
    """Gives servers to threads, which wait while the server has no free slot."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._servers: dict[str, Server] = {}
        self._in_flight: dict[str, int] = {}
        self._foreign: dict[str, float] = {}  # requests that a server has from other callers
        self._homes: OrderedDict[str, str] = OrderedDict()  # conversation -> name of its server
        self._failure: EngineError | None = None
        self._changed = threading.Condition()

    def add(self, name: str, server: Server) -> None:
        with self._changed:
            self._servers[name] = server
            self._in_flight.setdefault(name, 0)
            self._failure = None
            self._changed.notify_all()

    def remove(self, name: str, server: Server) -> bool:
        """Send no new requests there. Returns False if this server was removed before."""
        with self._changed:
            if self._servers.get(name) is not server:
                return False
            del self._servers[name]
            self._foreign.pop(name, None)
            self._homes = OrderedDict((key, home) for key, home in self._homes.items() if home != name)
            self._changed.notify_all()
            return True

    def fail(self, error: EngineError) -> None:
        """Raise `error` in all threads that wait while there is no server."""
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
        """Note a server's own count of running and waiting requests, those of other callers included."""
        with self._changed:
            self._foreign[name] = max(0.0, requests - self._in_flight.get(name, 0))

    @contextmanager
    def slot(self, conversation: str, deadline_s: float) -> Iterator[Server]:
        """Take a slot of the conversation's server for one request.

        Waits while it is full, and raises EngineError at the deadline.
        """
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
                    in_flight = sum(self._in_flight.values())
                    raise EngineError(
                        f"no server had a free slot within {deadline_s:g} s ({len(self._servers)} server(s), "
                        f"{in_flight} requests in flight). Raise engine.request_timeout_s or engine.servers."
                    )

    def _home(self, conversation: str) -> str:
        home = self._homes.get(conversation)
        if home is None:
            loads = {name: self._in_flight[name] + self._foreign.get(name, 0.0) for name in self._servers}
            home = choose(group_of(conversation), loads)
        self._homes[conversation] = home
        self._homes.move_to_end(conversation)
        if len(self._homes) > _MAX_CONVERSATIONS:
            self._homes.popitem(last=False)
        return home
