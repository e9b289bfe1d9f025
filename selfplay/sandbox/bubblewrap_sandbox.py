"""Sandboxes from bubblewrap: private namespaces on this machine's own /usr and Python, without an engine or images.

What it does not protect against is written in docs/sandboxes.md. Invariant: pid namespaces die with their process 1,
process 1 dies with the harness, so that a killed run leaves at most folders and control groups, which `sweep` removes.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import marshal
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from selfplay.errors import (
    DiskFullError,
    EnvironmentBuildError,
    PrerequisiteError,
    SandboxInterrupted,
    SandboxUnavailable,
)
from selfplay.sandbox import command_server
from selfplay.sandbox.base import SUBMIT, VENV, WORKSPACE, Limits, Sandbox, SandboxSpec
from selfplay.sandbox.cgroups import ControlGroup, make_group, memory_kills, sweep_groups
from selfplay.sandbox.client import (
    HELLO_S,
    ConnectedSandbox,
    Connection,
    PeerGone,
    PipeChannel,
    Refused,
    probe,
)
from selfplay.sandbox.index_proxy import begin_forwarding, forwarding_variables, open_way
from selfplay.sandbox.owners import abandoned, unique_name
from selfplay.sandbox.seccomp import seccomp_filter
from selfplay.sandbox.variables import command_variables, index_access

PYTHON = "/opt/python"  # where the base interpreter's prefix is bound, wherever it lies outside
SERVER = "/opt/selfplay/command_server.pyc"
WAY_OUT = "/opt/index"  # the socket that leads a build to its package index
SECCOMP = "seccomp"  # not a path: bubblewrap reads this one itself
BUILD_LIMITS = Limits(
    memory_bytes=4 << 30,
    processes=512,
    file_bytes=1 << 30,
    workspace_bytes=1 << 30,
    tmp_bytes=2 << 30,
    output_bytes=32 << 20,
    cpus=4.0,
)
LOG_TAIL = 4000
SMALL_TMPFS_BYTES = 16 << 20
FULL_DISK_BYTES = 1 << 20  # a build that fails with less than this left has failed for the lack of it
FIRST_UID = (
    1 << 30
)  # far from any account; a sandbox has its own, so that the kernel counts its processes apart
PYTHON_PROGRAM_FILES = 20
WATCH_INTERVAL_S = 0.05
REMEDY_INSTALL = "Install it (for example: apt-get install bubblewrap), or set sandbox.type = 'docker'."
_numbers = itertools.count()


class BubblewrapBackend:
    """See `SandboxBackend`. `cache` holds the environments; by default $SELFPLAY_CACHE or ~/.cache/selfplay."""

    name = "bubblewrap"

    def __init__(self, cache: Path | None = None) -> None:
        root = cache or Path(os.environ.get("SELFPLAY_CACHE") or Path.home() / ".cache" / "selfplay")
        self._environments = root / "environments" / "bubblewrap"
        self._spawner: tuple[int, ThreadPoolExecutor] | None = None
        self._lock = threading.Lock()

    # ---- sandboxes

    def check(self) -> None:
        _programs()
        try:
            with self._opened(SandboxSpec(environment="")) as opened:
                probe(opened.connection)
        except SandboxUnavailable as error:
            raise PrerequisiteError(
                f"bubblewrap cannot make a sandbox here: {error}\n{_namespace_remedy()}"
            ) from error

    @contextmanager
    def open(self, spec: SandboxSpec) -> Iterator[Sandbox]:
        opened = self._start(spec)

        def probe_afresh() -> None:
            by = opened.killed_from_outside()
            with self._opened(spec) as fresh:
                probe(fresh.connection)
            if by:
                raise SandboxInterrupted(by)

        sandbox = ConnectedSandbox(
            spec,
            opened.connection,
            opened.close,
            probe_afresh,
            server_pid=opened.server_pid,
            group=opened.group,
        )
        try:
            yield sandbox
        finally:
            sandbox.close()

    def sweep(self) -> list[str]:
        removed = sweep_groups()
        for folder in self._environments.glob(".building-*"):
            if abandoned(folder.name.removeprefix(".building-")):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(f"unfinished environment {folder}")
        return removed

    # ---- environments

    def environment_exists(self, key: str) -> bool:
        try:
            return (self._environments / key / "python").read_text() == _python_identity()
        except OSError:
            return False

    def environment_reference(self, key: str) -> str:
        return str(self._environments / key / "env")

    def build_environment(self, key: str, script: str, timeout_s: float, log: Path) -> str:
        if self.environment_exists(key):
            return self.environment_reference(key)
        if importlib.util.find_spec("ensurepip") is None:
            raise PrerequisiteError(
                f"{sys.base_prefix} has no ensurepip, which environments need. Install it: apt-get install python3-venv"
            )
        building = self._environments / f".building-{unique_name()}"
        (building / "env").mkdir(parents=True, mode=0o755)
        building.chmod(
            0o700
        )  # what a build leaves here (a set-uid file, say) is out of reach for other users of the machine
        try:
            access = index_access()
            variables = {**access.variables, **forwarding_variables()}
            spec = SandboxSpec(
                str(building / "env"),
                limits=BUILD_LIMITS,
                network=True,
                writable_env=True,
                variables=variables,
            )
            python = f"{PYTHON}/bin/python3"
            steps = f"set -e\n{begin_forwarding(python, WAY_OUT)}\n{python} -m venv {VENV}\ncd {WORKSPACE}\n{script}"
            log.parent.mkdir(parents=True, exist_ok=True)
            with (
                open_way(access.way) as way,
                self._opened(spec, access.paths, access.pip_conf, way / "index") as opened,
            ):
                try:
                    result = opened.connection.run(steps.encode(), timeout_s, BUILD_LIMITS.output_bytes, b"")
                except PeerGone as error:
                    by = opened.killed_from_outside()
                    with self._opened(SandboxSpec(environment="")) as fresh:
                        probe(fresh.connection)  # raises when the machine is at fault
                    if by:
                        raise SandboxInterrupted(
                            f"the build of environment {key} was cut off: {by}"
                        ) from error
                    raise EnvironmentBuildError(
                        f"the build of environment {key} ended its sandbox: {error}"
                    ) from error
            log.write_bytes(result.output)
            if result.exit_code != 0:
                if shutil.disk_usage(building).free < FULL_DISK_BYTES:
                    raise DiskFullError(
                        self._environments, f"a build ended with exit code {result.exit_code} on a full disk"
                    )
                reason = (
                    f"did not end within {timeout_s:.0f} s"
                    if result.timed_out
                    else f"ended with exit code {result.exit_code}"
                )
                raise EnvironmentBuildError(
                    f"the build of environment {key} {reason}; whole log: {log}", result.text[-LOG_TAIL:]
                )
            _own_everything(building / "env")
            (building / "build.log").write_bytes(result.output)
            (building / "python").write_text(_python_identity())
            self._publish(building, self._environments / key, key)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return self.environment_reference(key)

    def _publish(self, building: Path, final: Path, key: str) -> None:
        """Rename into place. Another process may have built the same key meanwhile: then its result stands."""
        if final.exists() and not self.environment_exists(key):  # of another Python, or damaged
            final.rename(self._environments / f".building-{unique_name()}-old")
        try:
            building.rename(final)
        except OSError:
            if not self.environment_exists(key):
                raise

    # ---- starting

    @contextmanager
    def _opened(
        self, spec: SandboxSpec, shared: tuple[Path, ...] = (), pip_conf: str = "", way: Path | None = None
    ) -> Iterator[_Opened]:
        opened = self._start(spec, shared, pip_conf, way)
        try:
            yield opened
        finally:
            opened.close()

    def _start(
        self, spec: SandboxSpec, shared: tuple[Path, ...] = (), pip_conf: str = "", way: Path | None = None
    ) -> _Opened:
        programs = _programs()
        if spec.environment and not Path(spec.environment).is_dir():
            raise SandboxUnavailable(
                f"environment {spec.environment!r} is not a folder. Build it again: it may have been deleted from the cache."
            )
        is_root = os.geteuid() == 0
        uid = FIRST_UID + (os.getpid() << 8) + next(_numbers) % 256 if is_root else 1000
        if spec.writable_env and is_root:
            os.chown(spec.environment, uid, uid)
        info_read, info_write = os.pipe()
        files: dict[str, str | bytes] = {
            "/etc/passwd": _passwd(uid),
            "/etc/group": f"root:x:0:\nsandbox:x:{uid}:\n",
            "/etc/gitconfig": "",
            SERVER: _server_code(),
        }
        loader = _loader_cache(programs["bwrap"])
        if loader:
            files["/etc/ld.so.cache"] = loader
        if pip_conf:
            files["/etc/pip.conf"] = pip_conf
        if spec.network:
            files["/etc/hosts"] = "127.0.0.1 localhost\n::1 localhost\n"
        made = {path: _memory_file(content) for path, content in files.items() if content}
        if refused_calls := seccomp_filter():
            made[SECCOMP] = _memory_file(refused_calls)
        group = make_group(unique_name(), spec.limits)
        try:
            arguments = bubblewrap_arguments(spec, programs, uid, is_root, made, info_write, shared, way)
            process = self._spawn(arguments, command_variables(spec), [*made.values(), info_write])
        except BaseException:
            os.close(info_read)
            if group:
                group.remove()
            raise
        finally:
            os.close(info_write)
            for fd in made.values():
                os.close(fd)
        assert process.stdin and process.stdout
        opened = _Opened(
            process, group, Connection(PipeChannel(process.stdout.fileno(), process.stdin.fileno()))
        )
        try:
            opened.begin(info_read, spec.limits)
        except BaseException:
            opened.close()
            raise
        finally:
            os.close(info_read)
        return opened

    def _spawn(
        self, arguments: list[str], variables: Mapping[str, str], fds: list[int]
    ) -> subprocess.Popen[bytes]:
        """Start bubblewrap from a thread that outlives every caller: --die-with-parent means the starting *thread*."""

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(variables),
                pass_fds=fds,
                cwd="/",
            )

        with self._lock:
            if self._spawner is None or self._spawner[0] != os.getpid():
                self._spawner = (os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="bubblewrap"))
            executor = self._spawner[1]
        try:
            return executor.submit(start).result()
        except OSError as error:
            raise SandboxUnavailable(f"bubblewrap does not start: {error}") from error


class _Opened:
    """A started bubblewrap: its process, its limits, its command server."""

    def __init__(
        self, process: subprocess.Popen[bytes], group: ControlGroup | None, connection: Connection
    ) -> None:
        self.process = process
        self.group = group
        self.connection = connection
        self.server_pid = 0
        self._server: int | None = None  # a pidfd: a number could be reused, this cannot
        self._closed = threading.Event()
        self._used_too_much = False  # as the watchdog found
        self._memory_kills = memory_kills(group)

    def begin(self, info: int, limits: Limits) -> None:
        """Wait until the server answers; put it under its limits before anything hostile runs."""
        try:
            text = _read_until(info, b"}", time.monotonic() + HELLO_S)
            self.server_pid = int(json.loads(text)["child-pid"])
            self._server = os.pidfd_open(self.server_pid)
            if not self._join_group():
                threading.Thread(
                    target=self._watch, args=(limits,), daemon=True, name="sandbox-watchdog"
                ).start()
            self.connection.hello(time.monotonic() + HELLO_S)
        except (PeerGone, Refused, OSError, ValueError, KeyError) as error:
            raise SandboxUnavailable(
                f"bubblewrap started no command server: {error} {self._errors()}".strip()
            ) from error

    def _join_group(self) -> bool:
        if self.group is None:
            return False
        try:
            for pid in (self.process.pid, self.server_pid):
                self.group.add(pid)
        except OSError:  # a group may be made here but not entered: v2 asks for rights on the way to it too
            return False
        return True

    def close(self) -> None:
        """Kill process 1, and the kernel everything in its namespace; bubblewrap itself ends once that is done."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._server is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self._server, signal.SIGKILL)
        else:
            self.process.kill()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._server is not None:
            os.close(self._server)
            self._server = None
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        if self.group:
            self.group.remove()

    def killed_from_outside(self) -> str:
        """Who ended the sandbox, where nothing that ran in it can have: "" where it can, or the sandbox lives.

        A command sees neither bubblewrap nor a process 1 that it could send SIGKILL to (pid_namespaces(7)). What it can do is to use up
        memory until the kernel or the watchdog kills, which both are asked about.
        """
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.poll()
        if (
            self._used_too_much
            or self._memory_kills is None
            or memory_kills(self.group) != self._memory_kills
        ):
            return ""
        if code is not None and code < 0:
            return f"its bubblewrap was ended by {signal.Signals(-code).name} from outside"
        if code == 128 + signal.SIGKILL:
            return "its command server was ended by SIGKILL from outside"
        return ""

    def _errors(self) -> str:
        stream = self.process.stderr
        if stream is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        os.set_blocking(stream.fileno(), False)
        return (stream.read(4000) or b"").decode("utf-8", "replace").strip()

    def _watch(self, limits: Limits) -> None:
        """Where no control group can be made: end the sandbox once its processes together hold more than they may."""
        while not self._closed.wait(WATCH_INTERVAL_S):
            usage = tree_usage(self.server_pid)
            if usage.resident_bytes > limits.memory_bytes or usage.processes > 4 * limits.processes:
                self._used_too_much = True
                with suppress(OSError):
                    os.kill(self.server_pid, signal.SIGKILL)
                return


