"""Sandboxes as containers of a Docker engine, local or at DOCKER_HOST.

Makes no base image: `sandboxes/` does. An environment is an image that `build_environment` commits.
"""

from __future__ import annotations

import io
import re
import shlex
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
from docker.errors import ImageNotFound

from selfplay.errors import PrerequisiteError, SandboxInterrupted, SandboxUnavailable
from selfplay.sandbox.base import SUBMIT, Capabilities, Sandbox, SandboxSpec
from selfplay.sandbox.client import ConnectedSandbox, PeerGone, Refused, archive_frames, probe
from selfplay.sandbox.docker_container import (
    NO_PYTHON,
    OWNER_LABEL,
    PROXY_FOLDER,
    USERS,
    OpenedContainer,
    build_binds,
    container_request,
    take_user,
)
from selfplay.sandbox.docker_engine import (
    ENGINE_ERRORS,
    connect,
    engine_fault,
    engine_host,
    processors,
    remove_container,
    restart_witness,
    was_asked_to_end,
)
from selfplay.sandbox.docker_index import sent_along
from selfplay.sandbox.docker_pythons import python_image
from selfplay.sandbox.environment_builds import LIMITS, BuildNetwork, EnvironmentBuild
from selfplay.sandbox.index_access import IndexAccess, index_access
from selfplay.sandbox.index_proxy import (
    SOCKET,
    ProxyRules,
    forwarding_command,
    forwarding_variables,
    open_proxy,
)
from selfplay.sandbox.interpreters import find_interpreter
from selfplay.sandbox.owners import abandoned

