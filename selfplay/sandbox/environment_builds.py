"""What environment builds have in common on all backends: request, limits, connection, errors.

Runs nothing; each backend starts the sandbox and saves the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selfplay.errors import EnvironmentBuildError
from selfplay.sandbox.base import VENV, WORKSPACE, ExecResult, Limits
from selfplay.sandbox.index_access import IndexAccess
from selfplay.sandbox.interpreters import Interpreter

LIMITS = Limits(
    memory_bytes=4 << 30,
    processes=512,
    file_bytes=1 << 30,
    workspace_bytes=1 << 30,
    tmp_bytes=2 << 30,
    output_bytes=32 << 20,
    cpus=4.0,
)
LOG_TAIL = 4000  # characters of the log in an error


@dataclass(frozen=True)
class BuildNetwork:
    """The one connection of a build: a proxy in the harness, reached through a Unix socket.

    access         this machine's settings for its package index
    socket_folder  folder on this machine that holds the proxy's socket; None when the Docker engine does not
                   see this machine's files, so that the build uses the engine's own network
    """

    access: IndexAccess
    socket_folder: Path | None


@dataclass(frozen=True)
class EnvironmentBuild:
    """The arguments of `SandboxBackend.build_environment`. interpreter: None for the Python of sandboxes."""

    key: str
    script: str
    timeout_s: float
    log: Path
    interpreter: Interpreter | None = None

    def steps(self, python: str, forwarding: str) -> bytes:
        """The whole command of the build: connect to the proxy, make the virtual environment, run the script.

        python      the sandboxes' interpreter, as a path inside of them
        forwarding  the line that starts forwarding to the proxy, with its line end; "" without a proxy
        """
        python = self.interpreter.program if self.interpreter else python
        return f"set -e\n{forwarding}{python} -m venv {VENV}\ncd {WORKSPACE}\n{self.script}".encode()

    def script_failure(self, result: ExecResult) -> EnvironmentBuildError:
        if result.timed_out:
            reason = f"did not end within {self.timeout_s:.0f} s"
        else:
            reason = f"ended with exit code {result.exit_code}"
        message = f"the build of environment {self.key} {reason}; whole log: {self.log}"
        return EnvironmentBuildError(message, result.text[-LOG_TAIL:])

    def sandbox_loss(self, error: Exception) -> EnvironmentBuildError:
        """For a script that ended its own sandbox, on a machine that opens a fresh one."""
        return EnvironmentBuildError(f"the build of environment {self.key} ended its sandbox: {error}")
