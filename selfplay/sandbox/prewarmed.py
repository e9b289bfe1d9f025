"""Sandboxes that stand ready: opened ahead, of the specs asked for last, each handed out once.

Leaves what a sandbox is to a backend. Invariant: who opens one gets one that nobody has used, alive when it is handed out.
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

EMPTY_BYTES = 1 << 16  # nobody has put anything into the workspace of one that waits


class PrewarmedSandboxes:
    """A `SandboxBackend` in front of another, with up to `count` sandboxes ahead. To be closed.

    Each that is handed out is replaced by one of the same spec in a thread of its own; those of the spec that was not asked for the
    longest make room. What dies while it waits was nobody's fault and is not handed out.
    """

    def __init__(self, backend: SandboxBackend, count: int) -> None:
        self.name = backend.name
        self._backend = backend
        self._count = count
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, list[tuple[Sandbox, ExitStack]]] = (
            OrderedDict()
        )  # by spec, the one asked for last at the end
        self._is_closed = False
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="ready-sandboxes")

    # ---- handing out

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        key = "" if spec.network or spec.writable_env else json.dumps(asdict(spec), sort_keys=True)
        with ExitStack() as stack:
            sandbox = self._take(key, stack) or stack.enter_context(self._backend.open(spec))
            if key:
                self._replace(key, spec)
            yield sandbox

    def _take(self, key: str, stack: ExitStack) -> Sandbox | None:
        """One that waits and lives; `stack` closes it."""
        while True:
            with self._lock:
                if not self._waiting.get(key):
                    return None
                sandbox, closing = self._waiting[key].pop()
            try:
                sandbox.read_archive(
                    WORKSPACE, EMPTY_BYTES
                )  # an answer, without the cost of starting a process
            except (SandboxError, ArtifactError):
                closing.close()
                continue
            stack.push(closing)
            return sandbox

    def _replace(self, key: str, spec: SandboxSpec) -> None:
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
            return  # who asks next meets it, and tells
        with self._lock:
            leaving = [closing]
            if not self._is_closed:
                self._waiting.setdefault(key, []).append((sandbox, closing))
                leaving = self._surplus()
        for left in leaving:
            left.close()

    def _surplus(self) -> list[ExitStack]:
        leaving = []
        while sum(map(len, self._waiting.values())) > self._count:
            oldest = next(key for key, waiting in self._waiting.items() if waiting)
            leaving.append(self._waiting[oldest].pop(0)[1])
        return leaving

    @property
    def waiting(self) -> int:
        """How many stand ready now."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def settle(self) -> None:
        """Return when what was ordered stands ready."""
        self._opener.submit(lambda: None).result()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            waiting = [closing for entries in self._waiting.values() for _, closing in entries]
            self._waiting.clear()
        for closing in waiting:
            closing.close()
        self._opener.shutdown(cancel_futures=True)

    # ---- what the backend does

    def check(self) -> None:
        self._backend.check()

    def sweep(self) -> list[str]:
        return self._backend.sweep()

    def environment_exists(self, key: str) -> bool:
        return self._backend.environment_exists(key)

    def environment_reference(self, key: str) -> str:
        return self._backend.environment_reference(key)

    def build_environment(self, key: str, script: str, timeout_s: float, log: Path) -> str:
        return self._backend.build_environment(key, script, timeout_s, log)


@contextmanager
def prewarmed_sandboxes(backend: SandboxBackend, count: int) -> Iterator[SandboxBackend]:
    """`backend` with up to `count` sandboxes ahead; as it is for 0."""
    if not count:
        yield backend
        return
    ready = PrewarmedSandboxes(backend, count)
    try:
        yield ready
    finally:
        ready.close()
