"""Where measurements go: a MetricSink takes flat rows. JSONL always; others by name. No sink may lose or alter a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

Value = float | int | str | bool | None


class MetricSink(Protocol):
    def write(self, row: Mapping[str, Value]) -> None:
        """Take one row, for instance {"update": 3, "solver/reward": 0.25}."""
        ...

    def close(self) -> None: ...


class JsonlSink:
    """One JSON object a line, flushed per row, so that a killed run keeps what it measured."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Value]) -> None:
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class MemorySink:
    """Keeps rows in a list: for tests and for the summary of a run."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Value]] = []

    def write(self, row: Mapping[str, Value]) -> None:
        self.rows.append(dict(row))

    def close(self) -> None:
        pass


class Fanout:
    """Hands each row to several sinks."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, row: Mapping[str, Value]) -> None:
        for sink in self._sinks:
            sink.write(row)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
