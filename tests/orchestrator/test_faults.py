"""What the machine does to a sandbox, a judgement or a run: each fault is a typed error, decides nothing
and leaves nothing behind.
"""

from __future__ import annotations

import ast
import errno
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import pytest

import selfplay
from bare_environment import an_environment
from machine import eventually, open_or_skip, sandbox_groups
from process_tree import PARSER, TEST_RUN, processes_of
from selfplay.errors import (
    DiskFullError,
    PrerequisiteError,
    SandboxInterrupted,
    SandboxUnavailable,
    full_disk_reported,
)
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import Limits, Sandbox, SandboxSpec
from selfplay.sandbox.bubblewrap_host import find_programs, loader_cache
from selfplay.sandbox.client import ConnectedSandbox
from selfplay.settings.playing import ValidatorSettings
from selfplay.verdicts.test_runs import TestRunner

pytestmark = pytest.mark.sandbox

SPEC = SandboxSpec(environment="", labels={"run": "test"})
ROOT = Path(__file__).parents[2]


def container_of(box: Sandbox) -> str:
    return str(cast(ConnectedSandbox, box).details["container"])


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def own_containers() -> list[str]:
    listed = subprocess.run(
        ["docker", "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split() if f"-{os.getpid()}-" in name]


# ---- the engine


class Line:
    """A socket that leads to the machine's engine. `cut` acts as if the engine had ended, `restore` as if it
    had come back.
    """

    def __init__(self, path: Path, engine: str = "/var/run/docker.sock") -> None:
        self.path, self._engine = path, engine
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.restore()

    def restore(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
            self.path.unlink()
        self.drop()

    def drop(self) -> None:
        """Cut what is open and take new connections at once, as if the engine had restarted in no time."""
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._engine)
            with self._lock:
                self._open |= {near, far}
            sides = [
                threading.Thread(target=self._carry, args=pair, daemon=True)
                for pair in ((near, far), (far, near))
            ]
            for side in sides:
                side.start()
            threading.Thread(target=self._finish, args=(sides, near, far), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _finish(self, sides: list[threading.Thread], *ends: socket.socket) -> None:
        for side in sides:
            side.join()
        with self._lock:
            self._open -= set(ends)
        for end in ends:
            end.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """Before it is asked for, the engine is known to answer; the folder's name is short, since a socket's
    path must be.
    """
    if not Path("/var/run/docker.sock").exists() or os.environ.get("DOCKER_HOST"):
        pytest.skip("no docker engine at /var/run/docker.sock; start one: service docker start")
    with warnings.catch_warnings():  # docker's library leaves open the socket that it could not connect
        warnings.simplefilter("ignore", ResourceWarning)
        with tempfile.TemporaryDirectory() as folder:
            line = Line(Path(folder) / "engine.sock")
            monkeypatch.setenv("DOCKER_HOST", f"unix://{line.path}")
            yield line
            line.cut()
        gc.collect()


def test_an_engine_that_goes_away_in_the_middle_is_the_machines_failure_and_works_again_when_it_is_back(
    line: Line, tmp_path: Path
) -> None:
    docker = open_or_skip("docker", tmp_path)
    with docker.open(SPEC) as box:
        threading.Timer(0.5, line.cut).start()
        with pytest.raises(SandboxUnavailable, match="a fresh sandbox fails too: no docker engine answers"):
            box.run("sleep 30")
        with pytest.raises(SandboxUnavailable, match="no docker engine answers"), docker.open(SPEC):
            pass
        with pytest.raises(PrerequisiteError, match="service docker start"):
            docker.check()
    line.restore()
    with docker.open(SPEC) as box:
        assert box.run("echo back").text == "back\n"
    assert eventually(lambda: own_containers() == []), own_containers()


def test_an_engine_that_goes_away_between_two_questions_is_told_as_one_that_is_gone(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = open_or_skip("docker", tmp_path)
    with docker.open(SPEC):
        pass
    described = docker._container

    def cut_when_described(*arguments: object) -> object:
        description = described(*arguments)
        line.cut()
        return description

    monkeypatch.setattr(docker, "_container", cut_when_described)
    with pytest.raises(SandboxUnavailable, match=r"^no docker engine answers"), docker.open(SPEC):
        pass


def test_an_engine_that_goes_away_while_it_is_examined_is_told_with_the_remedy(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = open_or_skip("docker", tmp_path)
    connect = docker._engine

    def cut_when_connected() -> object:
        engine = connect()
        line.cut()
        return engine

    monkeypatch.setattr(docker, "_engine", cut_when_connected)
    with pytest.raises(PrerequisiteError, match=r"no docker engine answers.*service docker start"):
        docker.check()


def test_an_engine_that_restarts_in_the_middle_decides_nothing(line: Line, tmp_path: Path) -> None:
    """A fresh container works at once, and yet the script that ran is not to blame; asked again, it gives
    its result.
    """
    runner = TestRunner(open_or_skip("docker", tmp_path), ValidatorSettings(), Limits(), {"run": "test"})
    environment = an_environment("sleep 3\n")
    threading.Timer(1.5, line.drop).start()
    with pytest.raises(SandboxInterrupted, match="the docker engine was restarted"):
        runner.run(environment, environment.tree, environment.script, environment.parser)
    assert runner.run(
        environment, environment.tree, environment.script, environment.parser
    ).outcomes.passed == {"t"}
    assert eventually(lambda: own_containers() == []), own_containers()


def test_a_container_that_somebody_kills_during_a_command_decides_nothing(tmp_path: Path) -> None:
    docker = open_or_skip("docker", tmp_path)
    with docker.open(SPEC) as box:
        kill = ["docker", "kill", container_of(box)]
        threading.Timer(0.5, lambda: subprocess.run(kill, check=True, capture_output=True)).start()
        with pytest.raises(SandboxInterrupted, match="somebody ended its container"):
            box.run("sleep 30")
    assert eventually(lambda: own_containers() == []), own_containers()


# ---- disks


def on_a_small_disk(tmp_path: Path, size: str, code: str) -> str:
    """What `code` printed where `disk` is a folder with `size` of space, in a mount namespace of its own:
    nothing stays.
    """
    if (
        os.geteuid() != 0
        or subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("a small disk is a tmpfs, which only root may mount; run the tests as root to try this")
    script = (
        f"mount -t tmpfs -o size={size} none {tmp_path} && cd {ROOT} && exec {sys.executable} - {tmp_path}"
    )
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        input=code,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


PREPARE = """
import sys, os, subprocess
from pathlib import Path
from other_repositories import C_FILES, C_LINE
from selfplay.settings.playing import EnvironmentSettings
from selfplay.repositories.build import prepare_environment
from selfplay.errors import DiskFullError
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import Limits
disk = Path(sys.argv[1])
for path, text in C_FILES.items():
    (disk / "c" / path).parent.mkdir(parents=True, exist_ok=True)
    (disk / "c" / path).write_text(text)
backend = open_backend("bubblewrap", disk / "cache")[0]
found = fetch(parse_spec(f"{disk}/c {C_LINE}"), disk / "cache")
try:
    settings = EnvironmentSettings(baselines=2)
    prepare_environment(found, backend, settings, Limits(), disk / "cache", lambda text: None)
    print("prepared")
except DiskFullError as error:
    print("full:", error)
unfinished = (".building", ".facts")
files = (disk / "cache").rglob("*")
print(sorted(path.name for path in files if path.name.startswith(unfinished) or path.suffix == ".json"))
"""


def test_a_full_cache_disk_is_named_while_an_environment_is_built_and_nothing_unfinished_stays(
    tmp_path: Path,
) -> None:
    open_or_skip("bubblewrap", tmp_path)
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("gcc or make not found. Install: apt-get install gcc libc6-dev make")
    first, left = on_a_small_disk(tmp_path, "2m", PREPARE).splitlines()
    assert first.startswith(f"full: no space is left for {tmp_path}/cache") and "SELFPLAY_CACHE" in first
    assert left == "[]"


COMPARE = """
import sys, tempfile
from pathlib import Path
from selfplay.errors import DiskFullError, PatchError
from selfplay.source.apply import diff_trees
from selfplay.source.trees import FileEntry, Tree
disk = tempfile.tempdir = sys.argv[1]
before = Tree({"a.py": FileEntry(b"x = 1\\n")})
after = Tree({"a.py": FileEntry(b"x = 1\\n" + b"y = 2  # much\\n" * 12000)})
Path(tempfile.tempdir, "ballast").write_bytes(bytes(900 << 10))
try:
    print("done", diff_trees(before, after))
except PatchError as error:
    print("the trees' fault:", error)
except DiskFullError as error:
    print("full:", error)
print(sorted(path.name for path in Path(disk).iterdir()))
"""


def test_a_full_disk_is_never_the_fault_of_the_trees(tmp_path: Path) -> None:
    compared, left = on_a_small_disk(tmp_path, "1m", COMPARE).splitlines()
    assert compared.startswith(f"full: no space is left for {tmp_path}")
    assert left == "['ballast']"


STORE = """
import sys
from pathlib import Path
from selfplay.curriculum.store import Store
from selfplay.errors import StoreError
path, ballast = Path(sys.argv[1]) / "selfplay.db", Path(sys.argv[1]) / "ballast"
ballast.write_bytes(bytes(1 << 20))
kept = 0
with Store.open(path) as store:
    try:
        for number in range(1000):
            store.record_failure(number, "phase", "x" * 20000)
            kept += 1
    except StoreError as error:
        print("full:", error)
ballast.unlink()  # somebody frees space
with Store.open(path, writer=False) as store:
    print(0 < kept == len(store.failures()))
"""


def test_a_full_disk_keeps_what_a_run_had_committed(tmp_path: Path) -> None:
    first, kept = on_a_small_disk(tmp_path, "4m", STORE).splitlines()
    assert "cannot grow" in first and "nothing that was committed is lost" in first
    assert kept == "True"


def test_a_file_that_may_not_grow_is_a_full_disk_too(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFullError, match="no space is left for .*here: No space left on device"),
        full_disk_reported(tmp_path / "here"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), full_disk_reported(tmp_path):
        (tmp_path / "none").read_text()


# ---- bubblewrap


@pytest.fixture
def movable_bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of bwrap, the only one on PATH."""
    open_or_skip("bubblewrap", tmp_path)
    found = shutil.which("bwrap")
    assert found is not None
    copy = tmp_path / "bin" / "bwrap"
    copy.parent.mkdir()
    shutil.copy2(found, copy)
    monkeypatch.setenv("PATH", str(copy.parent))
    find_programs.cache_clear()
    yield copy
    find_programs.cache_clear()


NO_BWRAP = r"bubblewrap (does not start|started no command server): [\s\S]*bwrap"


def test_bwrap_that_vanishes_in_the_middle_is_the_machines_failure(
    movable_bwrap: Path, tmp_path: Path
) -> None:
    backend = open_backend("bubblewrap", tmp_path)[0]
    hidden = movable_bwrap.with_suffix(".hidden")
    with backend.open(SPEC) as box:
        descriptors = open_descriptors()
        groups = len(sandbox_groups())
        movable_bwrap.rename(hidden)
        with (
            pytest.raises(SandboxUnavailable, match=NO_BWRAP),
            backend.open(SPEC),
        ):
            pass
        assert (open_descriptors(), len(sandbox_groups())) == (descriptors, groups)
        assert box.run("echo on").text == "on\n"  # what is open goes on
        os.kill(cast(ConnectedSandbox, box).details["server_pid"], 9)
        with pytest.raises(SandboxUnavailable, match=f"a fresh sandbox fails too: {NO_BWRAP}"):
            box.run("true")
    hidden.rename(movable_bwrap)
    with backend.open(SPEC) as box:
        assert box.run("echo again").text == "again\n"
    assert sandbox_groups() == []


def test_without_bwrap_selfplay_validate_reaches_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "bug").mkdir()
    for name in ("bug_inject.diff", "test_weaken.diff", "test_files.txt", "test_script.sh", "test_parser.py"):
        (tmp_path / "bug" / name).write_text("x\n")
    command = [
        sys.executable,
        "-m",
        "selfplay.cli",
        "validate",
        str(tmp_path / "bug"),
        "--repo",
        "pypi:toolz==1.0.0",
        "--json",
    ]
    environment = {**os.environ, "PATH": str(tmp_path), "SELFPLAY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, "--set", "sandbox.type=bubblewrap"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["kind"] == "machine" and "apt-get install bubblewrap" in done.stderr


# ---- the clock


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """time.time jumps by hours, back and forth, each time that it is asked."""
    true, asked = time.time, []

    def jumping() -> float:
        asked.append(true())
        return asked[-1] + (5 - 3 * (len(asked) % 4)) * 3600

    monkeypatch.setattr(time, "time", jumping)
    time.time()
    return asked


def test_a_clock_that_jumps_moves_no_timeout_and_no_duration(
    jumping_clock: list[float], tmp_path: Path
) -> None:
    backend = open_or_skip("bubblewrap", tmp_path)
    with backend.open(SPEC) as box:
        started = time.monotonic()
        late = box.run("sleep 600", timeout_s=1)
        assert late.timed_out and 1 <= late.duration_s < 60 and time.monotonic() - started < 60
        soon = box.run("sleep 1", timeout_s=60)
        assert not soon.timed_out and 1 <= soon.duration_s < 60
    runner = TestRunner(backend, ValidatorSettings(), Limits(), {"run": "test"})
    environment = an_environment("sleep 1\n")
    run = runner.run(environment, environment.tree, environment.script, environment.parser)
    assert run.outcomes.passed == {"t"} and 1 <= run.timings.script_s < 60 and 0 <= run.timings.parser_s < 60


WALL_CLOCKS = {
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
    "datetime.now",
    "datetime.utcnow",
    "date.today",
}
RECORDED = {
    "curriculum/database.py",  # when a row was written
    "viewing/replay.py",  # shows such a time
    "viewing/screens/list_screen.py",  # the age that a filter names
    "commands/inspect_bugs.py",  # the same, on the command line
    "agent/workspaces.py",  # when an episode began; the other clock measures how long it took
    "attacks/phases.py",  # a bug that knows when it was made
    "commands/train.py",  # a run's name
    "commands/doctor.py",  # the age of another process's scratch folders, from the time stamps of their files
}


def test_the_wall_clock_is_read_only_where_a_time_is_recorded_or_compared_with_a_file() -> None:
    package = Path(selfplay.__file__).parent
    readers = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCKS:
                readers.add(path.relative_to(package).as_posix())
    assert readers == RECORDED


# ---- kills that were nobody's in a sandbox


def kill_first(kind: str) -> threading.Thread:
    """Kill the first process of `kind` that is started by this one."""

    def watch() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for process in processes_of(os.getpid()):
                if process.kind == kind:
                    os.kill(process.pid, signal.SIGKILL)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@contextmanager
def killing(kind: str) -> Iterator[None]:
    """Every process of `kind` that this one starts meanwhile is killed."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            for process in processes_of(os.getpid()):
                if process.kind == kind:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_a_test_run_that_gets_a_signal_is_not_made_again(tmp_path: Path) -> None:
    """Its own code may have sent the signal, to be drawn again."""
    environment = an_environment("sleep 0.5; echo ran\n")
    runner = TestRunner(open_or_skip("bubblewrap", tmp_path), ValidatorSettings(), Limits(), {"run": "test"})
    killer = kill_first(TEST_RUN)
    done = runner.script(environment, environment.tree, environment.script)
    killer.join()
    assert (done.log, done.exit_code, done.error) == (b"", 137, "")


def test_a_parser_that_is_killed_is_asked_anew_when_its_log_comes_again(
    tmp_path: Path,
) -> None:
    environment = an_environment("echo ran\n", 'import time\ntime.sleep(0.5)\nprint(\'{"t": "passed"}\')\n')
    runner = TestRunner(open_or_skip("bubblewrap", tmp_path), ValidatorSettings(), Limits(), {"run": "test"})
    with killing(PARSER):
        spoiled = runner.run(environment, environment.tree, environment.script, environment.parser)
    assert spoiled.error == "test_parser.py ended with exit status 137: it said nothing"
    again = runner.run(environment, environment.tree, environment.script, environment.parser)
    assert (again.outcomes.passed, again.error, again.cached) == ({"t"}, "", True)


def test_a_script_that_kills_itself_counts(tmp_path: Path) -> None:
    environment = an_environment("echo once; kill -9 $$\n")
    runner = TestRunner(open_or_skip("bubblewrap", tmp_path), ValidatorSettings(), Limits(), {"run": "test"})
    done = runner.script(environment, environment.tree, environment.script)
    assert (done.exit_code, done.error) == (137, "")
    assert done.log.startswith(b"once\n")


@pytest.mark.timeout(30)
def test_a_bubblewrap_that_is_killed_before_any_sandbox_stands_is_told_and_not_waited_for(
    tmp_path: Path,
) -> None:
    """What it leaves behind may hold its output open for ever."""
    killed = tmp_path / "bwrap"
    killed.write_text(
        "#!/bin/sh\nsleep 600 &\necho $! > pid\nkill -9 $$\n".replace("> pid", f"> {tmp_path}/pid")
    )
    killed.chmod(0o755)
    try:
        with pytest.raises(SandboxUnavailable, match="cannot run ldconfig: it ended with -9"):
            loader_cache(str(killed))
            pytest.skip("this Python has no shared library, so nothing is run to find it")
    finally:
        if (tmp_path / "pid").exists():
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
