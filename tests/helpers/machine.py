"""What tests ask of their machine: a sandbox backend that works, what is left behind, and time to wait."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from process_tree import is_alive
from selfplay.errors import PrerequisiteError
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend


def open_or_skip(kind: str, cache: Path | None = None) -> SandboxBackend:
    """The backend of this kind. If it cannot run here, the test is skipped with the reason."""
    try:
        return open_backend(kind, cache)[0]
    except PrerequisiteError as missing:
        pytest.skip(str(missing))


def eventually(claim: Callable[[], bool], within_s: float = 20.0, every_s: float = 0.02) -> bool:
    """True if `claim` returns true within `within_s` seconds. It is called every `every_s` seconds."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if claim():
            return True
        time.sleep(every_s)
    return claim()


def all_end(pids: Iterable[int]) -> bool:
    """True if all these processes end within 20 s."""
    return eventually(lambda: not any(map(is_alive, pids)))


def sandbox_groups(owner: int | None = None) -> list[Path]:
    """The control groups of the open sandboxes of a process. owner: its id; None means this process."""
    name = re.compile(rf"selfplay-.*-{owner or os.getpid()}-.*")
    # Other processes' groups may vanish during the walk: os.walk skips them, Path.glob raises.
    return [
        Path(at, folder)
        for at, folders, _ in os.walk("/sys/fs/cgroup")
        for folder in folders
        if name.fullmatch(folder)
    ]
