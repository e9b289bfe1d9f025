"""Sandboxes as containers of a docker engine, local or at DOCKER_HOST, with the command server as their process 1.

Leaves images to `sandboxes/` and to `build_environment`. Invariant: everything made carries its owner's label, and a
container whose harness dies ends by itself, since its input ends.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import shlex
import socket
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from selfplay.errors import EnvironmentBuildError, PrerequisiteError, SandboxInterrupted, SandboxUnavailable
from selfplay.sandbox import command_server
from selfplay.sandbox.base import SUBMIT, VENV, WORKSPACE, Limits, Sandbox, SandboxSpec
from selfplay.sandbox.client import (
    HELLO_S,
    ConnectedSandbox,
    Connection,
    PeerGone,
    Refused,
    SocketChannel,
    archive_frames,
    probe,
)
from selfplay.sandbox.index_proxy import begin_forwarding, forwarding_variables, open_way
from selfplay.sandbox.owners import abandoned, owner, unique_name
from selfplay.sandbox.variables import IndexAccess, command_variables, index_access

BASE_IMAGE = "selfplay/base:1"
ENVIRONMENT_REPOSITORY = "selfplay/env"
OWNER_LABEL = "selfplay.owner"
USER = 64321  # named `sandbox` in the base image, and no account of the machine
ENGINE_TIMEOUT_S = 120
BUILD_LIMITS = Limits(
    memory_bytes=4 << 30,
    processes=512,
    file_bytes=1 << 30,
    workspace_bytes=1 << 30,
    tmp_bytes=2 << 30,
    output_bytes=32 << 20,
    cpus=4.0,
)
SMALL_TMPFS_BYTES = 16 << 20
LOG_TAIL = 4000
WAY_OUT = "/run/selfplay"  # the folder with the socket that leads a build to its package index
NO_PYTHON = "this image has no python3 in /usr/local/bin, /usr/bin or /bin"
# An image's own python3 runs the server, never the one of /opt/env: an environment is built by code that is not trusted.
ENTRYPOINT = f'p=$(PATH=/usr/local/bin:/usr/bin:/bin command -v python3) || {{ echo \'{NO_PYTHON}\' >&2; exit 127; }}; exec "$p" "$@"'
# The server's source comes first on stdin: an engine elsewhere sees no file of ours, and `ps` in a sandbox stays readable.
LOADER = """import os, sys
size, source = int(sys.argv.pop(1)), b""
while len(source) < size: source += os.read(0, size - len(source)) or sys.exit(1)
exec(compile(source, "command_server", "exec"))"""
ENGINE_ERRORS = (DockerException, requests.exceptions.RequestException, OSError)
USUAL_SOCKET = "/var/run/docker.sock"
BUILD_BASE = "sandboxes/base/build.sh"
_connecting = threading.Lock()


class DockerBackend:
    """See `SandboxBackend`. `cache` is not needed, environments are images of the engine."""

    name = "docker"

    def __init__(self, cache: Path | None = None, base_image: str = BASE_IMAGE) -> None:
        self._base_image = base_image

    # ---- sandboxes

    def check(self) -> None:
        try:
            engine = self._engine()
            system = engine.version().get("Os", "linux")
            has_base = self._has_image(self._base_image)
        except (SandboxUnavailable, *ENGINE_ERRORS) as error:
            fault = (
                error
                if isinstance(error, SandboxUnavailable)
                else _engine_fault("answers with an error", error)
            )
            raise PrerequisiteError(
                f"{fault}. Install and start one (for example: apt-get install docker.io && service docker start), "
                "let DOCKER_HOST point to one, or set sandbox.type = 'bubblewrap'."
            ) from error
        if system != "linux":
            raise PrerequisiteError(f"the docker engine runs {system} containers, linux ones are needed.")
        if not has_base:
            raise PrerequisiteError(
                f"the docker engine has no image {self._base_image}. Build it with: sudo {BUILD_BASE}"
            )

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        opened = self._start(spec)

        def probe_afresh() -> None:
            fresh = self._start(spec)
            try:
                probe(fresh.connection)
            finally:
                fresh.close()
            self._raise_if_interrupted(opened)

        sandbox = ConnectedSandbox(
            spec, opened.connection, opened.close, probe_afresh, container=opened.container
        )
        try:
            yield sandbox
        finally:
            sandbox.close()

    def sweep(self) -> list[str]:
        removed = []
        try:
            engine = self._engine().api
            for found in engine.containers(all=True, filters={"label": OWNER_LABEL}):
                if abandoned(found["Labels"].get(OWNER_LABEL, "")):
                    _remove(engine, found["Id"])
                    removed.append(
                        f"container {found['Names'][0].lstrip('/') if found['Names'] else found['Id'][:12]}"
                    )
        except ENGINE_ERRORS as error:
            raise SandboxUnavailable(
                f"the docker engine does not list or remove containers: {error}"
            ) from error
        return removed

    def _raise_if_interrupted(self, lost: _Opened) -> None:
        """What runs in a container can neither restart its engine nor ask it for a kill: then it is not to blame for the loss."""
        if lost.witness is not None and not lost.witness.is_unbroken():
            raise SandboxInterrupted(
                "the docker engine was restarted, or its connections were cut, while the sandbox was open"
            )
        if _was_told_to_end(self._engine().api, lost.container):
            raise SandboxInterrupted("somebody ended its container through the docker engine")

    # ---- environments

    def environment_exists(self, key: str) -> bool:
        return self._has_image(self.environment_reference(key))

    def environment_reference(self, key: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", key):
            raise ValueError(
                f"environment key {key!r} cannot be an image tag: letters, digits, '_', '.' and '-', at most 128"
            )
        return f"{ENVIRONMENT_REPOSITORY}:{key}"

    def build_environment(self, key: str, script: str, timeout_s: float, log: Path) -> str:
        reference = self.environment_reference(key)
        if self._has_image(reference):
            return reference
        self.check()
        access = index_access()
        spec = SandboxSpec(self._base_image, limits=BUILD_LIMITS, network=True, writable_env=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            way = stack.enter_context(open_way(access.way)) if self._shares_folders() else None
            return self._build(reference, spec, access, way, script, timeout_s, log, key)

    def _build(
        self,
        reference: str,
        spec: SandboxSpec,
        access: IndexAccess,
        way: Path | None,
        script: str,
        timeout_s: float,
        log: Path,
        key: str,
    ) -> str:
        opened = self._start(spec, access, way)
        try:
            if access.pip_conf:
                opened.connection.write(SUBMIT, list(archive_frames(_one_file("pip.conf", access.pip_conf))))
            # Exported here and not given to the container: a container's variables would be kept in the image, passwords too.
            variables = {**access.variables, **(forwarding_variables() if way else {})}
            exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
            exports += f"export PIP_CONFIG_FILE={SUBMIT}/pip.conf\n" if access.pip_conf else ""
            forwarding = f"{begin_forwarding('/usr/bin/python3', f'{WAY_OUT}/index')}\n" if way else ""
            steps = f"{exports}set -e\n{forwarding}/usr/bin/python3 -m venv {VENV}\ncd {WORKSPACE}\n{script}"
            result = opened.connection.run(steps.encode(), timeout_s, BUILD_LIMITS.output_bytes, b"")
            log.write_bytes(result.output)
            if result.exit_code != 0:
                reason = (
                    f"did not end within {timeout_s:.0f} s"
                    if result.timed_out
                    else f"ended with exit code {result.exit_code}"
                )
                raise EnvironmentBuildError(
                    f"the build of environment {key} {reason}; whole log: {log}", result.text[-LOG_TAIL:]
                )
            self._engine().api.commit(
                opened.container,
                ENVIRONMENT_REPOSITORY,
                key,
                conf={"Entrypoint": ["/bin/bash"], "Cmd": [], "Labels": {"selfplay.environment": key}},
            )
        except PeerGone as error:
            self._start(SandboxSpec(self._base_image)).close()  # raises when the machine is at fault
            raise EnvironmentBuildError(
                f"the build of environment {key} ended its sandbox: {error}"
            ) from error
        except ENGINE_ERRORS as error:
            raise _engine_fault(f"failed while environment {key} was built", error) from error
        finally:
            opened.close()
        return reference

    # ---- starting

    def _engine(self) -> docker.DockerClient:
        """Raises SandboxUnavailable when no engine answers (any more)."""
        host = os.environ.get("DOCKER_HOST", "")
        _witness(host)
        with _connecting:
            try:
                return _connect(host)
            except ENGINE_ERRORS as error:
                raise _no_engine(host) from error

    def _has_image(self, reference: str) -> bool:
        try:
            self._engine().images.get(reference)
        except ImageNotFound:
            return False
        except ENGINE_ERRORS as error:
            raise _engine_fault(f"does not tell about image {reference}", error) from error
        return True

    def _shares_folders(self) -> bool:
        """Whether the engine sees this machine's files: it answers at a local socket."""
        local = str(getattr(self._engine().api, "base_url", "")).startswith("http+docker://")
        return local and not os.environ.get("DOCKER_HOST", "").startswith("ssh:")

    def _start(
        self, spec: SandboxSpec, access: IndexAccess | None = None, way: Path | None = None
    ) -> _Opened:
        witness = _witness(os.environ.get("DOCKER_HOST", ""))
        api = self._engine().api
        container = ""
        try:
            created = api.create_container(**self._container(spec, access, way))
            container = created["Id"]
            attached = api.attach_socket(
                container, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            )
            channel = SocketChannel(getattr(attached, "_sock", attached))
            opened = _Opened(api, container, channel, attached, witness)
        except ImageNotFound as error:
            raise SandboxUnavailable(
                f"the docker engine has no image {spec.environment!r}. The base image is built by: sudo {BUILD_BASE}"
            ) from error
        except ENGINE_ERRORS as error:
            _remove(api, container)
            raise _engine_fault(f"creates no container of {spec.environment!r}", error) from error
        try:
            api.start(container)
            channel.send(_server_source(), time.monotonic() + HELLO_S)
            opened.connection.hello(time.monotonic() + HELLO_S)
        except (PeerGone, Refused) as error:
            said = channel.errors.decode("utf-8", "replace").strip()
            opened.close()
            hint = (
                ". The command server needs bash and python3 (3.9 or newer) in the image"
                if NO_PYTHON in said or isinstance(error, Refused)
                else ""
            )
            raise SandboxUnavailable(
                f"no command server in a container of {spec.environment!r}: {said or error}{hint}"
            ) from error
        except ENGINE_ERRORS as error:
            opened.close()
            raise _engine_fault(f"starts no container of {spec.environment!r}", error) from error
        except BaseException:
            opened.close()
            raise
        return opened

    def _container(
        self, spec: SandboxSpec, access: IndexAccess | None, way: Path | None
    ) -> Mapping[str, Any]:
        api = self._engine().api
        limits = spec.limits
        options = "rw,exec,nosuid,nodev"
        tmpfs = {
            WORKSPACE: f"{options},mode=0777,size={limits.workspace_bytes}",
            SUBMIT: f"{options},mode=0777,size={limits.submit_bytes}",
            "/tmp": f"{options},mode=1777,size={limits.tmp_bytes}",
        }
        if spec.writable_env:
            # The root is written to, since only what lies in it is committed: keep everything but /opt/env out of reach.
            tmpfs |= {
                "/var/tmp": f"{options},mode=1777,size={SMALL_TMPFS_BYTES}",
                "/run": f"{options},mode=0755,size={SMALL_TMPFS_BYTES}",
            }
        binds: dict[str, Mapping[str, str]] = {}
        if access and self._shares_folders():
            binds = {str(path): {"bind": str(path), "mode": "ro"} for path in access.paths}
            if Path("/etc/ssl/certs").is_dir():
                binds["/etc/ssl/certs"] = {"bind": "/etc/ssl/certs", "mode": "ro"}
            binds = _outermost(binds) | ({str(way): {"bind": WAY_OUT, "mode": "ro"}} if way else {})
        host_config = api.create_host_config(
            auto_remove=not spec.writable_env,
            binds=binds,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            network_mode="bridge"
            if spec.network and way is None
            else "none",  # an engine elsewhere: its network, not its host's
            read_only=not spec.writable_env,
            tmpfs=tmpfs,
            shm_size=SMALL_TMPFS_BYTES,
            mem_limit=limits.memory_bytes,
            memswap_limit=limits.memory_bytes,
            pids_limit=limits.processes,
            nano_cpus=int(min(limits.cpus, _processors(os.environ.get("DOCKER_HOST", ""))) * 1e9),
            ulimits=[
                docker.types.Ulimit(name="fsize", soft=limits.file_bytes, hard=limits.file_bytes),
                docker.types.Ulimit(name="core", soft=0, hard=0),
            ],
            log_config=docker.types.LogConfig(
                type="none"
            ),  # the engine would write what the server says to this machine's disk
        )
        return {
            "image": spec.environment or self._base_image,
            "name": unique_name(),
            "entrypoint": ["/bin/sh", "-c", ENTRYPOINT, "sh"],
            "command": [
                "-I",
                "-S",
                "-c",
                LOADER,
                str(len(_server_source())),
                str(limits.file_bytes),
                "0",
                "0",
                WORKSPACE,
            ],
            "user": f"{USER}:{USER}",
            "hostname": None if spec.network else "sandbox",
            "working_dir": "/",
            "environment": command_variables(spec),
            "labels": {
                **{f"selfplay.{name}": value for name, value in spec.labels.items()},
                OWNER_LABEL: owner(),
            },
            "stdin_open": True,
            "detach": False,  # with an open stdin: the container's input ends when ours does
            "host_config": host_config,
        }


