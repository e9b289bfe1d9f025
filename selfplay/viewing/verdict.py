"""Shows a verdict as a table of its checks. `verdicts.validator` makes the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.verdicts.verdict import CHECKS, Verdict
from selfplay.viewing.tables import table


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


def checks_table(checks: Sequence[Mapping[str, Any]], accepted: bool) -> Table:
    """Each check of a recorded verdict: passed, failed or not reached, and its seconds.

    checks: in their JSON form. An accepted artifact did not need the checks that it lacks.
    """
    found = {check["name"]: check for check in checks}
    absent = Text("not needed" if accepted else "not reached", style="dim")
    shown = table("check", "", "seconds", right=("seconds",), whole=("check",))
    for name in dict.fromkeys((*CHECKS, *found)):
        if (check := found.get(name)) is None:
            shown.add_row(Text(name, style="dim"), absent, "")
            continue
        state = Text("passed", style="green") if check["passed"] else Text("failed", style="red")
        shown.add_row(Text(make_harmless(name)), state, f"{check.get('duration_s', 0.0):.2f}")
    return shown


def _short(value: object, width: int = 400) -> str:
    text = json.dumps(value)
    return text if len(text) <= width else f"{text[:width]}… ({len(text)} characters)"
