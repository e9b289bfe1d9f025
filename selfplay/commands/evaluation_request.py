"""What was typed for `selfplay eval`, and the bar that shows its progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True)
class EvaluationRequest:
    """What was typed.

    sources: names of frozen sets, files of task records, or folders of data sets. output: None keeps nothing.
    clones: a folder of clones that need not be fetched. predictions: a file of patches to grade in place of
    playing. cluster: the address of a Ray cluster that plays.
    """

    sources: Sequence[str]
    limit: int = 0
    attempts: int = 4
    greedy: bool = True
    output: Path | None = None
    clones: Path | None = None
    predictions: Path | None = None
    cluster: str | None = None


def progress_bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)