@cache
def _connect(host: str) -> docker.DockerClient:
    """One client a process and engine, since each keeps connections open; only one that answered is kept."""
    client = docker.from_env(timeout=ENGINE_TIMEOUT_S, max_pool_size=64)
    try:
        client.ping()
    except ENGINE_ERRORS:
        client.close()
        raise
    atexit.register(client.close)
    return client


@cache
def _processors(host: str) -> int:
    """The engine's own, which may be fewer than this machine's (a virtual machine, bound to some cores); it refuses to give more."""
    return int(_connect(host).info()["NCPU"])


class _Witness:
    """A stream of the engine's that carries nothing and ends when the engine does: tells its restart from the end of one container."""

    def __init__(self, host: str) -> None:
        self.host = host
        nothing = quote(json.dumps({"container": ["selfplay-witness"]}))
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(ENGINE_TIMEOUT_S)
            # The library leaves open what it cannot connect: whether an engine is there is found out here first.
            self._socket.connect(host.removeprefix("unix://") or USUAL_SOCKET)
            self._socket.sendall(f"GET /events?filters={nothing} HTTP/1.1\r\nHost: docker\r\n\r\n".encode())
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def is_unbroken(self) -> bool:
        try:
            while self._socket.recv(1 << 12):  # the answer's head
                pass
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._socket.close()


