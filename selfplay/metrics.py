"""Where measurements go: a MetricSink takes flat rows. `metrics.sinks` names them (see selfplay/parts.py).

A sink is made from the run's folder. Invariant: no sink loses or alters a row. metrics.jsonl is always
written, since a resumed run reads it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from selfplay import parts

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


class CsvSink:
    """One line a value: update or evaluation, its number, the metric's name, the value.

    Rows have different metrics.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        # A kill can leave an empty file: rows are flushed after the first update.
        if self._file.tell() == 0:
            self._writer.writerow(["kind", "number", "name", "value"])

    def write(self, row: Mapping[str, Value]) -> None:
        kind = "update" if "update" in row else "evaluation"
        for name, value in row.items():
            if name != kind:
                self._writer.writerow([kind, row.get(kind), name, value])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


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


def open_sinks(names: Sequence[str], run: Path) -> MetricSink:
    """The sinks that `metrics.sinks` names, as one. run: the run's folder."""
    return Fanout([parts.call("metrics.sinks", name, run) for name in names])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, without lines that are not whole: a killed run may leave one."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows


def open_jsonl(run: Path) -> MetricSink:
    """metrics.jsonl in the run's folder."""
    return JsonlSink(run / "metrics.jsonl")


def open_csv(run: Path) -> MetricSink:
    """metrics.csv in the run's folder."""
    return CsvSink(run / "metrics.csv")
