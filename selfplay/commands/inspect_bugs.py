"""`selfplay inspect-bugs`: the bugs of a run, one bug, the rejections, or bugs as tasks or tables of data."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path

from selfplay.commands.choices import check_known, chosen_run
from selfplay.commands.screens import has_screen
from selfplay.curriculum.bug_filter import BugFilter
from selfplay.curriculum.store import Store
from selfplay.errors import UsageError
from selfplay.evaluation.tasks import export_tasks
from selfplay.viewing.bug_page import show_bug
from selfplay.viewing.filter_text import since, solve_rates
from selfplay.viewing.inspect import print_csv, select_bugs, show_bugs
from selfplay.viewing.rejections import show_rejected, show_rejections
from selfplay.viewing.tables import output_console


@dataclass(frozen=True)
class BugRequest:
    """What to show: one bug, the rejections, an export of tasks, or else the list of bugs.

    solve_rate, since: as they were typed; they complete `wanted`.
    """

    bug: str | None
    rejected: bool
    tasks: Path | None
    wanted: BugFilter
    rejected_by: str | None = None
    solve_rate: str | None = None
    since: str | None = None
    as_csv: bool = False
    plain: bool = False


def inspect_run(run: str, runs: Path, request: BugRequest, *, as_json: bool = False) -> None:
    """Show or export what was asked for. Raises UsageError for options or names that do not fit."""
    request = completed(request, time.time())
    check_options(request, as_json)
    request.wanted.check()
    folder = chosen_run(run, runs)
    is_export = as_json or request.as_csv or request.tasks is not None
    with closing(Store.open(folder.database, writer=False)) as store:
        check_names(store, request)
        if is_export or request.rejected or not has_screen(request.plain):
            print_bugs(store, folder.path, request, as_json)
            return
    show_screen(folder.database, request)


def print_bugs(store: Store, folder: Path, request: BugRequest, as_json: bool) -> None:
    from selfplay.orchestrator.run_folder import RunFolder

    wanted, console = request.wanted, output_console()
    if request.tasks is not None:
        count = export_tasks(store, select_bugs(store, wanted), RunFolder(folder), request.tasks)
        console.print(
            f"{count} task(s) written to {request.tasks}. Next: selfplay eval --tasks {request.tasks}"
        )
    elif request.bug is not None:
        show_bug(store, request.bug, console, as_json=as_json)
    elif request.rejected:
        show_rejections(store, console, as_json=as_json)
    elif request.rejected_by is not None:
        show_rejected(store, request.rejected_by, wanted.limit, console, as_json=as_json)
    elif request.as_csv:
        print_csv(store, wanted, sys.stdout)
    else:
        show_bugs(store, wanted, console, as_json=as_json)


def show_screen(database: Path, request: BugRequest) -> None:
    """The list, one bug, or the rejected artifacts on a full screen."""
    from selfplay.viewing.screens.base import view
    from selfplay.viewing.screens.bug_screen import BugScreen
    from selfplay.viewing.screens.list_screen import BugsScreen, EpisodesScreen

    if request.bug is not None:
        with closing(Store.open(database, writer=False)) as store:
            bug_id = store.bug(request.bug).bug_id
        view(lambda: BugScreen(database, [bug_id], bug_id))
    elif (check := request.rejected_by) is not None:
        view(lambda: EpisodesScreen.of_rejections(database.parent, check))
    else:
        view(lambda: BugsScreen(database, request.wanted))


def completed(request: BugRequest, now: float) -> BugRequest:
    """The request with the filter that `solve_rate` and `since` stand for. Raises UsageError."""
    wanted = request.wanted
    if request.solve_rate is not None:
        low, high = solve_rates(request.solve_rate)
        wanted = replace(wanted, min_solve_rate=low, max_solve_rate=high)
    if request.since is not None:
        update, at = since(request.since, now)
        wanted = replace(wanted, since_update=update, since=at)
    return replace(request, wanted=wanted)


def check_options(request: BugRequest, as_json: bool = False) -> None:
    """Raise UsageError for options of which one would be ignored."""
    given = (
        ("--bug", request.bug is not None),
        ("--rejected", request.rejected),
        ("--rejected-by", request.rejected_by is not None),
        ("--tasks", request.tasks is not None),
    )
    shown = [name for name, is_given in given if is_given]
    if len(shown) > 1:
        raise UsageError(f"{' and '.join(shown)} ask for different things; give one of them.")
    if request.as_csv and (shown or as_json):
        raise UsageError(f"--csv prints the list of bugs; leave out {shown[0] if shown else '--json'}.")
    filters = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(BugFilter)
        if getattr(request.wanted, field.name) != field.default
    ]
    if shown == ["--rejected-by"]:
        filters = [name for name in filters if name != "--limit"]
    if filters and shown and shown != ["--tasks"]:
        raise UsageError(f"{', '.join(filters)} selects from the list of bugs. Leave it out with {shown[0]}.")


def check_names(store: Store, request: BugRequest) -> None:
    """Raise UsageError, with the names that there are, for a repository, strategy or check that the run
    lacks.
    """
    wanted = request.wanted
    if wanted.repository is not None and not store.bug_page(BugFilter(repository=wanted.repository), 0, 1):
        names = [row.name for row in store.environments()] + store.names_of_bugs("repository")
        check_known("--repository", wanted.repository, names)
    if wanted.strategy is not None:
        check_known("--strategy", wanted.strategy, store.names_of_bugs("strategy"))
    if request.rejected_by is not None:
        check_known("--rejected-by", request.rejected_by, store.failed_checks())
