"""Prints repair rates and their differences as tables and sentences.

The figures come from `evaluation`; nothing is counted here. Invariant: a sentence claims a difference only
if the confidence interval shows one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.evaluation.comparison import compare, opposite_sets
from selfplay.evaluation.folder import MODES, Folder
from selfplay.evaluation.rates import timeouts_warning
from selfplay.evaluation.statistics import MIN_CHANGED
from selfplay.viewing.tables import Column, Listing

KINDS = {"sets": "set", "repositories": "repository"}


def percent(figures: Mapping[str, Any]) -> str:
    """`12.5% ± 3.1`: a rate and its standard error in percentage points.

    An error of 0 is left out: it only means that all bugs have the same rate, not that the rate is exact.
    """
    error = figures["standard_error"]
    return f"{figures['pass@1']:.1%}" + (f" ± {100 * error:.1f}" if error else "")


def points(row: Mapping[str, Any]) -> str:
    """`+3.1 (-6.0 to +12.2)`: a difference and its confidence interval, in percentage points."""
    interval = interval_text(row) if row["changed"] else ""
    return f"{100 * row['mean']:+.1f}" + (f" ({interval})" if interval else "")


def interval_text(row: Mapping[str, Any]) -> str:
    """`-6.0 to +12.2`, in percentage points, within ±100: no two rates differ by more.

    "" below MIN_CHANGED bugs. No difference can be shown from so few, and their interval is wider than any
    difference of rates.
    """
    if row["low"] is None or row["count"] < MIN_CHANGED:
        return ""
    low, high = max(-100.0, 100 * row["low"]), min(100.0, 100 * row["high"])
    return f"{low:+.1f} to {high:+.1f}"


def mode_name(mode: str, temperature: float | None) -> str:
    """temperature: None for predictions, which were not sampled here."""
    if temperature is None:
        return "predictions"
    return "greedy" if mode == "greedy" else f"T = {temperature:g}"


def _listing(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], narrow: Listing | None = None
) -> Listing:
    names = [column.name for column in columns]
    return Listing(columns, [dict(zip(names, row, strict=True)) for row in rows], narrow)


def _name(text: str) -> str:
    return text or "(none)"


# ---- rates of one policy


def show_rates(
    summary: Mapping[str, Any], console: Console, temperature: float | None, notes: Sequence[str] = ()
) -> None:
    """Print the tables of `selfplay eval`: one of the modes, one of k, then one by set and one by repository.

    The last two are left out if there is only one set or repository. temperature: None for predictions.
    """
    modes = [mode for mode in MODES if mode in summary]
    k = summary["k"]
    has_k = k > 1 and "sampled" in modes
    columns = [
        Column(""),
        Column("bugs", rank=4, right=True),
        Column("attempts", rank=3, right=True),
        Column("pass@1", right=True),
        *([Column(f"pass@{k}", right=True)] if has_k else []),
        Column("turns", rank=5, right=True),
        Column("tokens", rank=6, right=True),
        Column("seconds", rank=7, right=True),
    ]
    lines = []
    for mode in modes:
        row = summary[mode]["all"]
        at_k = [f"{row[f'pass@{k}']:.1%}" if f"pass@{k}" in row else "–"] if has_k else []
        means = (f"{row['turns']:.1f}", f"{row['tokens']:.0f}", f"{row['seconds']:.1f}")
        counts = str(row["tasks"]), str(row["attempts"])
        lines.append((mode_name(mode, temperature), *counts, percent(row), *at_k, *means))
    console.print(Text("Repair rate", style="bold"))
    head = _listing(columns, lines) if modes else Text("no attempt was judged")
    console.print(Padding(head, (0, 0, 1, 2)))
    if has_k:
        console.print(Padding(_table_of_k(summary["sampled"]["all"], k), (0, 0, 1, 2)))
    for kind, title in KINDS.items():
        names = sorted({name for mode in modes for name in summary[mode][kind]})
        if len(names) < 2:
            continue
        columns = [Column(title, least=12), Column("bugs", rank=1, right=True)]
        columns += [Column(mode_name(mode, temperature), right=True) for mode in modes]
        lines = []
        for name in names:
            rows = [summary[mode][kind].get(name) for mode in modes]
            tasks = str(max(row["tasks"] for row in rows if row))
            lines.append((_name(name), tasks, *(percent(row) if row else "–" for row in rows)))
        console.print(Padding(_listing(columns, lines), (0, 0, 1, 2)))
    if modes:
        console.print(
            "± is one standard error in points, clustered by bug; it cannot be estimated from one bug, or "
            "from bugs with equal rates. Turns, tokens and seconds are means per attempt."
        )
    if spoiled := summary["spoiled_by_the_machine"]:
        console.print(
            f"{spoiled} attempt(s) failed because of the machine and are not counted. "
            "To play them again, repeat the command."
        )
    if warning := timeouts_warning(summary):
        console.print(warning, highlight=False)
    for note in notes:
        console.print(Text(note), soft_wrap=True)


def _table_of_k(row: Mapping[str, Any], k: int) -> Listing:
    """pass@n and best@n for each n up to k."""
    names = "pass@k (any k attempts)", "best@k (the first k)"
    columns = [Column("k", right=True), *(Column(name, right=True) for name in names)]
    lines = [("1", f"{row['pass@1']:.1%}", "–")]
    for n in range(2, k + 1):
        found = (row.get(name) for name in (f"pass@{n}", f"best@{n}"))
        passed, best = ("–" if value is None else f"{value:.1%}" for value in found)
        lines.append((str(n), passed, best))
    return _listing(columns, lines)


def conditions_note(summary: Mapping[str, Any]) -> str:
    """How attempts were sampled, and what ended them."""
    found = summary["conditions"]
    return (
        f"Sampled at temperature {found['temperature']:g}, top_p {found['top_p']:g}; "
        f"at most {found['max_turns']} turns and {found['context_tokens']:,} tokens an attempt."
    )


def left_out_notes(summary: Mapping[str, Any], tasks: int) -> list[str]:
    """What was not played or not counted, a line for each task."""
    notes: list[str] = []
    if left_out := summary["left_out"]:
        notes.append(f"{len(left_out)} of {tasks} task(s) are left out:")
        notes += [f"  {make_harmless(name)}: {make_harmless(reason)}" for name, reason in left_out.items()]
    if not_counted := summary["not_counted"]:
        total = sum(map(len, not_counted.values()))
        notes.append(
            f"{total} test(s) of PASS_TO_PASS in {len(not_counted)} task(s) do not pass on the original here "
            f"and are not counted, for instance {make_harmless(next(iter(not_counted.values()))[0])[:120]}"
        )
    return notes


# ---- differences between two policies


def comparison_body(
    comparison: Mapping[str, Any], first: str, second: str, with_groups: bool = True
) -> RenderableType:
    """The rates of both policies, the differences with their intervals, and the verdict in words.

    first, second   how the columns of the two policies are headed
    with_groups     also one table by repository
    """
    parts: list[RenderableType] = []
    modes = [mode for mode in MODES if mode in comparison]
    temperature = comparison["temperature"]

    def table(title: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Listing:
        columns = [Column(title, least=12), Column("bugs", rank=1, right=True)]
        columns += [Column(name, right=True) for name in (first, second, "difference (95% CI)")]
        lines = [(_name(name), *_cells(row)) for name, row in rows]
        # Where the standard errors have no room, the rates stand without them.
        short = [[cell.partition(" ± ")[0] for cell in line] for line in lines]
        return _listing(columns, lines, narrow=_listing(columns, short))

    parts.append(table("", [(mode_name(mode, temperature), comparison[mode]["all"]) for mode in modes]))
    for kind, title in KINDS.items() if with_groups else (("sets", KINDS["sets"]),):
        for mode in modes:
            rows = comparison[mode][kind]
            if len(rows) > 1:
                parts += [Text(), table(f"{title}, {mode_name(mode, temperature)}", rows.items())]
    parts.append(Text())
    parts.extend(Text(sentence) for sentence in sentences(comparison))
    return Group(*parts)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return str(row["count"]), percent(row["first"]), percent(row["second"]), points(row)


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """One sentence for each mode, which claims no more than its interval shows, then the verdict."""
    found = []
    for mode in (mode for mode in MODES if mode in comparison):
        row = comparison[mode]["all"]
        name = mode_name(mode, comparison["temperature"])
        if row["changed"]:
            interval = f", 95% interval {text}" if (text := interval_text(row)) else ""
            found.append(f"{name}: difference {100 * row['mean']:+.1f} points{interval}: {_meaning(row)}.")
        else:
            found.append(f"{name}: the same rate on each of {row['count']} bug(s).")
    return [*found, *opposite_sets(comparison), f"Verdict: {comparison['verdict']}"]


def _meaning(row: Mapping[str, Any]) -> str:
    """What the difference of a row shows, in words. Half the interval's width is what could be detected."""
    if row["direction"]:
        better = "better" if row["direction"] > 0 else "worse"
        return f"{better}, by more than chance explains"
    if row["low"] is None:
        return "one bug shows nothing"
    if row["low"] > 0 or row["high"] < 0:
        return f"only {row['changed']} bug(s) changed; at least {MIN_CHANGED} are needed to rule out chance"
    if row["count"] < MIN_CHANGED:
        return f"{row['count']} bugs are too few for an interval; at least {MIN_CHANGED} are needed"
    detectable = min(100.0, 50 * (row["high"] - row["low"]))
    return f"not distinguishable from no difference (with these bugs, about {detectable:.0f} points would be)"