def _no_engine(host: str) -> SandboxUnavailable:
    return SandboxUnavailable(f"no docker engine answers at {host or 'its usual socket'}")


def _engine_fault(what: str, error: Exception) -> SandboxUnavailable:
    """An engine that is gone is told as that, whatever it was asked for."""
    if isinstance(error, requests.exceptions.ConnectionError):
        return _no_engine(os.environ.get("DOCKER_HOST", ""))
    return SandboxUnavailable(f"the docker engine {what}: {error}")


_witnesses: dict[tuple[str, int], _Witness] = {}


def _witness(host: str) -> _Witness | None:
    """The one of this process and engine, a new one when the engine ended; None for an engine that no local socket leads to."""
    if host and not host.startswith("unix://"):
        return None
    key = (host, os.getpid())
    with _connecting:
        found = _witnesses.get(key)
        if found is None or not found.is_unbroken():
            if found is not None:
                _witnesses.pop(key).close()
            try:
                found = _witnesses[key] = _Witness(host)
                atexit.register(found.close)
            except OSError as error:
                raise _no_engine(host) from error
        return found


def _was_told_to_end(api: docker.APIClient, container: str) -> bool:
    """Whether the engine was asked for a kill or a stop of it. By the engine's own clock: this machine's may be another."""
    try:
        until = int(datetime.fromisoformat(re.sub(r"\.\d+", "", api.info()["SystemTime"])).timestamp()) + 1
        filters = {"type": ["container"], "event": ["kill"]}
        return any(
            event.get("id") == container
            for event in api.events(since=0, until=until, filters=filters, decode=True)
        )
    except (*ENGINE_ERRORS, KeyError, ValueError):
        return False


