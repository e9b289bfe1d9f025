"""What the orchestrator reports while it works.

`viewing.progress` shows it; tests may record it. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from selfplay.metrics import Value


def evaluation_time(update: int) -> str:
    """When an evaluation happens, in words. update: the last one before it; 0 for none."""
    return f"after update {update}" if update else "before the first update"


class Progress(Protocol):
    """Every method may be called from any thread."""

    def phase(self, name: str) -> None:
        """What the current update does now, for instance "training"."""

    def message(self, text: str) -> None:
        """Something that a person should read even later."""

    def episode_started(self, role: str) -> None: ...

    def episode_finished(self, role: str, finish: str) -> None: ...

    def tokens(self, count: int) -> None:
        """The policy generated `count` tokens in an episode that ended."""

    def artifact(self, accepted: bool, failed_check: str) -> None:
        """An artifact has its verdict. failed_check: "" if it was accepted."""

    def attempt(self, passed: bool | None) -> None:
        """A repair attempt has its grade; None if the machine failed."""

    def evaluating(self, done: int, total: int) -> None: ...

    def evaluated(self, update: int, row: Mapping[str, Value]) -> None:
        """An evaluation ended. row: its metrics."""

    def update_finished(self, update: int, row: Mapping[str, Value]) -> None:
        """An update is committed. row: its metrics."""
