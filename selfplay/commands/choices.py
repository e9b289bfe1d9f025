"""What a person chose on the command line: a run, and names that must exist in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import typer

from selfplay.errors import UsageError
from selfplay.orchestrator.run_folder import RunFolder, open_run


def chosen_run(name: str, root: Path) -> RunFolder:
    """The run with this name, else the newest. That one is named on stderr, as nobody chose it."""
    run = open_run(name, root)
    if not name:
        typer.echo(f"Run {run.path.name}, the newest in {root}", err=True)
    return run


def check_known(option: str, name: str | int | None, known: Iterable[str | int]) -> None:
    """Raise UsageError, with the names that there are, if `name` is none of them. None was not given."""
    names = sorted(set(known) - {""}, key=lambda value: (isinstance(value, str), value))
    if name is None or name in names:
        return
    texts = [str(value) for value in names]
    close = difflib.get_close_matches(str(name), texts, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UsageError(f"{option} {name!r}: this run has {', '.join(texts) or 'none yet'}.{hint}")
