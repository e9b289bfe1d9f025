"""Prints the curriculum of a run, as text or as JSON: its bugs, one bug with its lineage, rejected artifacts.

Only reads the store. Invariant: text that the policy wrote is shown as visible text, never as markup or
terminal codes, since the policy is not trusted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree

from selfplay.agent.observations import make_harmless
from selfplay.curriculum.lineage import lineage, root
from selfplay.curriculum.rows import BUG_STATUSES, AttemptRow, BugRow, VerdictRow
from selfplay.curriculum.store import BUG_ORDERS, Store
from selfplay.errors import UsageError
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.verdict import VerdictKind, verdict_kind
from selfplay.viewing.duplicates import duplicates_text
from selfplay.viewing.replay import diff_or_text
from selfplay.viewing.shell import inspect_command, replay_command
from selfplay.viewing.summary import table

if TYPE_CHECKING:
    import networkx as nx

MAX_TESTS = 20


@dataclass(frozen=True)
class BugFilter:
    """Which bugs to list. None means any. A bound on the solve rate leaves out bugs without a solve rate."""

    repository: str | None = None
    strategy: str | None = None
    order: int | None = None
    status: str | None = None
    min_solve_rate: float | None = None
    max_solve_rate: float | None = None
    sort: str = "created"


def select_bugs(store: Store, wanted: BugFilter) -> list[BugRow]:
    """The bugs that pass the filter, sorted. Raises UsageError for an unknown sort key or status."""
    if wanted.sort not in BUG_ORDERS:
        raise UsageError(f"--sort {wanted.sort!r}: choose one of {', '.join(BUG_ORDERS)}.")
    if wanted.status is not None and wanted.status not in BUG_STATUSES:
        raise UsageError(f"--status {wanted.status!r}: choose one of {', '.join(BUG_STATUSES)}.")
    bugs = store.bugs(wanted.status, wanted.repository, wanted.order, wanted.strategy, wanted.sort)
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
        print(json.dumps([asdict(bug) for bug in bugs], indent=2))
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
    counts = _graded(store.attempts())
    names = ("bug", "repository", "strategy", "order", "status", "solved", "tests", "update")
    shown = table(*names, right=("order", "solved", "tests", "update"), whole=("bug",))
    for bug in bugs:
        passes, graded = counts.get(bug.bug_id, (bug.passes, bug.attempts))
        rate = f"{passes}/{graded}" if bug.solve_rate is not None else "–"
        tests = f"{len(bug.fail_to_pass)}+{len(bug.pass_to_pass)}"
        texts = [
            _text(bug.bug_id),
            _text(bug.repository),
            _text(bug.strategy),
            Text(str(bug.order)),
            Text(bug.status),
        ]
        shown.add_row(*texts, rate, tests, str(bug.created_update))
    console.print(shown, highlight=False)
    duplicates = f"{text} of bugs. " if (text := duplicates_text(store)) else ""
    note = (
        f"{len(bugs)} bug(s). {duplicates}solved: repairs/attempts of all measurements. "
        "tests: fail-to-pass + pass-to-pass."
    )
    _note(console, note, inspect_command(store.run_folder, f" --bug {bugs[0].bug_id}"))


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
        data = {**asdict(bug), "attempts": [_attempt_json(attempt) for attempt in attempts], "lineage": edges}
        print(json.dumps({**data, "task": bug.task_record()}, indent=2))
        return
    console.rule(_text(bug.bug_id), align="left")
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(bug, attempts):
        facts.add_row(Text(name, style="dim"), _text(value))
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
        console.print(Padding(_text(bug.failure.rstrip()), (0, 0, 0, 2)), highlight=False)
    _section(console, f"attempts: {len(attempts)}")
    _show_attempts(console, attempts)
    _section(console, "lineage")
    console.print(Padding(_lineage_tree(family, bug.bug_id), (0, 0, 0, 2)), highlight=False)


def _attempt_json(attempt: AttemptRow) -> dict[str, Any]:
    """The row with `confirmed` as true, false, or null if no second grading was needed."""
    confirmed = {
        Confirmation.CONFIRMED: True,
        Confirmation.NOT_CONFIRMED: False,
        Confirmation.NOT_NEEDED: None,
    }
    return {**asdict(attempt), "confirmed": confirmed[attempt.confirmed]}


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


def diffstat(diff: str) -> str:
    """How many files and lines a diff changes: "2 file(s), +3 −1". "" if the text is not a diff."""
    from unidiff.errors import UnidiffParseError
    from unidiff.patch import PatchSet

    try:
        patch = PatchSet(diff)
    except UnidiffParseError:
        return ""
    return f"{len(patch)} file(s), +{patch.added} −{patch.removed}" if patch else ""


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
        again = " (not confirmed)" if attempt.confirmed is Confirmation.NOT_CONFIRMED else ""
        shown.add_row(
            _text(attempt.episode_id),
            Text(result[0] + again, style=result[1]),
            _text(attempt.reason),
            _text(", ".join(attempt.restored)),
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


@dataclass(frozen=True)
class Rejection:
    """How many artifacts one check rejected, and the latest one that has a reason, as an example.

    flaky_tests: tests whose outcome differed between equal runs, sorted. Empty unless kind is "flaky".
    """

    check: str
    count: int
    example_episode: str
    example_reason: str
    kind: VerdictKind = "invalid"
    flaky_tests: tuple[str, ...] = ()


def rejections(store: Store) -> list[Rejection]:
    """The rejections by check, the most frequent check first."""
    by_check = defaultdict(list)
    for verdict in store.verdicts(accepted=False):
        by_check[verdict.failed_check].append(verdict)
    found = []
    for check, some in by_check.items():
        example = next((verdict for verdict in reversed(some) if verdict.reason), some[-1])
        kind = verdict_kind(False, check)
        flaky = (
            sorted({test_id for verdict in some for test_id in _flaky_tests(verdict)})
            if kind == "flaky"
            else []
        )
        found.append(Rejection(check, len(some), example.episode_id, example.reason, kind, tuple(flaky)))
    return sorted(found, key=lambda rejection: (-rejection.count, rejection.check))


def _flaky_tests(verdict: VerdictRow) -> Iterable[str]:
    """The flaky tests of a stored verdict. Older versions keep only the list of checks, or lack the keys."""
    recorded = json.loads(verdict.checks_json)
    for check in recorded["checks"] if isinstance(recorded, dict) else recorded:
        for ids in check.get("evidence", {}).get("moved", {}).values():
            yield from ids


def show_rejections(store: Store, console: Console, as_json: bool = False) -> None:
    """Print how often each check rejected an artifact, with an example. JSON goes to stdout."""
    found = rejections(store)
    judged = len(store.verdicts())
    failures = len(store.failures())
    if as_json:
        listed = [asdict(rejection) for rejection in found]
        print(json.dumps({"judged": judged, "machine_failures": failures, "rejected": listed}, indent=2))
        return
    if failures:
        console.print(
            Text(
                f"The machine failed {failures} time(s). "
                "This rejects nothing: the work was tried again, or left out.",
                style="yellow",
            )
        )
    if duplicates := duplicates_text(store):
        console.print(Text(f"{duplicates}. They are no rejections: each repeats a bug of this run."))
    if not found:
        console.print(Text(f"None of {judged} judged artifact(s) was rejected."))
        return
    shown = table("check", "artifacts", "for instance", "", right=("artifacts",), whole=("for instance",))
    for rejection in found:
        example = _text(rejection.example_episode), _text(rejection.example_reason)
        name = f"{rejection.check} (flaky)" if rejection.kind == "flaky" else rejection.check
        shown.add_row(_text(name), str(rejection.count), *example)
    console.print(shown, highlight=False)
    total = sum(rejection.count for rejection in found)
    note = f"{total} of {judged} artifacts were rejected."
    _note(console, note, replay_command(store.run_folder, found[0].example_episode))


def _note(console: Console, note: str, command: str) -> None:
    """Print the note, then the command that shows one row in full. Commands are not wrapped, to be copied."""
    console.print(Text(f"{note} To see one in full:", style="dim"))
    console.print(Text(f"  {command}", style="cyan"), soft_wrap=True, highlight=False)


def _section(console: Console, title: str) -> None:
    console.print()
    console.print(Text(make_harmless(title), style="bold"), highlight=False)


def _list(console: Console, items: tuple[str, ...]) -> None:
    shown = [
        *items[:MAX_TESTS],
        *([f"… {len(items) - MAX_TESTS} more; --json lists all"] if len(items) > MAX_TESTS else []),
    ]
    console.print(Padding(Text("\n").join(_text(item) for item in shown), (0, 0, 0, 2)), highlight=False)


def _text(text: str) -> Text:
    return Text(make_harmless(text))
