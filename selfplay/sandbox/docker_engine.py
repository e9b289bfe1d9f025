"""The Docker engine: one client per process and engine, its faults, its restarts, the removal of containers.

Makes no container. The engine is the one at DOCKER_HOST, else at the first local socket there is: Docker's,
that of a Docker without root, Podman's. TCP: DOCKER_TLS_VERIFY and DOCKER_CERT_PATH name the certificates.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import socket
import threading
import time
from contextlib import closing
from datetime import datetime
from functools import cache
from urllib.parse import quote

import docker
import requests
from docker.constants import MINIMUM_DOCKER_API_VERSION
from docker.errors import APIError, DockerException, NotFound

from selfplay.errors import SandboxUnavailable

ENGINE_TIMEOUT_S = 120
ENGINE_ERRORS = (DockerException, requests.exceptions.RequestException, OSError)
USUAL_SOCKET = "/var/run/docker.sock"
REMOVAL_IN_PROGRESS = 409  # the engine's status for a second removal
_connecting = threading.Lock()


# ---- clients


def engine_host() -> str:
    """Where the engine is, "" for Docker's usual local socket."""
    if os.environ.get("DOCKER_HOST"):
        return os.environ["DOCKER_HOST"]
    own = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    others = (f"{own}/docker.sock", f"{own}/podman/podman.sock", "/run/podman/podman.sock")
    found = next(
        (path for path in (USUAL_SOCKET, *others) if os.access(path, os.R_OK | os.W_OK)), USUAL_SOCKET
    )
    return "" if found == USUAL_SOCKET else f"unix://{found}"


def new_client(timeout_s: int, host: str | None = None, pool: int = 10) -> docker.DockerClient:
    """A client of the engine, for the caller to close. Raises DockerException if none answers.

    host: as `engine_host` gives it. pool: most connections that stay open.
    """
    host = engine_host() if host is None else host
    where = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    if not (host.startswith("tcp:") and where.get("DOCKER_TLS_VERIFY")):
        return docker.from_env(timeout=timeout_s, max_pool_size=pool, environment=where)
    # By the environment, requests would take REQUESTS_CA_BUNDLE in place of the certificates that are named
    # for the engine. So it is asked for its version by a client that reads no environment.

    def made(version: str) -> docker.DockerClient:
        client = docker.from_env(version=version, timeout=timeout_s, max_pool_size=pool, environment=where)
        client.api.trust_env = False
        return client

    with closing(made(MINIMUM_DOCKER_API_VERSION)) as asking:
        version = str(asking.api.version(api_version=False)["ApiVersion"])
    return made(version)


def connect(host: str) -> docker.DockerClient:
    """The client for the engine at `host`. Raises SandboxUnavailable when no engine answers."""
    with _connecting:
        try:
            return shared_client(host)
        except ENGINE_ERRORS as error:
            raise no_engine(host, error) from error


@cache
def shared_client(host: str) -> docker.DockerClient:
    """One client per process and engine, since each keeps connections open.

    Only one that answered is kept.
    """
    client = new_client(ENGINE_TIMEOUT_S, host, pool=64)
    try:
        client.ping()
    except ENGINE_ERRORS:
        client.close()
        raise
    atexit.register(client.close)
    return client


@cache
def processors(host: str) -> int:
    """The engine's number of processors.

    It refuses to give more, and may have fewer than this machine (in a VM).
    """
    return int(shared_client(host).info()["NCPU"])


@cache
def is_podman(api: docker.APIClient) -> bool:
    """Whether the engine is Podman, which answers in Docker's name."""
    parts = api.version().get("Components") or []
    return any("podman" in str(part.get("Name", "")).lower() for part in parts)


# ---- faults


def no_engine(host: str, error: Exception | None = None) -> SandboxUnavailable:
    """error: the reason is added if it is one of an encrypted connection."""
    said = str(error or "")
    reason = f" ({said[-300:]})" if host and re.search("TLS|SSL|HTTPS|certificate", said) else ""
    if reason and "DOCKER_TLS_VERIFY" not in os.environ:
        reason += "; set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to a folder of ca.pem, cert.pem, key.pem"
    return SandboxUnavailable(f"no docker engine answers at {host or 'its usual socket'}{reason}")


def engine_fault(what: str, error: Exception) -> SandboxUnavailable:
    """The error for a failed request. what: its message, unless the engine is gone."""
    if isinstance(error, requests.exceptions.ConnectionError):
        return no_engine(engine_host())
    return SandboxUnavailable(f"the docker engine {what}: {error}")


# ---- restarts


class RestartWitness:
    """A stream of the engine's events that carries none. It breaks when the engine ends.

    So it tells the restart of an engine, which ends all containers, from the end of one container.
    """

    def __init__(self, host: str) -> None:
        """Raises OSError when no engine answers."""
        self.host = host
        nothing = quote(json.dumps({"container": ["selfplay-witness"]}))
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(ENGINE_TIMEOUT_S)
            # Connect here before docker's library does: it leaves a socket open that it cannot connect.
            self._socket.connect(host.removeprefix("unix://") or USUAL_SOCKET)
            self._socket.sendall(f"GET /events?filters={nothing} HTTP/1.1\r\nHost: docker\r\n\r\n".encode())
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def is_unbroken(self) -> bool:
        try:
            while self._socket.recv(1 << 12):  # the head of the answer
                pass
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._socket.close()


_witnesses: dict[tuple[str, int], RestartWitness] = {}


def restart_witness(host: str) -> RestartWitness | None:
    """This process's witness for this engine; a new one when the last is broken.

    Returns None for an engine without a local socket. Raises SandboxUnavailable when no engine answers.
    """
    if host and not host.startswith("unix://"):
        return None
    key = (host, os.getpid())
    with _connecting:
        found = _witnesses.get(key)
        if found is None or not found.is_unbroken():
            if found is not None:
                _witnesses.pop(key).close()
            try:
                found = _witnesses[key] = RestartWitness(host)
                atexit.register(found.close)
            except OSError as error:
                raise no_engine(host) from error
        return found


# ---- ends of containers


def was_asked_to_end(api: docker.APIClient, container: str) -> bool:
    """Whether somebody asked the engine to kill or stop the container.

    Reads the engine's list of events up to now by the engine's clock, since this machine's may differ.
    """
    try:
        until = int(datetime.fromisoformat(re.sub(r"\.\d+", "", api.info()["SystemTime"])).timestamp()) + 1
        filters = {"type": ["container"], "event": ["kill"]}
        return any(
            event.get("id") == container
            for event in api.events(since=0, until=until, filters=filters, decode=True)
        )
    except (*ENGINE_ERRORS, KeyError, ValueError):
        return False


def remove_container(api: docker.APIClient, container: str) -> None:
    """Remove it, and wait if it is being removed already.

    Raises nothing: what stays behind, a sweep removes.
    """
    if not container:
        return
    try:
        api.remove_container(container, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != REMOVAL_IN_PROGRESS:
            return
        for _ in range(100):
            try:
                api.inspect_container(container)
            except ENGINE_ERRORS:
                return
            time.sleep(0.02)
    except ENGINE_ERRORS:
        return
