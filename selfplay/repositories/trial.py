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

from selfplay.errors import EnvironmentBuildError, OutcomesError
from selfplay.outcomes import TestOutcomes, parse_outcomes
from selfplay.repositories.checkouts import Checkout
from selfplay.sandbox.base import WORKSPACE, ExecResult, Limits, Sandbox, SandboxBackend, SandboxSpec
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
    """

    job: BuildJob
    reference: str
    variables: Mapping[str, str]

    @contextmanager
    def workspace(self, tree: Tree, variables: Mapping[str, str]) -> Iterator[Sandbox]:
        """Open a fresh sandbox with `tree` in the workspace and more `variables`."""
        with self._sandbox({**self.variables, **variables}) as box:
            box.write_archive(WORKSPACE, tree.to_tar())
            yield box

    def run(self, tree: Tree, script: str, log_name: str, hash_seed: int = 0) -> ExecResult:
        """Run a script over `tree` and keep its log.

        Raises EnvironmentBuildError if it does not end in time.
        """
        with self.workspace(tree, {"PYTHONHASHSEED": str(hash_seed)}) as box:
            return self.execute(box, script, log_name)

    def execute(self, box: Sandbox, script: str, log_name: str) -> ExecResult:
        """As `run`, in an open workspace."""
        settings = self.job.settings
        box.write_archive("/tmp", Tree({"selfplay_script.sh": FileEntry(script.encode())}).to_tar())
        result = box.run("bash /tmp/selfplay_script.sh", settings.test_timeout_s, LOG_BYTES)
        (self.job.logs / f"{log_name}.log").write_bytes(result.output)
        if result.timed_out:
            raise self.job.error_of_run(
                f"its tests did not end within {settings.test_timeout_s:.0f} s; "
                'raise environment.test_timeout_s, or choose fewer tests with the hint test="pytest …"',
                log_name,
                result.text,
            )
        return result

    def outcomes(self, log: bytes, parser: str) -> TestOutcomes:
        """Run the parser on a log.

        Raises EnvironmentBuildError if the log was cut at LOG_BYTES, or the parser prints no outcomes.
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
        spec = SandboxSpec(self.reference, self.job.limits, variables=variables, labels=labels)
        with self.job.backend.open(spec) as box:
            yield box


def import_variables(tree: Tree) -> dict[str, str]:
    """Variables for Python to find the repository's packages in the workspace."""
    roots = [f"{WORKSPACE}/{root}" if root else WORKSPACE for root in import_roots(tree)]
    return {"PYTHONPATH": ":".join(roots), "PYTHONDONTWRITEBYTECODE": "1"}
