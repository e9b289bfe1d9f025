"""What tests ask of the machine they run on: a backend that works here, or else a skip; what is left on it; and patience."""

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
    """The backend of this kind; the test is skipped, with the reason, where it cannot run."""
    try:
        return open_backend(kind, cache)[0]
    except PrerequisiteError as missing:
        pytest.skip(str(missing))


def eventually(claim: Callable[[], bool], within_s: float = 20.0, every_s: float = 0.02) -> bool:
    """Whether `claim` comes true in time; it is asked every so often."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if claim():
            return True
        time.sleep(every_s)
    return claim()


def all_end(pids: Iterable[int]) -> bool:
    """Whether none of them runs any more, or soon."""
    return eventually(lambda: not any(map(is_alive, pids)))


def sandbox_groups(owner: int | None = None) -> list[Path]:
    """The control groups of the sandboxes that a process, this one unless told, has open."""
    name = re.compile(rf"selfplay-.*-{owner or os.getpid()}-.*")
    # os.walk passes over a folder that goes while it is read, as other processes' groups do; Path.glob raises.
    return [
        Path(at, folder)
        for at, folders, _ in os.walk("/sys/fs/cgroup")
        for folder in folders
        if name.fullmatch(folder)
    ]
