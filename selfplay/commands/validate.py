"""`selfplay validate`: judges one artifact folder. The validator judges, `viewing.verdict` shows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import Config, load_config
from selfplay.errors import (
    ArtifactError,
    EnvironmentBuildError,
    PrerequisiteError,
    RepositoryError,
    SandboxUnavailable,
    SelfplayError,
    UsageError,
)
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import RepositorySpec, parse_existing
from selfplay.sandbox import open_backend
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate
from selfplay.verdicts.verdict import Verdict
from selfplay.viewing.verdict import print_verdict

ACCEPTED, REJECTED, NO_VERDICT = 0, 1, 3
MACHINE_FAILURES = (SandboxUnavailable, PrerequisiteError, RepositoryError, EnvironmentBuildError)


def judge_folder(
    folder: Path,
    repo: str,
    config_file: Path | None,
    overrides: Sequence[str],
    *,
    all_checks: bool = False,
    as_json: bool = False,
) -> int:
    """The exit code: 0 accepted, 1 rejected (invalid or flaky), 3 no verdict, since the machine failed.

    Raises UsageError if there is nothing to judge: a wrong setting or repository, a file that is missing or
    cannot be read.
    """
    try:
        config = load_config(config_file, overrides)
        spec = parse_existing(repo)
        artifact = _read_artifact(folder)
    except UsageError as error:
        if as_json:
            _print_reason("usage", str(error))
        raise
    console = Console(stderr=as_json)
    try:
        verdict = _judge(artifact, spec, config, console, all_checks)
    except MACHINE_FAILURES as failure:
        _show_failure(failure, console, as_json)
        return NO_VERDICT
    if as_json:
        data = {"kind": verdict.kind, "flaky_tests": verdict.flaky_tests, **verdict.to_json()}
        print(json.dumps(data, indent=2))
    else:
        print_verdict(verdict, console)
    return ACCEPTED if verdict.accepted else REJECTED


def _read_artifact(folder: Path) -> Artifact:
    try:
        return Artifact.read(folder)
    except ArtifactError as error:
        raise UsageError(f"{folder} is not an artifact: {error}") from error


def _judge(
    artifact: Artifact, spec: RepositorySpec, config: Config, console: Console, all_checks: bool
) -> Verdict:
    limits = sandbox_limits(config)
    injector = config.injector
    thresholds = Thresholds(
        injector.min_passing_tests[0], injector.min_failing_tests[0], injector.min_changed_files[0]
    )
    backend, why = open_backend(config.sandbox.type)
    console.print(f"sandboxes: {why}", highlight=False)
    with console.status(f"{spec.name}: preparing") as status:
        cache = cache_root()
        checkout = fetch(spec, cache)
        for note in checkout.notes:
            console.print(f"{spec.name}: {note}", markup=False, highlight=False)
        environment = prepare_environment(checkout, backend, config.environment, limits, cache, status.update)
        status.update("judging")
        labels = {"run": "validate", "owner": str(os.getpid())}
        runner = TestRunner(backend, config.validator, limits, labels)
        return validate(artifact, environment, thresholds, runner, config.validator, all_checks=all_checks)


def _show_failure(failure: SelfplayError, console: Console, as_json: bool) -> None:
    """The machine kept the artifact from being judged. That says nothing about the artifact."""
    reason = make_harmless(str(failure))
    if as_json:
        _print_reason("machine", reason)
    remedy = "`selfplay doctor` says what is missing."
    console.print(
        Text(f"no verdict, the machine failed: {reason.rstrip('.')}. {remedy}", style="yellow"),
        soft_wrap=True,
    )
    if tail := getattr(failure, "log_tail", ""):
        console.print(Text(make_harmless(tail), style="dim"))


def _print_reason(kind: str, reason: str) -> None:
    """Why there is no verdict, as JSON."""
    print(json.dumps({"kind": kind, "accepted": None, "reason": make_harmless(reason)}, indent=2))
