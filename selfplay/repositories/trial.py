"""A checkout in an environment that is not admitted yet. Runs scripts there, keeps and parses their logs.

`probe`, `admission` and `recording` decide what follows from the results.

Invariant: each run has a fresh sandbox, so no run sees files of another. The parser has one too, without the
repository, so the code under test reaches it through the log alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfplay.errors import EnvironmentBuildError, OutcomesError, SandboxLost
from selfplay.outcomes import TestOutcomes, parse_outcomes
from selfplay.repositories.checkouts import Checkout
from selfplay.sandbox.base import WORKSPACE, ExecResult, Limits, Sandbox, SandboxBackend, SandboxSpec
from selfplay.sandbox.workspace import fill_workspace
from selfplay.source.import_roots import import_roots
from selfplay.source.trees import FileEntry, Tree

if TYPE_CHECKING:
    from selfplay.settings.playing import EnvironmentSettings

LOG_BYTES = 4 << 20
LOG_TAIL = 4_000  # characters of a log in an error
MAX_TEST_IDS = 50_000


@dataclass(frozen=True)
class BuildJob:
    """What the caller of a build gives. logs: a folder; progress: takes a line for the person who waits."""

    checkout: Checkout
    backend: SandboxBackend
    settings: EnvironmentSettings
    limits: Limits
    logs: Path
    progress: Callable[[str], None]

    @property
    def is_image(self) -> bool:
        """Whether the environment is an image that the repository list names."""
        return self.checkout.spec.kind == "docker"

    def report(self, message: str) -> None:
        """Call `progress` with the name of the repository before the message."""
        self.progress(f"{self.checkout.name}: {message}")

    def error(self, reason: str, log: str = "") -> EnvironmentBuildError:
        """An error that names the repository and carries the end of `log`."""
        return EnvironmentBuildError(f"{self.checkout.name}: {reason}", log[-LOG_TAIL:])

    def error_of_run(self, reason: str, log_name: str, log: str) -> EnvironmentBuildError:
        """As `error`, and it names the file of the log."""
        return self.error(f"{reason}. Log: {self.logs / log_name}.log", log)


@dataclass(frozen=True)
class Trial:
    """A job whose dependencies are installed.

    reference  the backend's name for them
    variables  of the shell in every run
    hidden     paths that no run sees, as `SandboxSpec.hidden`
    """

    job: BuildJob
    reference: str
    variables: Mapping[str, str]
    hidden: tuple[str, ...] = ()

    @contextmanager
    def workspace(self, tree: Tree, variables: Mapping[str, str]) -> Iterator[Sandbox]:
        """Open a fresh sandbox with `tree` in the workspace and more `variables`."""
        with self._sandbox({**self.variables, **variables}) as box:
            fill_workspace(box, tree)
            yield box

    def run(self, tree: Tree, script: str, log_name: str, hash_seed: int = 0) -> ExecResult:
        """Run a script over `tree` and keep its log.

        Raises EnvironmentBuildError if it does not end in time.
        """
        with self.workspace(tree, {"PYTHONHASHSEED": str(hash_seed)}) as box:
            return self.execute(box, script, log_name)

    def execute(self, box: Sandbox, script: str, log_name: str) -> ExecResult:
        """As `run`, in an open workspace."""
        timeout_s = self.job.settings.test_timeout_s
        result = self.attempt(box, script, log_name, timeout_s)
        if result.timed_out:
            raise self.too_long(log_name, result.text, timeout_s)
        return result

    def attempt(self, box: Sandbox, script: str, log_name: str, timeout_s: float) -> ExecResult:
        """Run a script in an open workspace and keep its log, also if it does not end in time.

        Raises EnvironmentBuildError if the script ends the sandbox.
        """
        box.write_archive("/tmp", Tree({"selfplay_script.sh": FileEntry(script.encode())}).to_tar())
        try:
            result = box.run("bash /tmp/selfplay_script.sh", timeout_s, LOG_BYTES)
        except SandboxLost as error:
            raise self.job.error(
                f"its tests end their sandbox ({error}). If they need more memory, raise sandbox.memory_mb; "
                'else choose others with the hint test="pytest …"'
            ) from error
        (self.job.logs / f"{log_name}.log").write_bytes(result.output)
        return result

    def too_long(self, log_name: str, log: str, timeout_s: float) -> EnvironmentBuildError:
        """The error of a run that did not end within `timeout_s`. A busy machine may be the reason."""
        error = self.job.error_of_run(
            f"its tests did not end within {timeout_s:.0f} s; "
            'raise environment.test_timeout_s, or choose fewer tests with the hint test="pytest …"',
            log_name,
            log,
        )
        error.of_machine = True
        return error

    def outcomes(self, log: bytes, parser: str) -> TestOutcomes:
        """Run the parser on a log.

        Raises EnvironmentBuildError if the log was cut at LOG_BYTES, or if the parser prints no outcomes.
        """
        if len(log) >= LOG_BYTES:  # a part of a log says nothing about the tests
            raise self.job.error(
                f"its tests printed more than {LOG_BYTES >> 20} MiB, so their results were cut off; choose "
                'fewer tests, or a quieter command, with the hint test="…"',
                log.decode("utf-8", "replace"),
            )
        with self._sandbox({}) as box:
            box.write_archive("/tmp", Tree({"test_parser.py": FileEntry(parser.encode())}).to_tar())
            timeout_s = self.job.settings.test_timeout_s
            result = box.run("python3 /tmp/test_parser.py", timeout_s, LOG_BYTES * 2, stdin=log)
        try:
            return parse_outcomes(result.output, MAX_TEST_IDS)
        except OutcomesError as error:
            raise self.job.error(f"its test log cannot be read: {error}", result.text) from error

    @contextmanager
    def _sandbox(self, variables: Mapping[str, str]) -> Iterator[Sandbox]:
        labels = {"run": "environment", "owner pid": str(os.getpid())}
        limits, hidden = self.job.limits, self.hidden
        spec = SandboxSpec(self.reference, limits, variables=variables, labels=labels, hidden=hidden)
        with self.job.backend.open(spec) as box:
            yield box


def import_variables(tree: Tree) -> dict[str, str]:
    """Variables for Python to find the repository's packages in the workspace."""
    roots = [f"{WORKSPACE}/{root}" if root else WORKSPACE for root in import_roots(tree)]
    return {"PYTHONPATH": ":".join(roots), "PYTHONDONTWRITEBYTECODE": "1"}
