"""Prints the curriculum of a run, as text or as JSON: its bugs, and one bug with its lineage.

Only reads the store. Invariant: text that the policy wrote is shown as visible text, never as markup or
terminal codes, since the policy is not trusted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree

from selfplay.agent.observations import make_harmless
from selfplay.curriculum.lineage import lineage, root
from selfplay.curriculum.rows import BUG_STATUSES, AttemptRow, BugRow
from selfplay.curriculum.store import BUG_ORDERS, Store
from selfplay.errors import UsageError
from selfplay.verdicts.confirmation import Confirmation
from selfplay.viewing.changes import change_text, diffstat, place_text
from selfplay.viewing.duplicates import duplicates_text
from selfplay.viewing.episode_record import attempt_json
from selfplay.viewing.frames import diff_or_text
from selfplay.viewing.shell import inspect_command
from selfplay.viewing.tables import Column, Listing, print_note, shown_text, table

if TYPE_CHECKING:
    import networkx as nx

MAX_TESTS = 20
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


@dataclass(frozen=True)
class BugFilter:
    """Which bugs to list, in which order, and how many. None means any, or all.

    A bound on the solve rate leaves out bugs without a solve rate.
    """

    repository: str | None = None
    strategy: str | None = None
    order: int | None = None
    status: str | None = None
    min_solve_rate: float | None = None
    max_solve_rate: float | None = None
    sort: str = "created"
    reverse: bool = False
    limit: int | None = None


def select_bugs(store: Store, wanted: BugFilter) -> list[BugRow]:
    """The bugs that pass the filter, sorted; all of them, whatever the limit.

    Raises UsageError for an unknown sort key or status.
    """
    if wanted.sort not in BUG_ORDERS:
        raise UsageError(f"--sort {wanted.sort!r}: choose one of {', '.join(BUG_ORDERS)}.")
    if wanted.status is not None and wanted.status not in BUG_STATUSES:
        raise UsageError(f"--status {wanted.status!r}: choose one of {', '.join(BUG_STATUSES)}.")
    bugs = store.bugs(wanted.status, wanted.repository, wanted.order, wanted.strategy, wanted.sort)
    if wanted.reverse:
        bugs.reverse()
    low, high = wanted.min_solve_rate, wanted.max_solve_rate
    if low is None and high is None:
        return bugs
    return [
        bug
        for bug in bugs
        if bug.solve_rate is not None
        and (low is None or bug.solve_rate >= low)
        and (high is None or bug.solve_rate <= high)
    ]


def show_bugs(store: Store, wanted: BugFilter, console: Console, as_json: bool = False) -> None:
    """Print a table of the bugs that pass the filter. JSON goes to stdout, without styles."""
    bugs = select_bugs(store, wanted)
    if as_json:
        print(json.dumps([asdict(bug) for bug in bugs[: wanted.limit]], indent=2))
        return
    if not bugs:
        everything = store.bugs()
        why = inspect_command(store.run_folder, " --rejected")
        hint = (
            f"none of the {len(everything)} bug(s) fits."
            if everything
            else f"no artifact was accepted yet; to see why: {why}"
        )
        console.print(Text(f"No bugs: {hint}"), soft_wrap=True)
        return
    shown = bugs[: wanted.limit]
    console.print(Listing(BUG_COLUMNS, _bug_rows(store, shown)), highlight=False)
    count = f"{len(shown)} of {len(bugs)} bugs" if len(shown) < len(bugs) else f"{len(bugs)} bug(s)"
    duplicates = f"{text} of bugs. " if (text := duplicates_text(store)) else ""
    note = (
        f"{count}. {duplicates}solved: repairs/attempts of all measurements. "
        "tests: fail-to-pass + pass-to-pass."
    )
    print_note(console, note, inspect_command(store.run_folder, f" --bug {bugs[0].bug_id}"))


def _bug_rows(store: Store, bugs: Iterable[BugRow]) -> list[dict[str, str]]:
    """The texts of BUG_COLUMNS for each bug."""
    counts = _graded(store.attempts())
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


def show_bug(store: Store, bug_id: str, console: Console, as_json: bool = False) -> None:
    """Print one bug in full. `bug_id` may be the start of an id.

    Raises StoreError if no bug or several match.
    """
    bug = store.bug(bug_id)
    attempts = store.attempts(bug.bug_id)
    family = lineage(store, bug.bug_id)
    if as_json:
        edges = [
            {"parent": a, "child": b, "attempt": family.edges[a, b]["attempt"]}
            for a, b in sorted(family.edges)
        ]
        data = {**asdict(bug), "attempts": [attempt_json(attempt) for attempt in attempts], "lineage": edges}
        print(json.dumps({**data, "task": bug.task_record()}, indent=2))
        return
    console.rule(shown_text(bug.bug_id), align="left")
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(bug, attempts):
        facts.add_row(Text(name, style="dim"), shown_text(value))
    console.print(facts, highlight=False)
    for name in ("bug_inject.diff", "test_weaken.diff"):
        _section(console, f"{name}: {_MEANING[name]}")
        console.print(
            Padding(diff_or_text(name, bug.artifact.get(name, "(none)")), (0, 0, 0, 2)), highlight=False
        )
    if bug.attempt_patch:
        _section(console, f"the failed repair that became this bug, {bug.parent_episode_id}")
        console.print(Padding(diff_or_text("attempt.diff", bug.attempt_patch), (0, 0, 0, 2)), highlight=False)
    for title, tests in (("fail to pass", bug.fail_to_pass), ("pass to pass", bug.pass_to_pass)):
        _section(console, f"{title}: {len(tests)}")
        _list(console, tests)
    if bug.failure:
        _section(console, "how it fails")
        console.print(Padding(shown_text(bug.failure.rstrip()), (0, 0, 0, 2)), highlight=False)
    _section(console, f"attempts: {len(attempts)}")
    _show_attempts(console, attempts)
    _section(console, "lineage")
    console.print(Padding(_lineage_tree(family, bug.bug_id), (0, 0, 0, 2)), highlight=False)


_MEANING = {"bug_inject.diff": "breaks the code", "test_weaken.diff": "hides the bug from the tests"}


def _graded(attempts: Iterable[AttemptRow]) -> dict[str, tuple[int, int]]:
    """Bug id -> (repairs, graded attempts), of all groups that played the bug."""
    found: dict[str, list[bool]] = defaultdict(list)
    for attempt in attempts:
        if attempt.passed is not None:
            found[attempt.bug_id].append(attempt.passed)
    return {bug_id: (sum(passed), len(passed)) for bug_id, passed in found.items()}


def _solve_rate(bug: BugRow, attempts: Iterable[AttemptRow]) -> str:
    """The latest measurement and, if there were several, the first one and all attempts together."""
    if bug.solve_rate is None:
        return "not measured"
    text = f"{bug.solve_rate:.2f}, {bug.passes} of {bug.attempts} attempts"
    passes, graded = _graded(attempts).get(bug.bug_id, (bug.passes, bug.attempts))
    if graded == bug.attempts:
        return text
    first = "" if bug.first_solve_rate is None else f"; {bug.first_solve_rate:.2f} in the first"
    return f"{text}, in the latest measurement{first}; {passes} of {graded} in all"


def _facts(bug: BugRow, attempts: Iterable[AttemptRow]) -> list[tuple[str, str]]:
    created = datetime.fromtimestamp(bug.created_at).isoformat(" ", "seconds")
    facts = [
        ("repository", f"{bug.repository} at {bug.base_commit[:12]}"),
        ("strategy", bug.strategy),
        ("target", _target_name(bug.target)),
        ("order", "1, injected" if bug.order == 1 else "2, made from a failed repair"),
        ("status", bug.status),
        ("solve rate", _solve_rate(bug, attempts)),
        ("played", f"by {bug.plays} group(s)"),
        ("change", diffstat(bug.artifact.get("bug_inject.diff", ""))),
        ("weakening", diffstat(bug.artifact.get("test_weaken.diff", ""))),
        ("injected by", bug.injector_episode_id),
        ("created", f"{created}, update {bug.created_update}"),
    ]
    return [(name, value) for name, value in facts if value]


def _target_name(target: str) -> str:
    """`path:name` of a target in its JSON form. Other text is returned as it is."""
    try:
        read = json.loads(target)
        return f"{read['path']}:{read['name']}"
    except (json.JSONDecodeError, KeyError, TypeError):
        return target


def _show_attempts(console: Console, attempts: Iterable[AttemptRow]) -> None:
    shown = table("episode", "result", "reason", "restored", whole=("episode",))
    for attempt in attempts:
        result = {
            True: ("repaired", "green"),
            False: ("not repaired", "red"),
            None: ("not graded", "yellow"),
        }[attempt.passed]
        is_plain = attempt.confirmed in (Confirmation.NOT_NEEDED, Confirmation.CONFIRMED)
        again = "" if is_plain else f" ({attempt.confirmed.value})"
        shown.add_row(
            shown_text(attempt.episode_id),
            Text(result[0] + again, style=result[1]),
            shown_text(attempt.reason),
            shown_text(", ".join(attempt.restored)),
        )
    if shown.row_count:
        console.print(Padding(shown, (0, 0, 0, 2)), highlight=False)


def _lineage_tree(family: nx.DiGraph[str], shown_id: str) -> Tree:
    top = root(family)
    tree = Tree(_lineage_label(family, top, shown_id))
    branches = {top: tree}
    waiting = [top]
    while waiting:
        parent = waiting.pop(0)
        for child in sorted(family.successors(parent)):
            branches[child] = branches[parent].add(
                _lineage_label(family, child, shown_id, family.edges[parent, child]["attempt"])
            )
            waiting.append(child)
    return tree


def _lineage_label(family: nx.DiGraph[str], bug_id: str, shown_id: str, attempt: str = "") -> Text:
    bug: BugRow = family.nodes[bug_id]["bug"]
    rate = f", solve rate {bug.solve_rate:.2f}" if bug.solve_rate is not None else ""
    label = Text(make_harmless(bug_id), style="bold" if bug_id == shown_id else "")
    return label.append(
        f" ({bug.status}{rate})" + (f" from attempt {make_harmless(attempt)}" if attempt else ""),
        style="not bold dim",
    )


def _section(console: Console, title: str) -> None:
    console.print()
    console.print(Text(make_harmless(title), style="bold"), highlight=False)


def _list(console: Console, items: tuple[str, ...]) -> None:
    shown = [
        *items[:MAX_TESTS],
        *([f"… {len(items) - MAX_TESTS} more; --json lists all"] if len(items) > MAX_TESTS else []),
    ]
    console.print(Padding(Text("\n").join(shown_text(item) for item in shown), (0, 0, 0, 2)), highlight=False)
