"""Where validation time goes: ten artifacts on a small package, against running the bare test command as often in the same run.

Run it with `make bench-validator`; `--json` prints the figures alone. The reference is pytest started directly, without any sandbox.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from selfplay.artifact import Artifact
from selfplay.config import ValidatorSettings
from selfplay.environments import Environment
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import Limits
from selfplay.test_runs import TestRun, TestRunner
from selfplay.trees import Tree
from selfplay.validator import Thresholds, Verdict, validate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny_bugs import CLAMP_BUG, CLAMP_WEAKENED, TWO_FILES_BUG, VOWELS_BUG, VOWELS_WEAKENED, make_artifact, prepare_tiny

PARTS = {
    "open_s": "starting sandboxes",
    "transfer_s": "moving files",
    "script_s": "the script (tests)",
    "parser_s": "the parser, twice, own sandboxes",
}


class WatchedRunner(TestRunner):
    """Adds up where the time of runs that really happened went."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.spent: Counter[str] = Counter()
        self.count = 0

    def run(self, environment: Environment, tree: Tree, script: str, parser: str, hash_seed: int = 0, fresh: bool = False) -> TestRun:
        run = super().run(environment, tree, script, parser, hash_seed, fresh)
        if not run.cached:
            self.count += 1
            self.spent.update(asdict(run.timings))
        return run


def artifacts(tiny: Environment) -> Iterator[tuple[str, Artifact]]:
    numbers, text = "tiny/numbers.py", "tiny/text.py"
    unrelated = {"tests/test_numbers.py": ("    assert mean([1, 2, 3]) == 2\n", "    pass\n")}
    initials = {"tests/test_text.py": ('assert initials("ada king lovelace") == "AKL"', "assert initials")}
    yield "one file", make_artifact(tiny)
    yield "two files", make_artifact(tiny, TWO_FILES_BUG)
    yield "deleted file", make_artifact(tiny, VOWELS_BUG, VOWELS_WEAKENED)
    yield "other function", make_artifact(tiny, {text: ("word[0].upper()", "word[-1].upper()")}, initials)
    yield "mean", make_artifact(tiny, {numbers: ("    return total / len(values)\n", "    return total\n")}, unrelated)
    yield "unnoticed", make_artifact(tiny, {numbers: ("Sums and bounds.", "Sums, bounds.")})
    yield "padding", make_artifact(tiny, {**CLAMP_BUG, text: ("count_vowels(text):\n", "count_vowels(text):  # all\n")})
    yield "hides nothing", make_artifact(tiny, weaken=unrelated)
    yield "empty bug", make_artifact(tiny, bug="")
    yield "broken diff", make_artifact(tiny, bug="no diff\n", weaken=CLAMP_WEAKENED)


def bare_runs(tiny: Environment, count: int) -> float:
    """Seconds that the test command takes `count` times without sandbox, parser or transfer: the reference."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.tree.write_to(Path(folder))
        command = [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *tiny.test_files]
        variables = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        started = time.monotonic()
        for _ in range(count):
            subprocess.run(command, cwd=folder, env=variables, check=True, capture_output=True)
        return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sandbox", default="auto", choices=["auto", "docker", "bubblewrap"])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    settings = ValidatorSettings()
    with tempfile.TemporaryDirectory(prefix="selfplay-bench-") as folder:
        backend = open_backend(options.sandbox, Path(folder) / "cache")[0]
        tiny = prepare_tiny(backend, Path(folder), Path(folder) / "cache")
        runner = WatchedRunner(backend, settings, Limits(), {"run": "bench"})
        verdicts: dict[str, Verdict] = {}
        started = time.monotonic()
        for name, artifact in artifacts(tiny):
            verdicts[name] = validate(artifact, tiny, Thresholds(), runner, settings)
        total_s = time.monotonic() - started
        bare_s = bare_runs(tiny, runner.count)
    figures = {
        "sandbox": backend.name,
        "artifacts": len(verdicts),
        "test_runs": runner.count,
        "cached_runs": sum(verdict.cached_runs for verdict in verdicts.values()),
        "total_s": round(total_s, 3),
        "bare_test_command_s": round(bare_s, 3),
        "ratio_to_bare": round(total_s / bare_s, 3),
        **{part: round(runner.spent[part], 3) for part in PARTS},
    }
    if options.json:
        print(json.dumps(figures))
    else:
        show(figures, verdicts, runner, total_s)


def show(figures: dict[str, object], verdicts: dict[str, Verdict], runner: WatchedRunner, total_s: float) -> None:
    console = Console()
    table = Table(title=f"validation of {len(verdicts)} artifacts in {figures['sandbox']} sandboxes")
    for column in ("artifact", "verdict", "runs", "known", "seconds"):
        table.add_column(column, justify="left" if column in ("artifact", "verdict") else "right")
    for name, verdict in verdicts.items():
        table.add_row(
            name, verdict.failed_check or "accepted", str(verdict.test_runs), str(verdict.cached_runs), f"{verdict.duration_s:.2f}"
        )
    console.print(table)
    spent = Table(title=f"where the time of {runner.count} runs went (runs overlap, two at a time)")
    for column in ("part", "seconds", "a run", "share"):
        spent.add_column(column, justify="left" if column == "part" else "right")
    all_s = sum(runner.spent[part] for part in PARTS) or 1.0
    for part, words in PARTS.items():
        seconds = runner.spent[part]
        spent.add_row(words, f"{seconds:.2f}", f"{1000 * seconds / max(1, runner.count):.0f} ms", f"{seconds / all_s:.0%}")
    console.print(spent)
    console.print(
        f"whole validation {total_s:.2f} s; reference, the bare test command {runner.count} times: {figures['bare_test_command_s']} s; "
        f"ratio {figures['ratio_to_bare']}"
    )


if __name__ == "__main__":
    main()
