"""Sandboxes that are opened before anybody asks for them, so that opening one takes no time.

A backend opens them; this module only keeps them. Invariant: a sandbox is handed out once, unused, and only
after it has shown that it still works.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from selfplay.errors import ArtifactError, SandboxError
from selfplay.sandbox.base import WORKSPACE, Sandbox, SandboxBackend, SandboxSpec

EMPTY_BYTES = 1 << 16  # the workspace of an unused sandbox is empty


class PrewarmedSandboxes:
    """A `SandboxBackend` that keeps up to `count` unused sandboxes of another one open. Close it after use.

    Each call of `open` orders one more sandbox of its spec, which a thread of this object opens. When there
    are more than `count`, the oldest of the least recently requested spec is closed. A sandbox that dies
    unused is dropped silently, since no code of a user ran in it.
    """

    def __init__(self, backend: SandboxBackend, count: int) -> None:
        self.name = backend.name
        self.capabilities = backend.capabilities
        self._backend = backend
        self._count = count
        self._lock = threading.Lock()
        # Key of a spec -> its unused sandboxes; the most recently requested spec comes last.
        self._waiting: OrderedDict[str, list[tuple[Sandbox, ExitStack]]] = OrderedDict()
        self._is_closed = False
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="prewarmed-sandboxes")

    # ---- opening

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        key = "" if spec.network or spec.writable_env else json.dumps(asdict(spec), sort_keys=True)
        with ExitStack() as stack:
            sandbox = self._take(key, stack) or stack.enter_context(self._backend.open(spec))
            if key:
                self._order(key, spec)
            yield sandbox

    def _take(self, key: str, stack: ExitStack) -> Sandbox | None:
        """An unused sandbox that still works, None without one; `stack` closes it."""
        while True:
            with self._lock:
                if not self._waiting.get(key):
                    return None
                sandbox, closing = self._waiting[key].pop()
            try:
                # A request that starts no process, so it costs least.
                sandbox.read_archive(WORKSPACE, EMPTY_BYTES)
            except (SandboxError, ArtifactError):
                closing.close()
                continue
            stack.push(closing)
            return sandbox

    def _order(self, key: str, spec: SandboxSpec) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._waiting.setdefault(key, [])
            self._waiting.move_to_end(key)
            self._opener.submit(self._open_ahead, key, spec)

    def _open_ahead(self, key: str, spec: SandboxSpec) -> None:
        closing = ExitStack()
        try:
            sandbox = closing.enter_context(self._backend.open(spec))
        except SandboxError:
            return  # the next caller of `open` meets the same error and reports it
        with self._lock:
            surplus = [closing]
            if not self._is_closed:
                self._waiting.setdefault(key, []).append((sandbox, closing))
                surplus = self._take_surplus()
        for unneeded in surplus:  # without the lock, since closing takes time
            unneeded.close()

    def _take_surplus(self) -> list[ExitStack]:
        surplus = []
        while sum(map(len, self._waiting.values())) > self._count:
            least_recent = next(key for key, waiting in self._waiting.items() if waiting)
            surplus.append(self._waiting[least_recent].pop(0)[1])
        return surplus

    @property
    def waiting(self) -> int:
        """Number of unused sandboxes."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def settle(self) -> None:
        """Wait until all ordered sandboxes are open."""
        self._opener.submit(lambda: None).result()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            waiting = [closing for entries in self._waiting.values() for _, closing in entries]
            self._waiting.clear()
        for closing in waiting:
            closing.close()
        self._opener.shutdown(cancel_futures=True)

    # ---- calls to the backend

    def check(self) -> None:
        self._backend.check()

    def sweep(self) -> list[str]:
        return self._backend.sweep()

    def environment_exists(self, key: str) -> bool:
        return self._backend.environment_exists(key)

    def environment_reference(self, key: str) -> str:
        return self._backend.environment_reference(key)

    def build_environment(self, key: str, script: str, timeout_s: float, log: Path, python: str = "") -> str:
        asked = {"python": python} if python else {}
        return self._backend.build_environment(key, script, timeout_s, log, **asked)


@contextmanager
def prewarmed_sandboxes(backend: SandboxBackend, count: int) -> Iterator[SandboxBackend]:
    """`backend` with up to `count` prewarmed sandboxes; `backend` itself for 0."""
    if not count:
        yield backend
        return
    prewarmed = PrewarmedSandboxes(backend, count)
    try:
        yield prewarmed
    finally:
        prewarmed.close()
