"""`selfplay doctor --sandbox KIND`: which promises of the sandbox contract a back end keeps."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from selfplay.agent.observations import make_harmless


@dataclass(frozen=True)
class Checked:
    """One check. problem: what went wrong, "" if it passed."""

    check: str
    problem: str
    duration_s: float


def conform(console: Console, kind: str, as_json: bool = False) -> int:
    """Run every check of `sandbox/conformance.py`. Returns 0 if the back end passes all, else 1.

    kind: as `sandbox.type`. Raises what `open_backend` raises.
    """
    from selfplay.sandbox import open_backend
    from selfplay.sandbox.base import SandboxSpec
    from selfplay.sandbox.conformance import ALL_CHECKS, builds_environments_and_keeps_them, problem_of

    backend, why = open_backend(kind)
    progress = Console(stderr=True) if as_json else console
    progress.print(f"sandboxes: {why}", markup=False, highlight=False)
    results = []
    for check in (*ALL_CHECKS, builds_environments_and_keeps_them):
        started = time.monotonic()
        problem = problem_of(check, backend, SandboxSpec(environment=""))
        results.append(Checked(check.__name__, problem, time.monotonic() - started))
        _show(results[-1], progress)
    failed = sum(bool(result.problem) for result in results)
    if as_json:
        print(
            json.dumps({"sandbox": backend.name, "checks": [asdict(result) for result in results]}, indent=2)
        )
    else:
        verdict = f"{len(results) - failed} of {len(results)} checks passed"
        verdict += f"; {failed} failed: the contract is in selfplay/sandbox/base.py" if failed else ""
        console.print(Text(verdict, style="red" if failed else "green"))
    return int(failed > 0)


def _show(result: Checked, console: Console) -> None:
    name = result.check.replace("_", " ")
    mark = Text("✗ failed ", style="red") if result.problem else Text("✓ passed ", style="green")
    console.print(mark + Text(f"{name}, {result.duration_s:.1f} s"), soft_wrap=True)
    if result.problem:
        console.print(Text(f"  {make_harmless(result.problem)}"), soft_wrap=True)
