"""The sandboxes that benchmarks/sandbox.py compares, behind one small interface.

Ours, swe-rex's, mini-swe-agent's, and the floors: Docker SDK, bwrap, bare exec. Each is used as its
documentation says, with its defaults. Times nothing. Invariant: a contender that cannot run here raises
`Unavailable`, with the reason, before anything is timed.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from selfplay.errors import PrerequisiteError
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import WORKSPACE, SandboxSpec
from selfplay.sandbox.docker_engine import ENGINE_ERRORS
from selfplay.sandbox.docker_sandbox import BASE_IMAGE
from selfplay.sandbox.prewarmed import PrewarmedSandboxes

if TYPE_CHECKING:
    import docker

INSTALL = "in a virtual environment of its own: pip install -e '.[bench]'"
BASH = ["bash", "-c", "true"]
BARE = "bare exec of bash"
FOLDER = "/var/tmp"  # in containers that are not ours
GONE_S = 60.0


class Unavailable(Exception):
    """This contender cannot run here. The message says why, and what to install."""


class Failed(Exception):
    """A contender gave a wrong result."""


@dataclass(frozen=True)
class Load:
    """Files to move, in two forms: a folder called `name`, and a tar whose members begin with `name`."""

    label: str
    name: str
    folder: Path
    tar: bytes
    content_bytes: int


class Opened(Protocol):
    """One open sandbox. `put` and `get` move a whole folder."""

    def run(self) -> float | None:
        """Run `true`. Returns the seconds that the command took; None where the sandbox does not say."""
        ...

    def put(self, load: Load) -> None: ...

    def get(self, load: Load) -> bytes | None:
        """Return the files of `put` as a tar; None where the library cannot move them out."""
        ...

    def remove(self) -> None:
        """Remove the sandbox, and wait until nothing of it is left."""
        ...


@dataclass(frozen=True)
class Contender:
    """A way to open sandboxes, compared with our backend of the same `kind`.

    lasts        False for a program that is started anew for each command
    starts_bash  it starts bash for each command, so that the command's own time is that of bash. Else `true`
                 is a builtin of a shell that runs already.
    """

    name: str
    kind: str
    open: Callable[[], Opened]
    moves_files: bool = True
    lasts: bool = True
    starts_bash: bool = True


# ---- ours


class Ours:
    def __init__(self, backend: Any) -> None:
        self._stack = ExitStack()
        self._box = self._stack.enter_context(
            backend.open(SandboxSpec(environment="", labels={"run": "benchmark"}))
        )

    def run(self) -> float | None:
        result = self._box.run("true")
        if result.exit_code != 0:
            raise Failed(f"`true` ended with {result.exit_code}: {result.text}")
        return float(result.duration_s)

    def put(self, load: Load) -> None:
        self._box.write_archive(WORKSPACE, load.tar)

    def get(self, load: Load) -> bytes | None:
        return bytes(self._box.read_archive(f"{WORKSPACE}/{load.name}", 1 << 28))

    def remove(self) -> None:
        self._stack.close()


def ours(kind: str) -> Contender:
    try:
        backend, _ = open_backend(kind)
    except PrerequisiteError as error:
        raise Unavailable(str(error).splitlines()[0]) from error
    return Contender(f"selfplay {kind}", kind, lambda: Ours(backend))


def ours_prewarmed(kind: str) -> Contender:
    """Ours with one prewarmed sandbox. The next one opens while the other contenders are measured."""
    try:
        prewarmed = PrewarmedSandboxes(open_backend(kind)[0], 1)
    except PrerequisiteError as error:
        raise Unavailable(str(error).splitlines()[0]) from error
    atexit.register(prewarmed.close)
    Ours(prewarmed).remove()
    prewarmed.settle()
    return Contender(f"selfplay {kind}, ready", kind, lambda: Ours(prewarmed))


# ---- floors


def _execute(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, check=False)
    if done.returncode != 0:
        error = done.stderr.decode("utf-8", "replace").strip()
        raise Failed(f"{' '.join(line)[:80]} ended with {done.returncode}: {error}")


class MovesNoFiles:
    """A sandbox without file transfer of its own."""

    def put(self, load: Load) -> None:
        raise NotImplementedError

    def get(self, load: Load) -> bytes | None:
        return None


class Program(MovesNoFiles):
    """A program started anew for each command: nothing to open, nothing to remove."""

    def __init__(self, line: list[str]) -> None:
        self._line = line

    def run(self) -> float | None:
        _execute(self._line)
        return None

    def remove(self) -> None:
        pass


def bare_exec(scratch: Path) -> Contender:
    return Contender(BARE, "bubblewrap", lambda: Program(BASH), moves_files=False, lasts=False)


def bare_bubblewrap(scratch: Path) -> Contender:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise Unavailable("bwrap not found on PATH. Install it: apt-get install bubblewrap")
    line = [
        bwrap,
        "--unshare-all",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        *BASH,
    ]
    try:
        _execute(line)
    except Failed as error:
        raise Unavailable(str(error)) from error
    return Contender("bare bwrap", "bubblewrap", lambda: Program(line), moves_files=False, lasts=False)


@cache
def _engine() -> docker.DockerClient:
    import docker

    try:
        client = docker.from_env()
        client.images.get(BASE_IMAGE)
    except docker.errors.ImageNotFound as error:
        raise Unavailable(
            f"the docker engine has no image {BASE_IMAGE}. Build it with: sudo sandboxes/base/build.sh"
        ) from error
    except ENGINE_ERRORS as error:
        raise Unavailable("no docker engine answers") from error
    return client


class SdkContainer:
    """The Docker SDK as in its examples: a container that sleeps, `exec_run`, archives, forced removal."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._container = client.containers.run(
            BASE_IMAGE, ["sleep", "3600"], detach=True, network_mode="none"
        )

    def run(self) -> float | None:
        code, output = self._container.exec_run(BASH)
        if code != 0:
            raise Failed(f"exec_run ended with {code}: {output!r}")
        return None

    def put(self, load: Load) -> None:
        if not self._container.put_archive(FOLDER, load.tar):
            raise Failed("put_archive was refused")

    def get(self, load: Load) -> bytes | None:
        chunks, _ = self._container.get_archive(f"{FOLDER}/{load.name}")
        return b"".join(chunks)

    def remove(self) -> None:
        self._container.remove(force=True, v=True)


