"""`selfplay inspect-bugs`: which options go together, and which names a filter takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from selfplay.curriculum.store import Store
from selfplay.errors import UsageError
from selfplay.viewing.inspect import BugFilter


def check_options(wanted: BugFilter, bug: str | None, rejected: bool, tasks: Path | None) -> None:
    """Raise UsageError for options of which one would be ignored."""
    given = (("--bug", bug is not None), ("--rejected", rejected), ("--tasks", tasks is not None))
    shown = [name for name, is_given in given if is_given]
    if len(shown) > 1:
        raise UsageError(f"{' and '.join(shown)} ask for different things; give one of them.")
    filters = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(BugFilter)
        if getattr(wanted, field.name) != field.default
    ]
    if filters and shown in (["--bug"], ["--rejected"]):
        raise UsageError(f"{', '.join(filters)} selects from the list of bugs. Leave it out with {shown[0]}.")


def check_names(store: Store, wanted: BugFilter) -> None:
    """Raise UsageError, with the names that there are, for a repository or strategy that the run lacks."""
    groups, bugs = store.groups(), store.bugs()
    repositories = [row.name for row in store.environments()] + [bug.repository for bug in bugs]
    strategies = [group.strategy for group in groups] + [bug.strategy for bug in bugs]
    _check("--repository", wanted.repository, repositories)
    _check("--strategy", wanted.strategy, strategies)


def _check(option: str, name: str | None, known: Iterable[str]) -> None:
    names = sorted(set(known) - {""})
    if name is None or name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UsageError(f"{option} {name!r}: this run has {', '.join(names) or 'none yet'}.{hint}")
