"""The bugs of a run as a list: a table, JSON or CSV. `bug_page` has one bug in full.

Only reads the store, a page at a time. Invariant: text that the policy wrote is shown as visible text, never
as markup, terminal codes or formulas, since the policy is not trusted.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TextIO

from rich.console import Console
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.curriculum.bug_filter import BugFilter as BugFilter
from selfplay.curriculum.rows import BugRow
from selfplay.curriculum.store import Store
from selfplay.viewing.changes import change_text, place_text
from selfplay.viewing.duplicates import duplicates_text
from selfplay.viewing.shell import inspect_command
from selfplay.viewing.tables import Column, Listing, print_note

PAGE = 200  # bugs that a screen reads at a time
MOST_LISTED = 1000  # lines of a table without --limit
STEP = 2000  # bugs that an export reads at a time
COUNTED = 20_000  # with more bugs the duplicates are not counted for the table: each verdict is read
BUG_COLUMNS = (
    Column("bug"),
    Column("repository", rank=4, least=12),
    Column("function", rank=2, least=12),
    Column("change", rank=3, least=18),
    Column("strategy", rank=8),
    Column("order", rank=6, right=True),
    Column("status", rank=5),
    Column("solved", right=True),
    Column("tests", rank=7, right=True),
    Column("update", rank=9, right=True),
)
CSV_COLUMNS = (
    "bug_id",
    "repository",
    "place",
    "change",
    "strategy",
    "order",
    "status",
    "solve_rate",
    "repairs",
    "attempts",
    "fail_to_pass",
    "pass_to_pass",
    "created_update",
    "created_at",
    "parent_bug_id",
    "injector_episode_id",
)


def bugs_of(store: Store, wanted: BugFilter) -> Iterator[BugRow]:
    """The bugs that pass the filter, sorted, at most its limit. Raises UsageError for an unknown sort key.

    They are read a part at a time, in one transaction: a run that goes on playing changes nothing.
    """
    wanted.check()
    with store.transaction():
        first, left = 0, wanted.limit if wanted.limit is not None else sys.maxsize
        while left > 0 and (page := store.bug_page(wanted, first, min(STEP, left))):
            yield from page
            first, left = first + len(page), left - len(page)


def select_bugs(store: Store, wanted: BugFilter) -> list[BugRow]:
    return list(bugs_of(store, wanted))


def show_bugs(store: Store, wanted: BugFilter, console: Console, as_json: bool = False) -> None:
    """Print a table of the bugs that pass the filter. JSON goes to stdout, without styles."""
    if as_json:
        print_json(store, wanted, sys.stdout)
        return
    shown = store.bug_page(wanted, 0, wanted.limit or MOST_LISTED)
    fitting, everything = store.count_bugs(wanted), store.count_bugs()
    if not shown:
        why = inspect_command(store.run_folder, " --rejected")
        hint = (
            f"none of the {everything} bug(s) fits."
            if everything
            else f"no artifact was accepted yet; to see why: {why}"
        )
        console.print(Text(f"No bugs: {hint}"), soft_wrap=True)
        return
    console.print(Listing(BUG_COLUMNS, listed_bugs(store, shown)), highlight=False)
    count = f"{len(shown)} of {fitting} bugs" if len(shown) < fitting else f"{fitting} bug(s)"
    count += "; --limit shows more" if wanted.limit is None and len(shown) < fitting else ""
    duplicates = f"{text} of bugs. " if everything <= COUNTED and (text := duplicates_text(store)) else ""
    note = (
        f"{count}. {duplicates}solved: repairs/attempts of all measurements. "
        "tests: fail-to-pass + pass-to-pass."
    )
    print_note(console, note, inspect_command(store.run_folder, f" --bug {shown[0].bug_id}"))


def listed_bugs(store: Store, bugs: Sequence[BugRow]) -> list[dict[str, str]]:
    """The texts of BUG_COLUMNS for each bug."""
    counts = store.solved([bug.bug_id for bug in bugs])
    rows = []
    for bug in bugs:
        passes, graded = counts.get(bug.bug_id, (bug.passes, bug.attempts))
        diff = bug.attempt_patch or bug.artifact.get("bug_inject.diff", "")
        rows.append(
            {
                "bug": bug.bug_id,
                "repository": bug.repository,
                "function": place_text(bug.target, diff),
                "change": change_text(diff),
                "strategy": bug.strategy,
                "order": str(bug.order),
                "status": bug.status,
                "solved": f"{passes}/{graded}" if bug.solve_rate is not None else "–",
                "tests": f"{len(bug.fail_to_pass)}+{len(bug.pass_to_pass)}",
                "update": str(bug.created_update),
            }
        )
    return rows


# ---- exports


def print_json(store: Store, wanted: BugFilter, output: TextIO) -> None:
    """A JSON list of the bugs, written while they are read."""
    separator = "["
    for bug in bugs_of(store, wanted):
        output.write(f"{separator}\n{json.dumps(asdict(bug), indent=2)}")
        separator = ","
    output.write("[]\n" if separator == "[" else "\n]\n")


def print_csv(store: Store, wanted: BugFilter, output: TextIO) -> None:
    """CSV_COLUMNS of the bugs. `fail_to_pass` and `pass_to_pass` are counts of tests."""
    writer = csv.DictWriter(output, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for bug in bugs_of(store, wanted):
        writer.writerow({name: _cell(value) for name, value in _csv_values(bug).items()})


def _csv_values(bug: BugRow) -> Mapping[str, object]:
    diff = bug.attempt_patch or bug.artifact.get("bug_inject.diff", "")
    given = {name: getattr(bug, name) for name in CSV_COLUMNS if hasattr(bug, name)}
    return {
        **given,
        "place": place_text(bug.target, diff),
        "change": change_text(diff),
        "repairs": bug.passes,
        "fail_to_pass": len(bug.fail_to_pass),
        "pass_to_pass": len(bug.pass_to_pass),
    }


def _cell(value: object) -> object:
    """Text that no spreadsheet takes for a formula, and no terminal for a code."""
    if not isinstance(value, str):
        return value
    shown = make_harmless(value)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@", "\t", "\n")) else shown