class SdkRun(Program):
    """`containers.run(…, remove=True)`: a container for each command."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    def run(self) -> float | None:
        self._client.containers.run(BASE_IMAGE, BASH, remove=True, network_mode="none")
        return None


def sdk_container(scratch: Path) -> Contender:
    client = _engine()
    return Contender("docker SDK, exec_run", "docker", lambda: SdkContainer(client))


def sdk_run(scratch: Path) -> Contender:
    client = _engine()
    return Contender(
        "docker SDK, a run for each", "docker", lambda: SdkRun(client), moves_files=False, lasts=False
    )


def _wait_until_gone(client: docker.DockerClient, container: str) -> None:
    """Wait for a container that removes itself: docker's commands return before it is gone."""
    import docker

    give_up = time.monotonic() + GONE_S
    while time.monotonic() < give_up:
        try:
            client.api.inspect_container(container)
        except docker.errors.NotFound:
            return
        time.sleep(0.01)
    raise Failed(f"container {container} is still there after {GONE_S:.0f} s")


# ---- swe-rex


class SweRex:
    """A deployment with one bash session. It moves folders only in: files come out as a tar, read as text."""

    def __init__(self, deployment: Any, folder: Path, gone: Callable[[str], None] | None = None) -> None:
        from swerex.runtime.abstract import CreateBashSessionRequest

        self._loop = asyncio.new_event_loop()
        self._deployment = deployment
        self._gone = gone
        self._folder = folder
        self._loop.run_until_complete(deployment.start())
        self._name = getattr(deployment, "container_name", None) or ""
        try:
            self._loop.run_until_complete(deployment.runtime.create_session(CreateBashSessionRequest()))
        except BaseException:
            self.remove()
            raise

    def run(self) -> float | None:
        from swerex.runtime.abstract import BashAction

        self._loop.run_until_complete(
            self._deployment.runtime.run_in_session(BashAction(command="true", timeout=60))
        )
        return None

    def put(self, load: Load) -> None:
        from swerex.runtime.abstract import UploadRequest

        request = UploadRequest(source_path=str(load.folder), target_path=str(self._folder / load.name))
        self._loop.run_until_complete(self._deployment.runtime.upload(request))

    def get(self, load: Load) -> bytes | None:
        from swerex.runtime.abstract import Command, ReadFileRequest

        archive = self._folder / f"{load.name}.tar"
        pack = Command(command=["tar", "-cf", str(archive), "-C", str(self._folder), load.name], check=True)
        self._loop.run_until_complete(self._deployment.runtime.execute(pack))
        request = ReadFileRequest(path=str(archive), encoding="latin-1")
        response = self._loop.run_until_complete(self._deployment.runtime.read_file(request))
        return bytes(response.content.encode("latin-1"))

    def remove(self) -> None:
        self._loop.run_until_complete(self._deployment.stop())
        self._loop.close()
        if self._gone is None:
            shutil.rmtree(self._folder)  # a local runtime works on this machine's own files
        else:
            self._gone(self._name)


