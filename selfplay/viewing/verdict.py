"""Prints a verdict as a table of its checks. `verdicts.validator` makes the verdict."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.verdicts.verdict import Verdict


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print each check with its evidence, then the result and what it cost."""
    table = Table(show_lines=False)
    for name in ("check", "", "seconds", "reason and evidence"):
        table.add_column(name, justify="right" if name == "seconds" else "left", overflow="fold")
    for check in verdict.checks:
        detail = Text(make_harmless(check.reason))  # may quote the output of hostile code
        for key, value in check.evidence.items():
            detail.append(f"\n{key}: {_short(value)}", style="dim")
        mark = Text("✓", style="green") if check.passed else Text("✗", style="red")
        table.add_row(check.name, mark, f"{check.duration_s:.2f}", detail)
    console.print(table)
    cost = (
        f"{verdict.test_runs} test run(s), {verdict.cached_runs} from the cache, {verdict.duration_s:.1f} s"
    )
    if verdict.accepted:
        counts = f"{len(verdict.fail_to_pass)} fail-to-pass, {len(verdict.pass_to_pass)} pass-to-pass"
        console.print(Text(f"accepted: {counts}; {cost}", style="green"))
    elif verdict.kind == "flaky":
        tests = make_harmless(", ".join(verdict.flaky_tests)) or "a run ended without results"
        console.print(Text(f"rejected as flaky: equal runs differ in {tests}; {cost}", style="red"))
    else:
        console.print(Text(f"rejected as invalid by {verdict.failed_check}; {cost}", style="red"))


def _short(value: object, width: int = 400) -> str:
    text = json.dumps(value)
    return text if len(text) <= width else f"{text[:width]}… ({len(text)} characters)"
