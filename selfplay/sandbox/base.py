"""The sandbox contract: what a backend offers, what it limits, and which errors it raises. Backends live beside this file.

A sandbox is a copy of a prepared environment that lives for one episode or one verdict. Nothing that runs in it can be
mistaken for the harness, reach another sandbox, or outlive it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

WORKSPACE = "/testbed"
SUBMIT = "/submit"
VENV = "/opt/env"  # the prepared Python environment: dependencies only, read-only, first on PATH


@dataclass(frozen=True)
class Limits:
    """Upper bounds that hold for everything in one sandbox together."""

    memory_bytes: int = 1 << 30
    processes: int = 128
    file_bytes: int = 64 << 20
    workspace_bytes: int = 256 << 20
    submit_bytes: int = 8 << 20
    tmp_bytes: int = 64 << 20
    output_bytes: int = 1 << 20  # of one command; the rest is cut as it streams
    cpus: float = 1.0


@dataclass(frozen=True)
class SandboxSpec:
    """What to open. `environment` is backend-specific: an image reference (docker) or a root description (bubblewrap).

    environment   docker: an image tag that holds /opt/env. bubblewrap: the host folder bound at /opt/env, "" for none.
    network       a way out to the package index; only ever true while an environment is built.
    writable_env  /opt/env is writable; only while an environment is built.
    variables     exported in every command.
    labels        mark everything created, so that a sweep finds it; `run` and `owner pid` at least.
    """

    environment: str
    limits: Limits = field(default_factory=Limits)
    network: bool = False
    writable_env: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExecResult:
    """exit_code: the command's own, 128+n for a signal, 124 when `timed_out`. output: stdout and stderr as they came."""

    exit_code: int
    output: bytes
    truncated: bool
    timed_out: bool
    duration_s: float

    @property
    def text(self) -> str:
        return self.output.decode("utf-8", errors="replace")


class Sandbox(Protocol):
    """One open sandbox. Not thread-safe: one caller at a time.

    Every method raises SandboxLost when what ran inside destroyed the sandbox (a fresh one of the same spec works), and
    SandboxUnavailable when the machinery failed (a fresh one fails too). A command's failure is an ExecResult, never an
    exception. After a timeout every process of the sandbox but its server is gone, and the workspace lives on.
    """

    @property
    def spec(self) -> SandboxSpec: ...

    def run(
        self, command: str, timeout_s: float = 60.0, output_bytes: int | None = None, stdin: bytes = b""
    ) -> ExecResult:
        """Run `command` with bash. Working directory and exported variables persist between calls, like a terminal."""
        ...

    def write_archive(self, folder: str, tar: bytes) -> None:
        """Unpack an uncompressed tar (plain files and folders) into `folder`, which must be writable in the sandbox.

        Raises ArtifactError for anything else in it, or when it cannot be written there (no space, not writable).
        """
        ...

    def read_archive(self, folder: str, max_bytes: int) -> bytes:
        """An uncompressed tar of the regular files below `folder`, `.git` left out.

        Raises ArtifactError, naming the size, when it would exceed `max_bytes`.
        """
        ...

    def close(self) -> None:
        """Remove the sandbox and everything it created. Idempotent, and never raises."""
        ...


class SandboxBackend(Protocol):
    """A way to make sandboxes: `docker` or `bubblewrap`."""

    name: str

    def check(self) -> None:
        """Raise PrerequisiteError, with the remedy, unless sandboxes can be opened here."""
        ...

    def open(self, spec: SandboxSpec) -> AbstractContextManager[Sandbox]:
        """Open a fresh sandbox: /testbed, /submit and /tmp empty and writable, all else read-only."""
        ...

    def sweep(self) -> list[str]:
        """Remove what dead processes left behind (containers, folders, cgroups); returns what was removed, by name."""
        ...

    def environment_exists(self, key: str) -> bool:
        """Whether `save_environment(…, key)` completed before."""
        ...

    def environment_reference(self, key: str) -> str:
        """The `SandboxSpec.environment` of a saved key."""
        ...

    def build_environment(self, key: str, script: str, timeout_s: float, log: Path) -> str:
        """Run `script` in a sandbox with network and a writable /opt/env, save /opt/env under `key`, return its reference.

        A Python virtual environment already stands at /opt/env. The whole output goes to `log`.
        Raises EnvironmentBuildError with the log's end when the script fails; SandboxUnavailable when the machine does.
        A build that is killed leaves nothing that `environment_exists` would report.
        """
        ...