class _Opened:
    """A started container and the line to its command server."""

    def __init__(
        self,
        api: docker.APIClient,
        container: str,
        channel: SocketChannel,
        attached: Any,
        witness: _Witness | None,
    ) -> None:
        self.container = container
        self.witness = witness
        self.connection = Connection(channel)
        self._api = api
        self._channel = channel
        self._attached = attached
        self._is_closed = False

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        parts: list[Any] = [getattr(self._attached, "_response", None), self._attached, self._channel]
        for part in parts:
            with suppress(OSError, AttributeError, ValueError):
                part.close()
        if self.witness is not None:
            try:
                _witness(self.witness.host)
            except SandboxUnavailable:
                return  # nobody is there to be asked; the container ends, since its input has ended
        _remove(self._api, self.container)


def _remove(api: docker.APIClient, container: str) -> None:
    """Remove it now. It may already be on its way out; what the engine does not remove, a sweep finds."""
    if not container:
        return
    try:
        api.remove_container(container, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:  # 409: removal is in progress
            return
        for _ in range(100):
            try:
                api.inspect_container(container)
            except ENGINE_ERRORS:
                return
            time.sleep(0.02)
    except ENGINE_ERRORS:
        return


@cache
def _server_source() -> bytes:
    return Path(command_server.__file__).read_bytes()


def _outermost(binds: dict[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """Without folders and files inside one that is bound already: they would be mounted on a read-only place."""
    return {
        path: bind
        for path, bind in binds.items()
        if not any(str(parent) in binds for parent in Path(path).parents)
    }


def _one_file(name: str, content: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content.encode())
        archive.addfile(member, io.BytesIO(content.encode()))
    return out.getvalue()