@dataclass(frozen=True)
class TreeUsage:
    processes: int
    resident_bytes: int


def tree_usage(pid: int) -> TreeUsage:
    """What a process and its descendants hold; memory that two of them share counts twice, which errs on the safe side."""
    page = os.sysconf("SC_PAGE_SIZE")
    pending, processes, resident = [pid], 0, 0
    while pending:
        current = pending.pop()
        try:
            resident += int(Path(f"/proc/{current}/statm").read_text().split()[1]) * page
            for thread in Path(f"/proc/{current}/task").iterdir():
                pending += [int(child) for child in (thread / "children").read_text().split()]
        except (OSError, ValueError, IndexError):
            continue
        processes += 1
    return TreeUsage(processes, resident)


def bubblewrap_arguments(
    spec: SandboxSpec,
    programs: Mapping[str, str],
    uid: int,
    is_root: bool,
    made: Mapping[str, int],
    info: int,
    shared: tuple[Path, ...],
    way: Path | None = None,
) -> list[str]:
    """The whole command line. Root keeps its capabilities until setpriv has changed the user, everybody else gets a user namespace.

    way: the socket that leads out, for a build; the network itself is nobody's.
    """
    limits = spec.limits
    line = [
        programs["bwrap"],
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--hostname",
        "sandbox",
    ]
    line += [
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
        "--info-fd",
        str(info),
        "--chdir",
        "/",
        "--unshare-net",
    ]
    if not is_root:
        line += ["--unshare-user", "--uid", str(uid), "--gid", str(uid), "--cap-drop", "ALL"]

    line += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        host = Path("/", name)
        if host.is_symlink():
            line += ["--symlink", str(host.readlink()), f"/{name}"]
        elif host.is_dir():
            line += ["--ro-bind", f"/{name}", f"/{name}"]
    for folder in ("/opt", "/etc", "/etc/ssl", "/etc/pki", "/etc/pki/tls"):
        line += [
            "--perms",
            "0755",
            "--dir",
            folder,
        ]  # a folder that bubblewrap makes on its own may be closed to others
    line += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    line += ["--ro-bind", sys.base_prefix, PYTHON]
    for folder in _package_folders():
        line += ["--size", "4096", "--perms", "0555", "--tmpfs", folder]
    if spec.environment:
        line += ["--bind" if spec.writable_env else "--ro-bind", spec.environment, VENV]
    if spec.network:
        line += _certificate_binds()
        line += ["--ro-bind", str(way), WAY_OUT] if way else []
        for place in shared:
            if Path("/usr") not in (place, *place.parents):
                for parent in reversed(place.parents[:-1]):
                    line += ["--perms", "0755", "--dir", str(parent)]
                line += ["--ro-bind", str(place), str(place)]
    for path, fd in made.items():
        if path == SECCOMP:
            line += ["--seccomp", str(fd)]
            continue
        line += ["--perms", "0444", "--ro-bind-data", str(fd), path]

    line += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--perms",
        "1777",
        "--size",
        str(SMALL_TMPFS_BYTES),
        "--tmpfs",
        "/dev/shm",
        "--remount-ro",
        "/dev",
    ]
    for path, size in (
        (WORKSPACE, limits.workspace_bytes),
        (SUBMIT, limits.submit_bytes),
        ("/tmp", limits.tmp_bytes),
    ):
        line += ["--perms", "1777" if path == "/tmp" else "0777", "--size", str(size), "--tmpfs", path]
    line += ["--remount-ro", "/", "--"]

    if is_root:
        line += [programs["setpriv"], "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
        line += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]
    line += [f"{PYTHON}/bin/{_python_name()}", "-I", "-S", SERVER]
    return [*line, str(limits.file_bytes), str(limits.processes), "1", WORKSPACE]