BASE_IMAGE = "selfplay/base:2"
ENVIRONMENT_REPOSITORY = "selfplay/env"
BUILD_BASE = "sandboxes/base/build.sh"
PYTHON = "/usr/bin/python3"  # in the base image
_seen: dict[tuple[str, str], bool] = {}  # engine and base image -> whether it sees this machine's files
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class DockerBackend:
    """See `SandboxBackend`. cache: unused, since the engine keeps the environments."""

    name = "docker"
    capabilities = Capabilities(
        opens_images=True, available_when="an engine answers and the base image is there"
    )

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
                else engine_fault("answers with an error", error)
            )
            raise PrerequisiteError(
                f"{fault}. Install and start one (for example: apt-get install docker.io && "
                "service docker start), let DOCKER_HOST point to one, or set sandbox.type = 'bubblewrap'."
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

        def probe_fresh() -> None:
            fresh = self._start(spec)
            try:
                probe(fresh.connection)
            finally:
                fresh.close()
            self._raise_if_interrupted(opened)

        sandbox = ConnectedSandbox(
            spec,
            opened.connection,
            opened.close,
            probe_fresh,
            opened.machine_kills,
            container=opened.container,
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
                    remove_container(engine, found["Id"])
                    name = found["Names"][0].lstrip("/") if found["Names"] else found["Id"][:12]
                    removed.append(f"container {name}")
        except ENGINE_ERRORS as error:
            raise SandboxUnavailable(
                f"the docker engine does not list or remove containers: {error}"
            ) from error
        return removed

    def _raise_if_interrupted(self, lost: OpenedContainer) -> None:
        """A command can neither restart its engine nor ask it for a kill.

        After either, no command is to blame.
        """
        if lost.witness is not None and not lost.witness.is_unbroken():
            raise SandboxInterrupted(
                "the docker engine was restarted, or its connections were cut, while the sandbox was open"
            )
        if was_asked_to_end(self._engine().api, lost.container):
            raise SandboxInterrupted("somebody ended its container through the docker engine")

    # ---- environments

    def environment_exists(self, key: str) -> bool:
        return self._has_image(self.environment_reference(key))

    def environment_reference(self, key: str) -> str:
        if not TAG.fullmatch(key):
            raise ValueError(
                f"environment key {key!r} cannot be an image tag: "
                "letters, digits, '_', '.' and '-', at most 128"
            )
        return f"{ENVIRONMENT_REPOSITORY}:{key}"

    def build_environment(self, key: str, script: str, timeout_s: float, log: Path, python: str = "") -> str:
        reference = self.environment_reference(key)
        if self._has_image(reference):
            return reference
        self.check()
        interpreter = None if python in ("", self._own_python(python)) else find_interpreter(python)
        access = index_access()
        shares = self._shares_folders()
        log.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            folder = stack.enter_context(open_proxy(access.rules)) if shares else None
            build = EnvironmentBuild(key, script, timeout_s, log, interpreter)
            self._build(build, BuildNetwork(access, folder))
        return reference

    def _own_python(self, asked: str) -> str:
        """`asked` if that is the version of the base image's Python, else ""."""
        with self.open(SandboxSpec(environment="")) as box:
            question = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{asked}')"
            return asked if box.run(f'{PYTHON} -I -c "{question}"').exit_code == 0 else ""

    def _build(self, build: EnvironmentBuild, network: BuildNetwork) -> None:
        """Run the build in a container and commit it as the environment's image."""
        access, files = (network.access, {}) if network.socket_folder else sent_along(network.access)
        if access.pip_conf:
            files["pip.conf"] = access.pip_conf.encode()
        image = self._base_image
        if build.interpreter is not None:
            image = python_image(self._engine(), image, build.interpreter)
        spec = SandboxSpec(image, limits=LIMITS, network=True, writable_env=True)
        opened = self._start(spec, network)
        try:
            for name, content in files.items():
                opened.connection.write(SUBMIT, list(archive_frames(_one_file(name, content))))
            steps = _exports(replace(network, access=access)).encode() + build.steps(
                PYTHON, _forwarding(network)
            )
            result = opened.connection.run(steps, build.timeout_s, LIMITS.output_bytes, b"")
            build.log.write_bytes(result.output)
            if result.exit_code != 0:
                raise build.script_failure(result)
            self._engine().api.commit(
                opened.container,
                ENVIRONMENT_REPOSITORY,
                build.key,
                conf={"Entrypoint": ["/bin/bash"], "Cmd": [], "Labels": {"selfplay.environment": build.key}},
            )
        except PeerGone as error:
            # Raises SandboxUnavailable when the machine is at fault.
            self._start(SandboxSpec(self._base_image)).close()
            raise build.sandbox_loss(error) from error
        except ENGINE_ERRORS as error:
            raise engine_fault(f"failed while environment {build.key} was built", error) from error
        finally:
            opened.close()

    # ---- the engine

    def _engine(self) -> docker.DockerClient:
        """Raises SandboxUnavailable when no engine answers."""
        host = engine_host()
        restart_witness(host)
        return connect(host)

    def _has_image(self, reference: str) -> bool:
        try:
            self._engine().images.get(reference)
        except ImageNotFound:
            return False
        except ENGINE_ERRORS as error:
            raise engine_fault(f"cannot look up image {reference}", error) from error
        return True

    def _shares_folders(self) -> bool:
        """Whether the engine sees this machine's files. Raises SandboxUnavailable.

        One at a local socket may not, in a virtual machine for instance, or if selfplay runs in a container.
        So a container is asked for a file of this machine.
        """
        host = engine_host()
        if host and not host.startswith("unix://"):
            return False
        key = (host, self._base_image)
        if key not in _seen:
            _seen[key] = self._sees_a_file()
        return _seen[key]

    def _sees_a_file(self) -> bool:
        with tempfile.TemporaryDirectory(prefix="selfplay-") as folder:
            Path(folder).chmod(0o755)
            Path(folder, SOCKET).touch()
            nothing = IndexAccess({}, "", (), ProxyRules(frozenset(), {}))
            spec = SandboxSpec(self._base_image, network=True)
            try:
                opened = self._start(spec, BuildNetwork(nothing, Path(folder)))
            except SandboxUnavailable:
                self._start(
                    SandboxSpec(self._base_image)
                ).close()  # raises it again if the engine is at fault
                return False
            try:
                asked = f"test -e {PROXY_FOLDER}/{SOCKET}".encode()
                return opened.connection.run(asked, 30, 1 << 10, b"").exit_code == 0
            except PeerGone:
                return False
            finally:
                opened.close()

    # ---- starting

    def _start(self, spec: SandboxSpec, network: BuildNetwork | None = None) -> OpenedContainer:
        """Start a container and wait for its command server. Raises SandboxUnavailable."""
        opened = self._attach(spec, network)
        try:
            opened.begin()
        except (PeerGone, Refused) as error:
            said = opened.channel.errors.decode("utf-8", "replace").strip()
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
            raise engine_fault(f"starts no container of {spec.environment!r}", error) from error
        except BaseException:
            opened.close()
            raise
        return opened

    def _attach(self, spec: SandboxSpec, network: BuildNetwork | None) -> OpenedContainer:
        """Create a container and attach to its input and output, before it starts."""
        witness = restart_witness(engine_host())
        api = self._engine().api
        container = ""
        user = USERS[0] if spec.writable_env else take_user()
        try:
            container = api.create_container(**self._container(spec, network, user))["Id"]
            streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            return OpenedContainer(
                api, container, api.attach_socket(container, params=streams), witness, user
            )
        except ImageNotFound as error:
            raise SandboxUnavailable(
                f"the docker engine has no image {spec.environment!r}. "
                f"The base image is built by: sudo {BUILD_BASE}"
            ) from error
        except ENGINE_ERRORS as error:
            remove_container(api, container)
            raise engine_fault(f"creates no container of {spec.environment!r}", error) from error

    def _container(self, spec: SandboxSpec, network: BuildNetwork | None, user: int) -> Mapping[str, Any]:
        binds = build_binds(network) if network is not None and network.socket_folder is not None else {}
        cpus = min(spec.limits.cpus, processors(engine_host()))
        image = replace(spec, environment=spec.environment or self._base_image)
        return container_request(self._engine().api, image, network, binds, cpus, user)


# ---- what a build is given


def _exports(network: BuildNetwork) -> str:
    """Shell lines that export a build's variables.

    Not variables of the container: the engine would keep those in the image, and passwords with them.
    """
    access = network.access
    variables = {**access.variables, **(forwarding_variables() if network.socket_folder else {})}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    if access.pip_conf:
        lines.append(f"export PIP_CONFIG_FILE={SUBMIT}/pip.conf\n")
    return "".join(lines)


def _forwarding(network: BuildNetwork) -> str:
    if network.socket_folder is None:
        return ""
    return f"{forwarding_command(PYTHON, f'{PROXY_FOLDER}/{SOCKET}')}\n"


def _one_file(name: str, content: bytes) -> bytes:
    """A tar of one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()
