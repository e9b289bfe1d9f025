"""The folder of environments that bubblewrap sandboxes share: built once per key, then bound read-only.

Layout: KEY/env is bound at /opt/env, KEY/python names the Python that it was built with, KEY/build.log is its
log. A build works in .building-OWNER and is renamed when it is complete. Invariant: what has its final name
is complete.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from selfplay.errors import DiskFullError, PrerequisiteError, SandboxInterrupted
from selfplay.sandbox.base import ExecResult, SandboxSpec
from selfplay.sandbox.bubblewrap_command import PROXY_SOCKET
from selfplay.sandbox.bubblewrap_host import PYTHON, PYTHON_FILE, python_identity
from selfplay.sandbox.bubblewrap_process import OpenedBubblewrap
from selfplay.sandbox.client import PeerGone, probe
from selfplay.sandbox.environment_builds import LIMITS, BuildNetwork, EnvironmentBuild
from selfplay.sandbox.index_access import index_access
from selfplay.sandbox.index_proxy import forwarding_command, forwarding_variables, open_proxy
from selfplay.sandbox.interpreters import interpreter_of
from selfplay.sandbox.owners import abandoned, unique_name

BUILDING = ".building-"
FULL_DISK_BYTES = 1 << 20  # a failed build that leaves less space failed for want of it

Opener = Callable[[SandboxSpec, BuildNetwork | None], AbstractContextManager[OpenedBubblewrap]]


class EnvironmentFolder:
    """See `SandboxBackend` for what its methods do. open_sandbox: opens the sandbox that a build runs in."""

    def __init__(self, root: Path, open_sandbox: Opener) -> None:
        self._root = root
        self._open_sandbox = open_sandbox

    def exists(self, key: str) -> bool:
        try:
            text = (self._root / key / PYTHON_FILE).read_text()
        except OSError:
            return False
        other = interpreter_of(text)
        return text == python_identity() if other is None else other.is_there

    def reference(self, key: str) -> str:
        return str(self._root / key / "env")

    def sweep(self) -> list[str]:
        removed = []
        for folder in self._root.glob(f"{BUILDING}*"):
            if abandoned(folder.name.removeprefix(BUILDING)):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(f"unfinished environment {folder}")
        return removed

    def build(self, build: EnvironmentBuild) -> str:
        if self.exists(build.key):
            return self.reference(build.key)
        if build.interpreter is None and importlib.util.find_spec("ensurepip") is None:
            raise PrerequisiteError(
                f"{sys.base_prefix} has no ensurepip, which environments need. "
                "Install it: apt-get install python3-venv"
            )
        building = self._root / f"{BUILDING}{unique_name()}"
        (building / "env").mkdir(parents=True, mode=0o755)
        # A build may leave a set-uid file here: other users of this machine must not reach it.
        building.chmod(0o700)
        identity = build.interpreter.to_text() if build.interpreter else python_identity()
        (building / PYTHON_FILE).write_text(identity)
        try:
            result = self._run(build, building / "env")
            build.log.write_bytes(result.output)
            if result.exit_code != 0:
                raise self._failure(build, result, building)
            _own_everything(building / "env")
            (building / "build.log").write_bytes(result.output)
            self._publish(building, build.key)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return self.reference(build.key)

    def _run(self, build: EnvironmentBuild, env: Path) -> ExecResult:
        access = index_access()
        spec = SandboxSpec(
            str(env),
            limits=LIMITS,
            network=True,
            writable_env=True,
            variables={**access.variables, **forwarding_variables()},
        )
        python = f"{PYTHON}/bin/python3"
        steps = build.steps(python, f"{forwarding_command(python, PROXY_SOCKET)}\n")
        build.log.parent.mkdir(parents=True, exist_ok=True)
        with (
            open_proxy(access.rules) as folder,
            self._open_sandbox(spec, BuildNetwork(access, folder)) as opened,
        ):
            try:
                return opened.connection.run(steps, build.timeout_s, LIMITS.output_bytes, b"")
            except PeerGone as error:
                cause = opened.killed_from_outside()
                with self._open_sandbox(SandboxSpec(environment=""), None) as fresh:
                    probe(fresh.connection)  # raises SandboxUnavailable when the machine is at fault
                if cause:
                    raise SandboxInterrupted(
                        f"the build of environment {build.key} was cut off: {cause}"
                    ) from error
                raise build.sandbox_loss(error) from error

    def _failure(self, build: EnvironmentBuild, result: ExecResult, building: Path) -> Exception:
        if shutil.disk_usage(building).free < FULL_DISK_BYTES:
            reason = f"a build ended with exit code {result.exit_code} on a full disk"
            return DiskFullError(self._root, reason)
        return build.script_failure(result)

    def _publish(self, building: Path, key: str) -> None:
        """Rename it into place. If another process has built the same key meanwhile, that result stays."""
        final = self._root / key
        if final.exists() and not self.exists(key):  # built with another Python, or damaged
            final.rename(self._root / f"{BUILDING}{unique_name()}-old")
        try:
            building.rename(final)
        except OSError:
            if not self.exists(key):
                raise


def _own_everything(folder: Path) -> None:
    """As root, take the files from the build's user: a later sandbox may run as the same user."""
    if os.geteuid() != 0:
        return
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.lchown(Path(parent, name), 0, 0)
