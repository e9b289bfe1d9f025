"""The sandbox contract: what every backend offers, which limits it enforces, which exceptions it raises.

A sandbox is a copy of a prepared environment that lives for one episode or one verdict. The code that runs in
it is not trusted: it must not reach the harness, another sandbox or the network, and it must end with its
sandbox. This module holds no backend. `conformance.py` checks the contract on a real backend;
docs/sandboxes.md lists what it does not cover.

Files: /testbed, /submit, /tmp and /dev/shm start empty and are writable. Everything else is read-only.

Exceptions, all from `selfplay.errors`. SandboxLost counts against the policy and SandboxUnavailable never
does, so a backend must not mix them up:

    SandboxLost             code inside ended its own sandbox: a fresh one of the same spec works
    SandboxUnavailable      the machine failed: a fresh sandbox fails too, or none could be opened
    SandboxInterrupted      a SandboxUnavailable: somebody outside ended the sandbox
    SandboxError            itself, not a subclass: the sandbox was closed before the call
    ArtifactError           an archive is refused; the sandbox lives on
    PrerequisiteError       this machine lacks something that sandboxes need; the message names the remedy
    DiskFullError           a PrerequisiteError: the disk that keeps the environments is full
    EnvironmentBuildError   the script of a build failed; `log_tail` holds the end of its log

A failing command is none of these: it is an `ExecResult`.
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
    """Upper bounds. Each holds for all processes of one sandbox together, unless it says otherwise.

    memory_bytes     memory, including the contents of the writable folders, which lie in memory. The kernel
                     kills a process beyond it. Where bubblewrap may not make a control group, a watchdog ends
                     the whole sandbox instead (SandboxLost); it counts resident memory only.
    processes        processes and threads; starting another one fails
    file_bytes       size of one file. A command and its input may not be longer either, see `Sandbox.run`.
    workspace_bytes  contents of /testbed; writing more fails with "no space left"
    submit_bytes     contents of /submit
    tmp_bytes        contents of /tmp
    output_bytes     output of one command; the rest is dropped as it streams, and the command runs on
    cpus             processor cores, also a fraction; never more than the machine has. Not enforced where
                     bubblewrap may not make a control group.
    """

    memory_bytes: int = 1 << 30
    processes: int = 128
    file_bytes: int = 64 << 20
    workspace_bytes: int = 256 << 20
    submit_bytes: int = 8 << 20
    tmp_bytes: int = 64 << 20
    output_bytes: int = 1 << 20
    cpus: float = 1.0


@dataclass(frozen=True)
class SandboxSpec:
    """What to open.

    environment   docker: the tag of an image that holds /opt/env, "" for the base image.
                  bubblewrap: the folder on this machine that is bound at /opt/env, "" for none.
    limits        upper bounds
    network       a connection to the package index; true only while an environment is built
    writable_env  /opt/env is writable; true only while an environment is built
    variables     exported in every command, in addition to `variables.command_variables`
    labels        docker: labels of the container, for people who look at the engine
    hidden        absolute paths outside the writable folders; they must exist. A folder, written with a slash
                  at its end, is empty inside. A file cannot be read, or is empty.
    """

    environment: str
    limits: Limits = field(default_factory=Limits)
    network: bool = False
    writable_env: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


TIMED_OUT = 124  # exit code of a command that was killed at its timeout


@dataclass(frozen=True)
class ExecResult:
    """How one command ended.

    exit_code   the command's own; 128 + n when signal n ended it; 124 when `timed_out`; 126 when not run
    output      stdout and stderr together, in the order in which they came
    truncated   output was dropped, since there was more than `output_bytes`
    timed_out   the command was killed at its timeout
    duration_s  wall-clock time in seconds, as the sandbox measured it
    is_cut_off  the command failed, and the kernel killed a process of this sandbox because the machine ran
                out of memory. False if the sandbox reached a limit of its own.
    """

    exit_code: int
    output: bytes
    truncated: bool
    timed_out: bool
    duration_s: float
    is_cut_off: bool = False

    @property
    def text(self) -> str:
        return self.output.decode("utf-8", errors="replace")


class Sandbox(Protocol):
    """One open sandbox. Not thread-safe: only one call at a time.

    Every method but `close` raises SandboxLost, SandboxUnavailable or SandboxInterrupted when the sandbox is
    gone, and the same exception again at each later call. After `close`, calls raise SandboxError.
    """

    @property
    def spec(self) -> SandboxSpec: ...

    def run(
        self, command: str, timeout_s: float = 60.0, output_bytes: int | None = None, stdin: bytes = b""
    ) -> ExecResult:
        """Run `command` with bash. As in a terminal, working directory and exported variables persist.

        The command may have 1 MiB and `stdin` 64 MiB, but each at most `limits.file_bytes`. The command may
        hold no NUL byte. Otherwise nothing runs, and the result has exit code 126 and says so.

        Background processes live on after the command. A timeout kills every process of the sandbox except
        its command server: files stay, and working directory and variables are those from before the command.

        timeout_s     seconds until the command is killed
        output_bytes  most bytes of output; None for `limits.output_bytes`
        stdin         the command's input; empty input ends at once
        """
        ...

    def write_archive(self, folder: str, tar: bytes) -> None:
        """Unpack an uncompressed tar of plain files and folders into `folder`.

        A link that stands at the path of a file is replaced, not followed. Raises ArtifactError before it
        writes anything when `tar` holds something else, or a path that leaves `folder`. Raises ArtifactError
        also when the sandbox cannot write there: no space is left, or `folder` is read-only.
        """
        ...

    def read_archive(self, folder: str, max_bytes: int) -> bytes:
        """Return an uncompressed tar of the regular files below `folder`. Equal files give equal bytes.

        Leaves out `.git`, links and special files. Raises ArtifactError when the tar would have more than
        `max_bytes` (the message names its size), or when `folder` cannot be read.
        """
        ...

    def close(self) -> None:
        """Remove the sandbox and everything it created. May be called twice, and never raises."""
        ...


@dataclass(frozen=True)
class Capabilities:
    """How a backend differs from others. Code outside the backends asks here instead of comparing names.

    opens_images    `SandboxSpec.environment` may be any container image, as a line `docker:IMAGE` of a
                    repository list needs it
    available_when  the condition that `check` tests, in words; "auto" gives it as the reason of its choice
    lacks           what sandboxes lack on this machine, in words for `selfplay doctor`; "" for nothing
    """

    opens_images: bool = False
    available_when: str = "it works on this machine"
    lacks: str = ""


class SandboxBackend(Protocol):
    """A way to make sandboxes. Thread-safe.

    name          part of the cache keys of prepared repositories; after a change, all are prepared again
    capabilities  how this backend differs from others
    """

    name: str
    capabilities: Capabilities

    def check(self) -> None:
        """Raise PrerequisiteError, with the remedy, unless sandboxes can be opened here."""
        ...

    def open(self, spec: SandboxSpec) -> AbstractContextManager[Sandbox]:
        """Open a fresh sandbox; leaving the context closes it.

        Raises SandboxUnavailable when the environment does not exist or the machine fails.
        Raises PrerequisiteError when a program is missing, which `check` would have found.
        """
        ...

    def sweep(self) -> list[str]:
        """Remove what dead processes left behind: containers, control groups, unfinished environments.

        Returns the names of what was removed. Raises SandboxUnavailable when the engine does not answer.
        """
        ...

    def environment_exists(self, key: str) -> bool:
        """Whether a build saved an environment under `key`.

        Raises SandboxUnavailable when the engine does not answer.
        """
        ...

    def environment_reference(self, key: str) -> str:
        """The `SandboxSpec.environment` of the environment under `key`.

        docker: raises ValueError when `key` cannot be the tag of an image.
        """
        ...

    def build_environment(self, key: str, script: str, timeout_s: float, log: Path, python: str = "") -> str:
        """Run `script` with network and a writable /opt/env, save /opt/env under `key`, return its reference.

        /opt/env holds a Python virtual environment before the script starts. An environment that exists is
        not built again. A build that is killed leaves nothing that `environment_exists` would report.

        script     bash; runs in /testbed, and its first failing command ends it
        timeout_s  seconds for the whole build
        log        file on this machine that receives the whole output
        python     version of the environment's Python, such as "3.9"; "" for the one that sandboxes have.
                   Not given unless a repository asks for one.

        Raises EnvironmentBuildError when the script fails, runs out of time or ends its sandbox;
        MissingPythonError when no such Python can be had; SandboxUnavailable or SandboxInterrupted when
        the machine fails; PrerequisiteError when it lacks something; DiskFullError; OSError when `log`
        cannot be written.
        """
        ...
