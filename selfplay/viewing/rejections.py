"""Prints why artifacts of a run were rejected, as a table or as JSON: each check with an example."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.curriculum.rows import VerdictRow
from selfplay.curriculum.store import Store
from selfplay.verdicts.verdict import VerdictKind, verdict_kind
from selfplay.viewing.duplicates import duplicates_text
from selfplay.viewing.episode_record import recorded_verdict
from selfplay.viewing.shell import replay_command
from selfplay.viewing.tables import Column, Listing, print_note, shown_text, table

REJECTED_COLUMNS = (
    Column("episode"),
    Column("repository", rank=2, least=12),
    Column("strategy", rank=3),
    Column("update", rank=4, right=True),
    Column("reason", rank=1, least=20),
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
    """The flaky tests of a stored verdict. Older versions lack the keys."""
    for check in recorded_verdict(verdict)["checks"]:
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
        example = shown_text(rejection.example_episode), shown_text(rejection.example_reason)
        name = f"{rejection.check} (flaky)" if rejection.kind == "flaky" else rejection.check
        shown.add_row(shown_text(name), str(rejection.count), *example)
    console.print(shown, highlight=False)
    total = sum(rejection.count for rejection in found)
    note = f"{total} of {judged} artifacts were rejected."
    print_note(console, note, replay_command(store.run_folder, found[0].example_episode))


# ---- the artifacts that one check rejected


def rejected_rows(store: Store, check: str) -> list[dict[str, str]]:
    """The texts of REJECTED_COLUMNS for each artifact that this check rejected, the newest last."""
    return [
        {
            "episode": row["episode_id"],
            "repository": row["repository"],
            "strategy": row["strategy"],
            "update": str(row["update"]),
            "reason": row["reason"],
        }
        for row in store.rejected(check)
    ]


def show_rejected(
    store: Store, check: str, limit: int | None, console: Console, as_json: bool = False
) -> None:
    """Print the artifacts that one check rejected, the newest `limit` or all. JSON goes to stdout."""
    found = rejected_rows(store, check)
    shown = found[-limit:] if limit is not None else found
    if as_json:
        print(json.dumps(shown, indent=2))
        return
    if not shown:
        console.print(Text(f"{make_harmless(check)} rejected no artifact."))
        return
    console.print(Listing(REJECTED_COLUMNS, shown), highlight=False)
    count = f"{len(shown)} of {len(found)}" if len(shown) < len(found) else str(len(found))
    note = f"{count} artifact(s) that {make_harmless(check)} rejected."
    print_note(console, note, replay_command(store.run_folder, shown[-1]["episode"]))