@cache
def _package_folders() -> tuple[str, ...]:
    """What is hidden of this machine's /usr and Python: every folder of installed packages, and whole programs that are
    written in Python, since either could hold the very source that a solver is to repair."""
    prefix = Path(sys.base_prefix)
    found = [f"{PYTHON}/{path}" for path in _python_folders(prefix, whole_programs=prefix == Path("/usr"))]
    found += [f"/usr/{path}" for path in _python_folders(Path("/usr"), whole_programs=True)]
    return tuple(dict.fromkeys(found))


def _python_folders(prefix: Path, whole_programs: bool) -> list[str]:
    """Relative to `prefix`: site-packages and dist-packages of the interpreters, then folders with many Python files."""
    libraries = [prefix / name for name in ("lib", "lib64", "local/lib", "local/lib64")]
    libraries = [library for library in libraries if library.is_dir() and not library.is_symlink()]
    packages = [
        folder
        for library in libraries
        for kind in ("site-packages", "dist-packages")
        for folder in library.glob(f"python*/{kind}")
    ]
    if whole_programs:
        places = [
            place
            for place in (
                *libraries,
                prefix / "share",
                prefix / "local/share",
                prefix / "src",
                prefix / "local/src",
            )
            if place.is_dir()
        ]
        packages += [
            program
            for place in places
            for program in place.iterdir()
            if not program.name.startswith("python") and _holds_python(program)
        ]
    return [
        str(folder.relative_to(prefix)) for folder in packages if folder.is_dir() and not folder.is_symlink()
    ]