def swe_rex_local(scratch: Path) -> Contender:
    _needs("swe-rex", "swerex", scratch)
    from swerex.deployment.local import LocalDeployment

    def start() -> Opened:
        return SweRex(LocalDeployment(), Path(tempfile.mkdtemp(dir=scratch)))

    return Contender("swe-rex local (isolates nothing)", "bubblewrap", start, starts_bash=False)


def swe_rex_docker(scratch: Path) -> Contender:
    _needs("swe-rex", "swerex", scratch)
    client = _engine()
    from swerex.deployment.docker import DockerDeployment

    folders = [path for path in sys.path if path.endswith("site-packages") and Path(path).is_dir()]
    starter = scratch / "swerex-remote"
    starter.write_text("#!/usr/bin/env python3\nfrom swerex.server import main\n\nmain()\n")
    starter.chmod(0o755)
    # Its server must be in the image. Without a registry it is bound there from this environment, so both
    # must have the same version of Python.
    arguments = ["-e", f"PYTHONPATH={':'.join(folders)}", "-v", f"{starter}:/usr/local/bin/swerex-remote:ro"]
    for folder in folders:
        arguments += ["-v", f"{folder}:{folder}:ro"]
    version = "import sys; print(sys.version_info[:2])"
    inside = (
        client.containers.run(BASE_IMAGE, ["python3", "-c", version], remove=True, network_mode="none")
        .decode()
        .strip()
    )
    if inside != str(sys.version_info[:2]):
        raise Unavailable(
            f"{BASE_IMAGE} has Python {inside}, this is {sys.version_info[:2]}: "
            "swe-rex's server cannot be bound into it"
        )

    def start() -> Opened:
        deployment = DockerDeployment(
            image=BASE_IMAGE, pull="never", docker_args=arguments, startup_timeout=60
        )
        return SweRex(deployment, Path(FOLDER), lambda name: _wait_until_gone(client, name))

    return Contender("swe-rex docker", "docker", start, starts_bash=False)


# ---- mini-swe-agent


class Mini(MovesNoFiles):
    """An environment of mini-swe-agent. It has no file transfer."""

    def __init__(self, environment: Any, gone: Callable[[str], None] | None = None) -> None:
        self._environment = environment
        self._gone = gone

    def run(self) -> float | None:
        said = self._environment.execute({"command": "true"})
        if said["returncode"] != 0:
            raise Failed(f"`true` ended with {said['returncode']}: {said['output']}")
        return None

    def remove(self) -> None:
        self._environment.cleanup()
        if self._gone:
            self._gone(self._environment.container_id)
            self._environment.container_id = None  # else its destructor removes it once more


def mini_bubblewrap(scratch: Path) -> Contender:
    _needs("mini-swe-agent", "minisweagent", scratch)
    from minisweagent.environments.extra.bubblewrap import BubblewrapEnvironment

    if shutil.which("bwrap") is None:
        raise Unavailable("bwrap not found on PATH. Install it: apt-get install bubblewrap")
    return Contender(
        "mini-swe-agent bubblewrap", "bubblewrap", lambda: Mini(BubblewrapEnvironment()), moves_files=False
    )


def mini_docker(scratch: Path) -> Contender:
    _needs("mini-swe-agent", "minisweagent", scratch)
    client = _engine()
    from minisweagent.environments.docker import DockerEnvironment

    def start() -> Opened:
        return Mini(DockerEnvironment(image=BASE_IMAGE), lambda name: _wait_until_gone(client, name))

    return Contender("mini-swe-agent docker", "docker", start, moves_files=False)


def _needs(distribution: str, module: str, scratch: Path) -> None:
    os.environ.setdefault("SWE_REX_LOG_STREAM_LEVEL", "CRITICAL")
    os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
    os.environ.setdefault("MSWEA_GLOBAL_CONFIG_DIR", str(scratch))  # the import makes this folder
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{distribution} is not installed ({error}). Install it {INSTALL}") from error
    logging.getLogger("minisweagent").setLevel(logging.WARNING)  # the import sets it to log everything


MAKERS: dict[str, Callable[[Path], Contender]] = {
    "bare exec": bare_exec,
    "bare bwrap": bare_bubblewrap,
    "selfplay bubblewrap": lambda _: ours("bubblewrap"),
    "selfplay bubblewrap, ready": lambda _: ours_prewarmed("bubblewrap"),
    "mini-swe-agent bubblewrap": mini_bubblewrap,
    "swe-rex local": swe_rex_local,
    "docker SDK, a run for each": sdk_run,
    "docker SDK, exec_run": sdk_container,
    "selfplay docker": lambda _: ours("docker"),
    "selfplay docker, ready": lambda _: ours_prewarmed("docker"),
    "mini-swe-agent docker": mini_docker,
    "swe-rex docker": swe_rex_docker,
}
