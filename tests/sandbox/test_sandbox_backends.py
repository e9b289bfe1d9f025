"""What backends promise beyond one sandbox: kinds of losses, no leftovers, environments, and their choice."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from machine import eventually, open_or_skip, sandbox_groups
from process_tree import is_alive
from selfplay.attacks.bombs import HOARD
from selfplay.errors import (
    ConfigError,
    EnvironmentBuildError,
    PrerequisiteError,
    SandboxInterrupted,
    SandboxLost,
    SandboxUnavailable,
)
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import Limits, Sandbox, SandboxBackend, SandboxSpec
from selfplay.sandbox.bubblewrap_host import users_have_namespaces
from selfplay.sandbox.bubblewrap_sandbox import BubblewrapBackend
from selfplay.sandbox.cgroups import make_group
from selfplay.sandbox.client import ConnectedSandbox
from selfplay.sandbox.layers import can_layer

pytestmark = pytest.mark.sandbox
ROOT = Path(__file__).parents[2]
NO_GROUPS = "no control group can be made here; run as root on a machine whose cgroup file system is writable"


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SandboxBackend:
    return open_or_skip(request.param, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def bubblewrap(tmp_path: Path) -> BubblewrapBackend:
    return cast(BubblewrapBackend, open_or_skip("bubblewrap", tmp_path))


def kill_server(box: Sandbox) -> None:
    details = cast(ConnectedSandbox, box).details
    if "server_pid" in details:
        os.kill(details["server_pid"], signal.SIGKILL)
    else:  # not through the engine, since no command in a sandbox can ask it
        command = ["docker", "inspect", "-f", "{{.State.Pid}}", details["container"]]
        asked = subprocess.run(command, check=True, capture_output=True, text=True)
        os.kill(int(asked.stdout), signal.SIGKILL)


def processes_with(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and text in (folder / "cmdline").read_bytes().decode("utf-8", "replace"):
                found.append(folder.name)
        except OSError:
            continue
    return found


def printed(code: str) -> str:
    """Run code in another process, wait for its end, return its output."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.strip()


# ---- losses


def test_a_container_whose_server_dies_is_lost_and_stays_lost(tmp_path: Path) -> None:
    with open_or_skip("docker", tmp_path).open(SandboxSpec(environment="")) as box:
        box.run("true")
        kill_server(box)
        for _ in range(2):
            with pytest.raises(SandboxLost, match="a fresh sandbox works"):
                box.run("true")
        with pytest.raises(SandboxLost):
            box.read_archive("/testbed", 1000)


def test_a_command_server_that_is_killed_from_outside_is_the_machines_failure(
    bubblewrap: BubblewrapBackend,
) -> None:
    with bubblewrap.open(SandboxSpec(environment="")) as box:
        box.run("true")
        kill_server(box)
        for _ in range(2):
            with pytest.raises(
                SandboxInterrupted, match="its command server was ended by SIGKILL from outside"
            ):
                box.run("true")


def test_if_bubblewrap_is_killed_from_outside_its_sandbox_is_lost_or_works_on(
    bubblewrap: BubblewrapBackend,
) -> None:
    """Without a user namespace root's bubblewrap has no right to end a process of another user: its sandbox
    runs on.
    """
    with bubblewrap.open(SandboxSpec(environment="")) as box:
        server = cast(ConnectedSandbox, box).details["server_pid"]
        os.kill(
            int(Path(f"/proc/{server}/status").read_text().partition("PPid:")[2].split()[0]), signal.SIGKILL
        )
        if os.geteuid() == 0 and not (can_layer() and users_have_namespaces()):
            assert box.run("sleep 0.2; echo on").text == "on\n"
        else:
            with pytest.raises(SandboxInterrupted, match="its bubblewrap was ended by SIGKILL from outside"):
                box.run("sleep 5")
    assert eventually(lambda: not is_alive(server))


def test_a_sandbox_that_ran_out_of_memory_does_not_count_as_killed_from_outside(
    bubblewrap: BubblewrapBackend,
) -> None:
    with bubblewrap.open(SandboxSpec(environment="", limits=Limits(memory_bytes=64 << 20))) as box:
        if cast(ConnectedSandbox, box).details["group"] is None:
            pytest.skip(NO_GROUPS)
        box.run(f"python3 -c {shlex.quote(HOARD)}", timeout_s=30)
        with pytest.raises(SandboxLost):
            box.run("true", stdin=bytes(16 << 20))


def test_a_loss_is_the_machines_when_a_fresh_bubblewrap_sandbox_fails_too(
    bubblewrap: BubblewrapBackend, tmp_path: Path
) -> None:
    environment = tmp_path / "env"
    environment.mkdir()
    with bubblewrap.open(SandboxSpec(environment=str(environment))) as box:
        shutil.rmtree(environment)
        kill_server(box)
        with pytest.raises(SandboxUnavailable, match="a fresh sandbox fails too"):
            box.run("true")