def _holds_python(folder: Path) -> bool:
    seen = 0
    for _, _, files in os.walk(folder):
        seen += sum(name.endswith((".py", ".pyc")) for name in files)
        if seen >= PYTHON_PROGRAM_FILES:
            return True
    return False


def _certificate_binds() -> list[str]:
    line = []
    for path in (
        "/etc/ssl/certs",
        "/etc/ssl/openssl.cnf",
        "/etc/pki/tls/certs",
        "/etc/ca-certificates",
    ):
        line += ["--ro-bind-try", os.path.realpath(path), path]
    return line


@cache
def _programs() -> Mapping[str, str]:
    """Paths of the programs that starting needs. Raises PrerequisiteError."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise PrerequisiteError(f"bwrap not found on PATH. {REMEDY_INSTALL}")
    help_text = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False).stdout
    missing = [
        option
        for option in ("--size", "--perms", "--as-pid-1", "--ro-bind-data", "--info-fd")
        if option not in help_text
    ]
    if missing:
        raise PrerequisiteError(
            f"{bwrap} is too old, it lacks {', '.join(missing)}. bubblewrap 0.7 or newer is needed, or set sandbox.type = 'docker'."
        )
    programs = {"bwrap": bwrap}
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv", path="/usr/bin:/bin:/usr/sbin:/sbin")
        if setpriv is None:
            raise PrerequisiteError(
                "setpriv not found, which sandboxes need when selfplay runs as root. Install it: apt-get install util-linux"
            )
        programs["setpriv"] = setpriv
    return programs


def _namespace_remedy() -> str:
    switches = {
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        "/proc/sys/user/max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=10000"),
    }
    for path, (bad, command) in switches.items():
        try:
            if Path(path).read_text().strip() == bad:
                return f"This machine restricts user namespaces. Allow them with: sudo {command}   or set sandbox.type = 'docker'."
        except OSError:
            continue
    return (
        "User or pid namespaces may be forbidden here (inside a container, start that container with --privileged or "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined), or set sandbox.type = 'docker'."
    )


@cache
def _python_name() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _python_identity() -> str:
    return f"{sys.implementation.cache_tag} {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} {os.uname().machine}\n"


@cache
def _loader_cache(bwrap: str) -> bytes:
    """The loader's list of libraries. A Python with a shared library was linked to where it lay, not to where it is bound;
    LD_LIBRARY_PATH would mend that too, until a test clears its environment."""
    host = Path("/etc/ld.so.cache")
    existing = host.read_bytes() if host.exists() else b""
    prefix = Path(sys.base_prefix)
    if prefix == Path("/usr") or not any(prefix.glob(f"lib/lib{_python_name()}*.so*")):
        return existing
    with tempfile.TemporaryDirectory(prefix="selfplay-") as folder:
        (Path(folder) / "conf").write_text(f"{PYTHON}/lib\ninclude /etc/ld.so.conf\n")
        line = [
            bwrap,
            "--die-with-parent",
            "--ro-bind",
            "/",
            "/",
            "--tmpfs",
            "/opt",
            "--ro-bind",
            sys.base_prefix,
            PYTHON,
        ]
        line += ["--bind", folder, "/mnt"]
        ldconfig = (
            shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "ldconfig"
        )
        command = [*line, ldconfig, "-X", "-C", "/mnt/cache", "-f", "/mnt/conf"]
        errors = Path(folder) / "errors"
        with errors.open(
            "wb"
        ) as told:  # no pipe: what a killed bubblewrap leaves behind could hold it open, and a reader with it
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, check=False
            ).returncode
        if code != 0:
            said = errors.read_text(errors="replace").strip() or f"it ended with {code}"
            raise SandboxUnavailable(f"bubblewrap cannot run ldconfig: {said}")
        return (Path(folder) / "cache").read_bytes()


@cache
def _server_code() -> bytes:
    """The server as bytecode for the same interpreter: compiling it anew would be a third of the time to open."""
    source = Path(command_server.__file__).read_bytes()
    code = compile(source, SERVER, "exec", dont_inherit=True, optimize=0)
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def _passwd(uid: int) -> str:
    return f"root:x:0:0:root:/:/usr/sbin/nologin\nsandbox:x:{uid}:{uid}:sandbox:/tmp:/bin/bash\n"


def _memory_file(content: str | bytes) -> int:
    fd = os.memfd_create("selfplay")
    command_server.write_all(fd, content.encode() if isinstance(content, str) else content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _read_until(fd: int, mark: bytes, deadline: float) -> bytes:
    data = b""
    while mark not in data:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(fd, 4096) if ready else b""
        if not part:
            raise PeerGone("it ended before it began")
        data += part
    return data


def _own_everything(folder: Path) -> None:
    """Give a built environment to the harness's user: no sandbox's user, present or future, owns a file outside."""
    if os.geteuid() != 0:
        return
    for where, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.lchown(Path(where, name), 0, 0)
