"""Where measurements go: a MetricSink takes flat rows. `metrics.sinks` names them (see selfplay/parts.py).

A sink is made from the run's folder. docs/metrics.md names every metric. Invariant: no sink loses or alters a
row, but for TensorBoard and Weights & Biases, which keep no empty values. metrics.jsonl is always written,
since a resumed run reads it.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from selfplay import parts
from selfplay.errors import PrerequisiteError

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


class TensorBoardSink:
    """Numbers as scalars and texts as texts, at the update they belong to."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, row: Mapping[str, Value]) -> None:
        step = step_of(row)
        for name, value in row.items():
            if isinstance(value, str):
                self._writer.add_text(name, value, step)
            elif value is not None and name not in STEPS:
                self._writer.add_scalar(name, float(value), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """A row for each update and evaluation, at the update they belong to."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, row: Mapping[str, Value]) -> None:
        values = {name: value for name, value in row.items() if value is not None}
        self._run.log(values, step=step_of(row))

    def close(self) -> None:
        self._run.finish()


STEPS = ("update", "evaluation")


def step_of(row: Mapping[str, Value]) -> int:
    """The update that a row measures, or after which an evaluation was played."""
    return int(next((row[name] for name in STEPS if name in row), 0) or 0)


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


def open_tensorboard(run: Path) -> MetricSink:
    """`tensorboard/` in the run's folder. Raises PrerequisiteError without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _not_installed("tensorboard") from error
    writer: Any = SummaryWriter  # its methods have no types
    return TensorBoardSink(writer(str(run / "tensorboard")))


def open_wandb(run: Path) -> MetricSink:
    """A run of Weights & Biases in the project `selfplay` (WANDB_PROJECT). A resumed run continues it.

    Its files are in the run's folder, its id in `wandb-id`. Raises PrerequisiteError without the package, and
    without an account unless WANDB_MODE is offline: the package would ask for a key and wait.
    """
    try:
        import wandb
    except ImportError as error:
        raise _not_installed("wandb") from error
    is_offline = os.environ.get("WANDB_MODE", "") in ("offline", "disabled", "dryrun")
    if not is_offline and not wandb.login(prompt=False):
        raise PrerequisiteError(
            "metrics.sinks names 'wandb', and nobody is logged in. Run `wandb login`, or set "
            "WANDB_MODE=offline and upload later with `wandb sync`."
        )
    file = run / "wandb-id"
    if not file.is_file():
        file.write_text(secrets.token_hex(8), encoding="utf-8")
    config = run / "config.json"
    return WandbSink(
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", "selfplay"),
            name=run.name,
            id=file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(run),
            config=json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {},
        )
    )


def _not_installed(name: str) -> PrerequisiteError:
    return PrerequisiteError(
        f"metrics.sinks names {name!r}, and the package {name} is not installed. Install it with: "
        f"pip install 'selfplay-swe[{name}]'. Or leave {name!r} out."
    )