def compare_folders(first: Path, second: Path, *, as_json: bool = False) -> dict[str, Any]:
    """`selfplay eval --compare`: print the tables, or JSON, and return the figures.

    Raises UsageError and RunError as `evaluation.comparison.compare` does.
    """
    comparison = compare(Folder(first), Folder(second))
    if as_json:
        print(json.dumps(comparison, indent=2))
    else:
        show_comparison(comparison, Console())
    return comparison


def show_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Print the policies A and B, their rates and differences, and how to read them."""
    console.print(Text("Repair rate, B against A", style="bold"))
    for letter, side in (("A", "first"), ("B", "second")):
        policy = (
            ", ".join(f"{key} {value}" for key, value in comparison[side]["policy"].items())
            or "the policy is not recorded"
        )
        console.print(
            Text(f"  {letter}  {comparison[side]['folder']}  ({make_harmless(policy)})"), soft_wrap=True
        )
    console.print(Padding(comparison_body(comparison, "A", "B"), (1, 0, 1, 2)))
    console.print(
        Text(
            "± is one standard error in points, clustered by bug. Differences are paired: B minus A on each "
            "bug that both have; the interval is Student's t over bugs. Rows by set or repository are "
            "multiple comparisons: some of their intervals exclude 0 by chance.",
            style="dim",
        )
    )
    if comparison["left_out"]:
        console.print(f"{comparison['left_out']} bug(s) are in one folder only and were left out.")
    if comparison["settings"]:
        console.print(Text(f"The settings differ: {comparison['settings']}.", style="yellow"), soft_wrap=True)