def test_a_loss_is_the_machines_when_a_fresh_container_fails_too(tmp_path: Path) -> None:
    docker = open_or_skip("docker", tmp_path)
    image = f"selfplay/env:test-{os.getpid()}"
    subprocess.run(["docker", "tag", "selfplay/base:2", image], check=True)
    with docker.open(SandboxSpec(environment=image)) as box:
        subprocess.run(["docker", "rmi", image], check=True, capture_output=True)
        kill_server(box)
        with pytest.raises(SandboxUnavailable, match="a fresh sandbox fails too"):
            box.run("true")


def test_opening_what_does_not_exist_is_the_machines_failure(backend: SandboxBackend) -> None:
    with (
        pytest.raises(SandboxUnavailable, match="no-such-environment"),
        backend.open(SandboxSpec(environment="no-such-environment:1")),
    ):
        pass


def test_an_image_without_python_says_so(tmp_path: Path) -> None:
    docker = open_or_skip("docker", tmp_path)
    image = f"selfplay/nopython:test-{os.getpid()}"
    recipe = "FROM selfplay/base:2\nUSER root\nRUN rm /usr/bin/python3*\n"
    subprocess.run(
        ["docker", "build", "-q", "-t", image, "-"], input=recipe.encode(), check=True, capture_output=True
    )
    try:
        with (
            pytest.raises(SandboxUnavailable, match="no python3"),
            docker.open(SandboxSpec(environment=image)),
        ):
            pass
    finally:
        subprocess.run(["docker", "rmi", "-f", image], check=True, capture_output=True)


# ---- leftovers


OWNER = """
import sys, time
from pathlib import Path
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxSpec
backend, _ = open_backend(sys.argv[1], Path(sys.argv[2]))
with backend.open(SandboxSpec(environment="", labels={"run": "test"})) as box:
    box.run("setsid sleep " + sys.argv[3] + " & true")
    print("ready", flush=True)
    box.run("sleep " + sys.argv[3], timeout_s=600)
"""


def test_a_killed_harness_leaves_nothing_after_a_sweep(backend: SandboxBackend, tmp_path: Path) -> None:
    mark = f"98{os.getpid()}.{time.monotonic_ns() % 10**6}"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, backend.name, str(tmp_path), mark], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert owner.stdout is not None and owner.stdout.readline() == b"ready\n"
    assert eventually(lambda: bool(processes_with(f"sleep\0{mark}"))), (
        "the test sees no process of the sandbox, nor its end"
    )
    with owner:
        owner.kill()
    assert eventually(lambda: not processes_with(f"sleep\0{mark}")), "a sandbox outlived its harness"
    backend.sweep()
    assert backend.sweep() == []
    assert eventually(lambda: not [name for name in things_of(owner.pid) if name]), things_of(owner.pid)


