"""Sandboxes from bubblewrap: private namespaces over this machine's own /usr and Python, no engine or images.

docs/sandboxes.md says what they do not protect against. Invariant: a killed harness leaves at most folders
and control groups behind, which `sweep` removes (see bubblewrap_process.py for the reason).
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from selfplay.errors import PrerequisiteError, SandboxInterrupted, SandboxUnavailable
from selfplay.sandbox import command_server
from selfplay.sandbox.base import Capabilities, Sandbox, SandboxSpec
from selfplay.sandbox.bubblewrap_command import SERVER, Start, bubblewrap_arguments, shared_folders
from selfplay.sandbox.bubblewrap_environments import EnvironmentFolder
from selfplay.sandbox.bubblewrap_host import (
    INTERRUPTED,
    environment_python,
    find_programs,
    loader_cache,
    namespace_remedy,
    python_version,
    users_have_namespaces,
)
from selfplay.sandbox.bubblewrap_process import Launch, OpenedBubblewrap, Spawner
from selfplay.sandbox.cgroups import make_group, sweep_groups
from selfplay.sandbox.client import ConnectedSandbox, probe
from selfplay.sandbox.environment_builds import BuildNetwork, EnvironmentBuild
from selfplay.sandbox.interpreters import find_interpreter
from selfplay.sandbox.layers import can_layer, places
from selfplay.sandbox.owners import unique_name
from selfplay.sandbox.seccomp import seccomp_filter
from selfplay.sandbox.variables import command_variables

# For root: uids far from any account, a random one per sandbox. So the kernel counts its processes, signals
# and watches separately.
FIRST_UID = 1 << 30
NO_LAYERS = (
    "no overlays (they need root, and an overlay file system in the kernel), "
    "so sandboxes share read-only files, and no file in them can be watched"
)
USER_UID = 1000  # in every user namespace


class BubblewrapBackend:
    """See `SandboxBackend`.

    cache: the folder that keeps environments; by default $SELFPLAY_CACHE or ~/.cache/selfplay.
    """

    name = "bubblewrap"

    def __init__(self, cache: Path | None = None) -> None:
        root = cache or Path(os.environ.get("SELFPLAY_CACHE") or Path.home() / ".cache" / "selfplay")
        self._environments = EnvironmentFolder(root / "environments" / "bubblewrap", self._opened)
        self._spawner = Spawner()
        self.capabilities = Capabilities(lacks="" if can_layer() else NO_LAYERS)

    # ---- sandboxes

    def check(self) -> None:
        find_programs()
        try:
            try:
                self._probe()
            except SandboxUnavailable:  # once more: something may have ended the first one
                self._probe()
        except SandboxUnavailable as error:
            remedy = INTERRUPTED if isinstance(error, SandboxInterrupted) else namespace_remedy()
            raise PrerequisiteError(f"bubblewrap cannot make a sandbox here: {error}\n{remedy}") from error

    def _probe(self) -> None:
        with self._opened(SandboxSpec(environment="")) as opened:
            probe(opened.connection)

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        opened = self._start(spec)

        def probe_fresh() -> None:
            cause = opened.killed_from_outside()
            with self._opened(spec) as fresh:
                probe(fresh.connection)
            if cause:
                raise SandboxInterrupted(cause)

        sandbox = ConnectedSandbox(
            spec,
            opened.connection,
            opened.close,
            probe_fresh,
            opened.machine_kills,
            server_pid=opened.server_pid,
            group=opened.group,
        )
        try:
            yield sandbox
        finally:
            sandbox.close()

    def sweep(self) -> list[str]:
        return sweep_groups() + self._environments.sweep()

    # ---- environments

    def environment_exists(self, key: str) -> bool:
        return self._environments.exists(key)

    def environment_reference(self, key: str) -> str:
        return self._environments.reference(key)

    def build_environment(self, key: str, script: str, timeout_s: float, log: Path, python: str = "") -> str:
        interpreter = None if python in ("", python_version()) else find_interpreter(python)
        return self._environments.build(EnvironmentBuild(key, script, timeout_s, log, interpreter))

    # ---- starting

    @contextmanager
    def _opened(self, spec: SandboxSpec, network: BuildNetwork | None = None) -> Iterator[OpenedBubblewrap]:
        opened = self._start(spec, network)
        try:
            yield opened
        finally:
            opened.close()

    def _start(self, spec: SandboxSpec, network: BuildNetwork | None = None) -> OpenedBubblewrap:
        """Start a sandbox and wait for its command server. Raises what `SandboxBackend.open` raises."""
        programs = find_programs()
        if spec.environment and not Path(spec.environment).is_dir():
            raise SandboxUnavailable(
                f"environment {spec.environment!r} is not a folder. "
                "Build it again: it may have been deleted from the cache."
            )
        other = environment_python(spec.environment)
        if other is not None and not other.is_there:
            raise SandboxUnavailable(
                f"environment {spec.environment!r} needs Python {other.release} at {other.prefix}, which is "
                "gone or was changed. Prepare its repository again, or install that Python."
            )
        info_read, info_write = os.pipe()
        with ExitStack() as stack:
            stack.callback(os.close, info_read)
            # Closed before `begin` reads from info_read, which only ends when no writer is left.
            with ExitStack() as inherited:
                inherited.callback(os.close, info_write)
                opened = self._spawn(spec, network, programs, info_write, inherited)
            try:
                opened.begin(info_read, spec.limits)
            except BaseException:
                opened.close()
                raise
        return opened

    def _spawn(
        self,
        spec: SandboxSpec,
        network: BuildNetwork | None,
        programs: Mapping[str, str],
        info: int,
        inherited: ExitStack,
    ) -> OpenedBubblewrap:
        """Start bubblewrap. `inherited` closes the descriptors that it gets from us."""
        layers = places(shared_folders(spec)) if can_layer() else {}
        outer_uid = FIRST_UID + secrets.randbelow(FIRST_UID) if os.geteuid() == 0 else None
        # A build shows folders that only root may reach. The layers of other sandboxes can be reached by all.
        is_root = outer_uid is not None and (
            spec.network or spec.writable_env or not layers or not users_have_namespaces()
        )
        uid = outer_uid if is_root and outer_uid is not None else USER_UID
        if spec.writable_env and is_root:
            os.chown(spec.environment, uid, uid)
        contents = {
            **_user_files(uid),
            SERVER: _server_code(),
            "/etc/ld.so.cache": loader_cache(programs["bwrap"], environment_python(spec.environment)),
            **_network_files(spec, network),
        }
        files = {path: _memory_file(content, inherited) for path, content in contents.items() if content}
        refused_calls = seccomp_filter(shares_files=not layers)
        seccomp = _memory_file(refused_calls, inherited) if refused_calls else None
        start = Start(
            programs, uid, is_root, None if is_root else outer_uid, info, files, seccomp, layers, network
        )
        fds = [info, *files.values(), *([] if seccomp is None else [seccomp])]
        group = make_group(unique_name(), spec.limits)
        try:
            arguments = bubblewrap_arguments(spec, start)
            process = self._spawner.start(Launch(arguments, command_variables(spec), fds, layers, group))
        except BaseException:
            if group:
                group.remove()
            raise
        return OpenedBubblewrap(process, group)


# ---- files that a sandbox is given


def _user_files(uid: int) -> dict[str, bytes]:
    root, user = "root:x:0:0:root:/:/usr/sbin/nologin", f"sandbox:x:{uid}:{uid}:sandbox:/tmp:/bin/bash"
    return {
        "/etc/passwd": f"{root}\n{user}\n".encode(),
        "/etc/group": f"root:x:0:\nsandbox:x:{uid}:\n".encode(),
    }


def _network_files(spec: SandboxSpec, network: BuildNetwork | None) -> dict[str, bytes]:
    files = {"/etc/pip.conf": network.access.pip_conf.encode()} if network else {}
    return files | ({"/etc/hosts": b"127.0.0.1 localhost\n::1 localhost\n"} if spec.network else {})


@cache
def _server_code() -> bytes:
    """The command server as bytecode of this Python. To compile it takes a third of the time to open."""
    source = Path(command_server.__file__).read_bytes()
    code = compile(source, SERVER, "exec", dont_inherit=True, optimize=0)
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def _memory_file(content: bytes, stack: ExitStack) -> int:
    """A descriptor that reads `content` from its start; `stack` closes it."""
    fd = os.memfd_create("selfplay")
    stack.callback(os.close, fd)
    command_server.write_all(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
