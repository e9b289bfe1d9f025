"""`selfplay validate`: one artifact folder judged, and the verdict shown check by check. Judging itself is the validator's."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfplay.agent.tools import make_harmless
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import load_config
from selfplay.errors import EnvironmentBuildError, PrerequisiteError, RepositoryError, SandboxUnavailable
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox import open_backend
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import Thresholds, Verdict, validate

ACCEPTED, REJECTED, NO_VERDICT = 0, 1, 3


def judge_folder(
    folder: Path,
    repo: str,
    config_file: Path | None,
    overrides: Sequence[str],
    *,
    all_checks: bool = False,
    as_json: bool = False,
) -> int:
    """The exit code of `selfplay validate`: 0 accepted, 1 rejected (invalid or flaky), 3 when the machine failed: no verdict.

    Raises what `Artifact.read` does.
    """
    config = load_config(config_file, overrides)
    spec = parse_spec(repo)
    artifact = Artifact.read(folder)
    console = Console(stderr=as_json)
    limits = sandbox_limits(config)
    injector = config.injector
    thresholds = Thresholds(
        injector.min_passing_tests[0], injector.min_failing_tests[0], injector.min_changed_files[0]
    )
    try:
        backend, why = open_backend(config.sandbox.type)
        console.print(f"sandboxes: {why}", highlight=False)
        with console.status(f"{spec.name}: preparing") as status:
            environment = prepare_environment(
                fetch(spec, cache_root()),
                backend,
                config.environment,
                limits,
                cache_root(),
                status.update,
            )
            status.update("judging")
            runner = TestRunner(
                backend, config.validator, limits, {"run": "validate", "owner": str(os.getpid())}
            )
            verdict = validate(
                artifact, environment, thresholds, runner, config.validator, all_checks=all_checks
            )
    except (SandboxUnavailable, PrerequisiteError, RepositoryError, EnvironmentBuildError) as failure:
        # Whatever kept the artifact from being judged says nothing about the artifact.
        told = make_harmless(str(failure))
        if as_json:
            print(json.dumps({"kind": "machine", "accepted": None, "reason": told}, indent=2))
        remedy = "`selfplay doctor` says what is missing."
        console.print(
            Text(f"no verdict, the machine failed: {told.rstrip('.')}. {remedy}", style="yellow"),
            soft_wrap=True,
        )
        if tail := getattr(failure, "log_tail", ""):
            console.print(Text(make_harmless(tail), style="dim"))
        return NO_VERDICT
    if as_json:
        print(
            json.dumps(
                {"kind": verdict.kind, "flaky_tests": verdict.flaky_tests, **verdict.to_json()}, indent=2
            )
        )
    else:
        print_verdict(verdict, console)
    return ACCEPTED if verdict.accepted else REJECTED


def print_verdict(verdict: Verdict, console: Console) -> None:
    table = Table(show_lines=False)
    for name in ("check", "", "seconds", "reason and evidence"):
        table.add_column(name, justify="right" if name == "seconds" else "left", overflow="fold")
    for check in verdict.checks:
        detail = Text(make_harmless(check.reason))  # it may quote what hostile code printed
        for key, value in check.evidence.items():
            detail.append(f"\n{key}: {_short(value)}", style="dim")
        mark = Text("✓", style="green") if check.passed else Text("✗", style="red")
        table.add_row(check.name, mark, f"{check.duration_s:.2f}", detail)
    console.print(table)
    cost = f"{verdict.test_runs} test run(s), {verdict.cached_runs} known before, {verdict.duration_s:.1f} s"
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