def things_of(pid: int) -> list[str]:
    """Names of the control groups and containers that a process made."""
    groups = [str(path) for path in sandbox_groups(pid)]
    if shutil.which("docker"):
        listed = subprocess.run(
            ["docker", "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, check=False
        ).stdout.split()
        groups += [name for name in listed if f"-{pid}-" in name]
    return groups


def test_a_container_that_never_started_is_swept(tmp_path: Path) -> None:
    docker = open_or_skip("docker", tmp_path)
    dead = printed("from selfplay.sandbox.owners import owner; print(owner())")
    name = f"selfplay-test-{os.getpid()}"
    subprocess.run(
        [
            "docker",
            "create",
            "--name",
            name,
            "--label",
            f"selfplay.owner={dead}",
            "-v",
            "/data",
            "selfplay/base:2",
            "true",
        ],
        check=True,
        capture_output=True,
    )
    assert f"container {name}" in docker.sweep()
    assert (
        name
        not in subprocess.run(
            ["docker", "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_a_sweep_removes_nothing_of_living_processes(backend: SandboxBackend) -> None:
    with backend.open(SandboxSpec(environment="")) as box:
        backend.sweep()
        assert box.run("echo alive").text == "alive\n"


def test_closing_leaves_no_process_group_or_container(backend: SandboxBackend) -> None:
    before = set(things_of(os.getpid()))
    with backend.open(SandboxSpec(environment="")) as box:
        box.run("sleep 100 &")
        assert backend.name == "bubblewrap" or set(things_of(os.getpid())) != before
    assert eventually(lambda: set(things_of(os.getpid())) == before), things_of(os.getpid())


def test_a_sandbox_gets_no_more_processors_than_there_are(
    backend: SandboxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This machine then seems to have them. The machine of a Docker engine may have fewer.
    monkeypatch.setattr(os, "cpu_count", lambda: 4096)
    with backend.open(SandboxSpec(environment="", limits=Limits(cpus=4096.0))) as box:
        assert box.run("echo here").text == "here\n"


# ---- environments


def test_an_environment_is_built_once_saved_and_read_only(backend: SandboxBackend, tmp_path: Path) -> None:
    key = f"test-{os.getpid()}"
    module = "$(echo /opt/env/lib/python3*/site-packages)/given.py"
    script = f"echo building; printf 'VALUE = 7\\n' > {module}; command -v pip"
    try:
        reference = backend.build_environment(key, script, 300, tmp_path / "log" / "build.txt")
        assert backend.environment_exists(key) and backend.environment_reference(key) == reference
        assert b"building" in (tmp_path / "log" / "build.txt").read_bytes()
        assert backend.build_environment(key, "exit 1", 300, tmp_path / "again.txt") == reference
        with backend.open(SandboxSpec(environment=reference)) as box:
            result = box.run(
                "python -c 'import given, sys; print(given.VALUE, sys.prefix)'; "
                "touch /opt/env/x 2>/dev/null || echo closed; env | grep -c PIP_"
            )
            assert result.text == "7 /opt/env\nclosed\n0\n"
    finally:
        if backend.name == "docker":
            subprocess.run(["docker", "rmi", "-f", f"selfplay/env:{key}"], check=False, capture_output=True)


def test_a_failed_build_says_why_and_saves_nothing(backend: SandboxBackend, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentBuildError, match="exit code 3") as failure:
        backend.build_environment("failing", "echo the reason; exit 3", 300, tmp_path / "log.txt")
    assert "the reason" in failure.value.log_tail
    assert not backend.environment_exists("failing")
    with pytest.raises(EnvironmentBuildError, match="did not end within"):
        backend.build_environment("failing", "sleep 100", 8, tmp_path / "log.txt")
    assert not backend.environment_exists("failing")


def test_an_unfinished_build_of_a_dead_process_is_swept(
    bubblewrap: BubblewrapBackend, tmp_path: Path
) -> None:
    dead = printed("from selfplay.sandbox.owners import unique_name; print(unique_name())")
    left = tmp_path / "environments" / "bubblewrap" / f".building-{dead}"
    (left / "env").mkdir(parents=True)
    # Other dead processes may have left more on this machine.
    assert f"unfinished environment {left}" in bubblewrap.sweep()
    assert not left.exists()


# ---- limits without control groups


def test_the_watchdog_ends_a_sandbox_that_holds_too_much_memory(
    bubblewrap: BubblewrapBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfplay.sandbox.bubblewrap_sandbox.make_group", lambda name, limits: None)
    hungry = "python3 -c 'import time; b = b\"x\" * (400 << 20); time.sleep(20)'"
    with (
        bubblewrap.open(SandboxSpec(environment="", limits=Limits(memory_bytes=128 << 20))) as box,
        pytest.raises(SandboxLost),
    ):
        box.run(hungry, timeout_s=30)


def test_control_groups_are_used_if_they_can_be_created(bubblewrap: BubblewrapBackend) -> None:
    probe = make_group(f"selfplay-test-{os.getpid()}", Limits())
    if probe is None:
        pytest.skip(NO_GROUPS)
    probe.remove()
    with bubblewrap.open(SandboxSpec(environment="")) as box:
        details: dict[str, Any] = cast(ConnectedSandbox, box).details
        for folder in details["group"].folders:
            assert str(details["server_pid"]) in (folder / "cgroup.procs").read_text().split()


# ---- the choice


def test_auto_says_what_it_chose_and_why(tmp_path: Path) -> None:
    try:
        backend, reason = open_backend("auto", tmp_path)
    except PrerequisiteError as missing:
        pytest.skip(str(missing))
    assert reason.startswith(f"{backend.name}: ")


def test_auto_falls_back_to_bubblewrap_when_no_engine_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_or_skip("bubblewrap", tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    backend, reason = open_backend("auto", tmp_path)
    assert backend.name == "bubblewrap"
    assert "not docker: no docker engine answers" in reason


def test_without_any_backend_the_error_names_both_remedies(tmp_path: Path) -> None:
    code = "from selfplay.sandbox import open_backend; open_backend('auto')"
    environment = {
        "PATH": str(tmp_path),
        "DOCKER_HOST": f"unix://{tmp_path}/none.sock",
        "HOME": str(tmp_path),
    }
    failed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert "PrerequisiteError" in failed.stderr
    assert "apt-get install bubblewrap" in failed.stderr and "DOCKER_HOST" in failed.stderr


def test_an_unknown_kind_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'podman' is unknown.*auto, docker, bubblewrap"):
        open_backend("podman")
