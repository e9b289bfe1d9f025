"""A container whose process 1 is the command server: the request that creates it, and its life.

Invariant: every container carries its owner's label, so that a sweep finds it. A container whose harness dies
ends by itself, since its input ends.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import docker

from selfplay.errors import SandboxUnavailable
from selfplay.sandbox import command_server
from selfplay.sandbox.base import SUBMIT, WORKSPACE, SandboxSpec
from selfplay.sandbox.cgroups import group_of, machine_kills
from selfplay.sandbox.client import HELLO_S, Connection, SocketChannel
from selfplay.sandbox.docker_engine import (
    ENGINE_ERRORS,
    RestartWitness,
    is_podman,
    remove_container,
    restart_witness,
)
from selfplay.sandbox.environment_builds import BuildNetwork
from selfplay.sandbox.owners import owner, unique_name
from selfplay.sandbox.seccomp import seccomp_filter
from selfplay.sandbox.variables import command_variables

OWNER_LABEL = "selfplay.owner"
# All are named `sandbox` in the base image, far from any account of the machine. Builds have the first one.
# Every sandbox has another one, by chance: the kernel counts signals, watches and pipes for each user, and
# what one sandbox uses up would be missing in the others.
USERS = range(64321, 65534)
SMALL_TMPFS_BYTES = 16 << 20
ELSEWHERE = "bridge"  # network of a build whose engine cannot reach the proxy: its own, not its machine's
PROXY_FOLDER = "/run/selfplay"  # where a build has the folder with the socket of its proxy
CERTIFICATES = "/etc/ssl/certs"
NO_PYTHON = "this image has no python3 in /usr/local/bin, /usr/bin or /bin"
# The image's own python3 runs the server, never that of /opt/env: code that is not trusted built /opt/env.
ENTRYPOINT = (
    "p=$(PATH=/usr/local/bin:/usr/bin:/bin command -v python3) || "
    f'{{ echo \'{NO_PYTHON}\' >&2; exit 127; }}; exec "$p" "$@"'
)
# The server's source comes first on stdin: an engine elsewhere sees no file of this machine, and an argument
# would make the output of `ps` in a sandbox unreadable.
LOADER = """import os, sys
size, source = int(sys.argv.pop(1)), b""
while len(source) < size: source += os.read(0, size - len(source)) or sys.exit(1)
exec(compile(source, "command_server", "exec"))"""


# ---- users

_choosing = threading.Lock()
_in_use: set[int] = set()


def take_user() -> int:
    """A random user that no open sandbox of this process has, as long as there is one."""
    with _choosing:
        free = [user for user in USERS[1:] if user not in _in_use]
        user = secrets.choice(free or USERS[1:])
        _in_use.add(user)
        return user


# ---- the request


def container_request(
    api: docker.APIClient,
    spec: SandboxSpec,
    network: BuildNetwork | None,
    binds: dict[str, Mapping[str, str]],
    cpus: float,
    user: int,
) -> dict[str, Any]:
    """The arguments of `APIClient.create_container`.

    spec     its environment is the image
    network  the connection of a build; without its socket folder the build uses the engine's own network
    binds    folders and files of this machine, see `build_binds`
    cpus     processors, at most as many as the engine has
    user     number of the user and of its group
    """
    return {
        "image": spec.environment,
        "name": unique_name(),
        "entrypoint": ["/bin/sh", "-c", ENTRYPOINT, "sh"],
        "command": ["-I", "-S", "-c", LOADER, str(len(server_source())), *_server_arguments(spec)],
        "user": f"{user}:{user}",
        "hostname": None if spec.network else "sandbox",
        "working_dir": "/",
        "environment": command_variables(spec),
        "labels": {
            **{f"selfplay.{name}": value for name, value in spec.labels.items()},
            OWNER_LABEL: owner(),
        },
        "stdin_open": True,
        "detach": False,  # with stdin_open: the container's input ends with this process's connection
        "host_config": _host_config(api, spec, network, binds, cpus),
    }


def _server_arguments(spec: SandboxSpec) -> list[str]:
    """See `command_server.main`. The engine bounds the number of processes, and ends the container itself."""
    return [str(spec.limits.file_bytes), "0", "0", WORKSPACE]


def _host_config(
    api: docker.APIClient,
    spec: SandboxSpec,
    network: BuildNetwork | None,
    binds: dict[str, Mapping[str, str]],
    cpus: float,
) -> Any:
    limits = spec.limits
    has_proxy = network is not None and network.socket_folder is not None
    file_size = docker.types.Ulimit(name="fsize", soft=limits.file_bytes, hard=limits.file_bytes)
    return api.create_host_config(
        auto_remove=not spec.writable_env,
        binds=binds,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        network_mode=ELSEWHERE if spec.network and not has_proxy else "none",
        read_only=not spec.writable_env,
        # Podman would copy into a tmpfs what the image has there, which a hidden folder must not show.
        tmpfs={path: f"{options}{',notmpcopyup' * is_podman(api)}" for path, options in _tmpfs(spec).items()},
        mounts=[
            docker.types.Mount(path, "/dev/null", type="bind", read_only=True)
            for path in spec.hidden
            if not path.endswith("/")
        ],
        shm_size=SMALL_TMPFS_BYTES,
        mem_limit=limits.memory_bytes,
        memswap_limit=limits.memory_bytes,
        pids_limit=limits.processes,
        nano_cpus=int(cpus * 1e9),
        ulimits=[file_size, docker.types.Ulimit(name="core", soft=0, hard=0), *_podman_limits(api)],
        # else the engine writes everything that the server sends to its machine's disk
        log_config=docker.types.LogConfig(type="none"),
    )


def _podman_limits(api: docker.APIClient) -> list[Any]:
    """Podman asks for a million of each otherwise, which a service with fewer privileges may not give."""
    if not is_podman(api):
        return []
    return [docker.types.Ulimit(name=name, soft=4096, hard=4096) for name in ("nofile", "nproc")]


def _tmpfs(spec: SandboxSpec) -> dict[str, str]:
    options = "rw,exec,nosuid,nodev"
    folders = {
        WORKSPACE: f"{options},mode=0777,size={spec.limits.workspace_bytes}",
        SUBMIT: f"{options},mode=0777,size={spec.limits.submit_bytes}",
        "/tmp": f"{options},mode=1777,size={spec.limits.tmp_bytes}",
    }
    folders |= {
        path.rstrip("/"): f"ro,{options.removeprefix('rw,')},mode=0555,size=4096"
        for path in spec.hidden
        if path.endswith("/")
    }
    if spec.writable_env:
        # The root is writable then, since only what lies in it is committed. A tmpfs keeps the other folders
        # that a build could write to out of the image.
        folders |= {
            "/var/tmp": f"{options},mode=1777,size={SMALL_TMPFS_BYTES}",
            "/run": f"{options},mode=0755,size={SMALL_TMPFS_BYTES}",
        }
    return folders


def build_binds(network: BuildNetwork) -> dict[str, Mapping[str, str]]:
    """What a build sees of this machine: certificates, paths that pip's settings name, the proxy's socket."""
    binds: dict[str, Mapping[str, str]] = {
        str(path): {"bind": str(path), "mode": "ro"} for path in network.access.paths
    }
    if Path(CERTIFICATES).is_dir():
        binds[CERTIFICATES] = {"bind": CERTIFICATES, "mode": "ro"}
    binds = _outermost(binds)
    if network.socket_folder is not None:
        binds[str(network.socket_folder)] = {"bind": PROXY_FOLDER, "mode": "ro"}
    return binds


def _outermost(binds: dict[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """Without paths inside other bound folders: the engine cannot mount them there, since it is read-only."""
    return {
        path: bind
        for path, bind in binds.items()
        if not any(str(parent) in binds for parent in Path(path).parents)
    }


@cache
def server_source() -> bytes:
    return Path(command_server.__file__).read_bytes()


# ---- the running container


class OpenedContainer:
    """A container that is attached, and the connection to its command server."""

    def __init__(
        self, api: docker.APIClient, container: str, attached: Any, witness: RestartWitness | None, user: int
    ) -> None:
        """container: its id. attached: what `attach_socket` returned. witness: see `restart_witness`.

        user: from `take_user`, free again after `close`.
        """
        self.user = user
        self.container = container
        self.witness = witness
        self.channel = SocketChannel(getattr(attached, "_sock", attached))
        self.connection = Connection(self.channel)
        self._api = api
        self._attached = attached
        self._is_closed = False

    def begin(self) -> None:
        """Start the container and wait for its command server. Raises PeerGone, Refused or ENGINE_ERRORS."""
        self._api.start(self.container)
        deadline = time.monotonic() + HELLO_S
        self.channel.send(server_source(), deadline)
        # On top of the engine's own filter. The processor is the engine's, which may be elsewhere.
        if refused_calls := seccomp_filter(self.connection.hello(deadline)):
            self.connection.restrict(refused_calls, deadline)

    def machine_kills(self) -> int:
        """Number of its processes that the kernel killed because the machine ran out of memory.

        0 where this process cannot read the container's control group, as of an engine elsewhere.
        """
        try:
            pid = int(self._api.inspect_container(self.container)["State"]["Pid"])
        except (*ENGINE_ERRORS, KeyError, ValueError):
            return 0
        group = group_of(pid, self.container)
        return machine_kills(group) if group else 0

    def close(self) -> None:
        """Remove the container. When no engine answers, it ends by itself and a sweep removes it."""
        if self._is_closed:
            return
        self._is_closed = True
        _in_use.discard(self.user)
        parts: list[Any] = [getattr(self._attached, "_response", None), self._attached, self.channel]
        for part in parts:
            with suppress(OSError, AttributeError, ValueError):
                part.close()
        if self.witness is not None:
            try:
                restart_witness(self.witness.host)
            except SandboxUnavailable:
                return
        remove_container(self._api, self.container)
