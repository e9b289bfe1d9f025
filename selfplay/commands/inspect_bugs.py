"""`selfplay inspect-bugs`: the bugs of a run, one bug, the rejections, or bugs as tasks."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path

from selfplay.commands.choices import check_known, chosen_run
from selfplay.curriculum.store import Store
from selfplay.errors import UsageError
from selfplay.evaluation.tasks import export_tasks
from selfplay.viewing.inspect import BugFilter, select_bugs, show_bug, show_bugs
from selfplay.viewing.rejections import show_rejections
from selfplay.viewing.tables import output_console


@dataclass(frozen=True)
class BugRequest:
    """What to show: one bug, the rejections, an export of tasks, or else the list of bugs."""

    bug: str | None
    rejected: bool
    tasks: Path | None
    wanted: BugFilter


def inspect_run(run: str, runs: Path, request: BugRequest, *, as_json: bool = False) -> None:
    """Show or export what was asked for. Raises UsageError for options or names that do not fit."""
    wanted = request.wanted
    check_options(request)
    folder = chosen_run(run, runs)
    console = output_console()
    with closing(Store.open(folder.database, writer=False)) as store:
        check_names(store, wanted)
        if request.tasks is not None:
            bugs = select_bugs(store, wanted)[: wanted.limit]
            count = export_tasks(store, bugs, folder, request.tasks)
            console.print(
                f"{count} task(s) written to {request.tasks}. Next: selfplay eval --tasks {request.tasks}"
            )
        elif request.bug is not None:
            show_bug(store, request.bug, console, as_json=as_json)
        elif request.rejected:
            show_rejections(store, console, as_json=as_json)
        else:
            show_bugs(store, wanted, console, as_json=as_json)


def check_options(request: BugRequest) -> None:
    """Raise UsageError for options of which one would be ignored."""
    given = (
        ("--bug", request.bug is not None),
        ("--rejected", request.rejected),
        ("--tasks", request.tasks is not None),
    )
    shown = [name for name, is_given in given if is_given]
    if len(shown) > 1:
        raise UsageError(f"{' and '.join(shown)} ask for different things; give one of them.")
    filters = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(BugFilter)
        if getattr(request.wanted, field.name) != field.default
    ]
    if filters and shown in (["--bug"], ["--rejected"]):
        raise UsageError(f"{', '.join(filters)} selects from the list of bugs. Leave it out with {shown[0]}.")


def check_names(store: Store, wanted: BugFilter) -> None:
    """Raise UsageError, with the names that there are, for a repository or strategy that the run lacks."""
    groups, bugs = store.groups(), store.bugs()
    repositories = [row.name for row in store.environments()] + [bug.repository for bug in bugs]
    strategies = [group.strategy for group in groups] + [bug.strategy for bug in bugs]
    check_known("--repository", wanted.repository, repositories)
    check_known("--strategy", wanted.strategy, strategies)
