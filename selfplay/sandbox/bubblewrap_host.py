"""What bubblewrap sandboxes use of this machine: programs, its Python, the loader's list of libraries.

Starts no sandbox. A sandbox sees the machine's own /usr read-only, except `hidden_folders`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from selfplay.errors import PrerequisiteError, SandboxInterrupted, SandboxUnavailable
from selfplay.sandbox.interpreters import Interpreter, interpreter_of

PYTHON_FILE = "python"  # beside the folder of an environment: which Python it was built with
PYTHON = "/opt/python"  # where a sandbox has this interpreter's prefix, wherever that lies on the machine
NEEDED_OPTIONS = ("--size", "--perms", "--as-pid-1", "--ro-bind-data", "--info-fd")
PYTHON_PROGRAM_FILES = 20  # a folder with as many Python files is a program written in Python
INTERRUPTED = "Find out what ends it here (dmesg, free memory), or set sandbox.type = 'docker'."
INSTALL = "Install it (for example: apt-get install bubblewrap), or set sandbox.type = 'docker'."


# ---- programs


@cache
def find_programs() -> Mapping[str, str]:
    """Name -> path of the programs that start a sandbox: bwrap, for root also setpriv.

    Raises PrerequisiteError when one is missing or too old, or when bwrap cannot be asked.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise PrerequisiteError(f"bwrap not found on PATH. {INSTALL}")
    help_text = _help_text(bwrap)
    missing = [option for option in NEEDED_OPTIONS if option not in help_text]
    if missing:
        raise PrerequisiteError(
            f"{bwrap} is too old, it lacks {', '.join(missing)}. "
            "bubblewrap 0.7 or newer is needed, or set sandbox.type = 'docker'."
        )
    programs = {"bwrap": bwrap}
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv", path="/usr/bin:/bin:/usr/sbin:/sbin")
        if setpriv is None:
            raise PrerequisiteError(
                "setpriv not found, which sandboxes need when selfplay runs as root. "
                "Install it: apt-get install util-linux"
            )
        programs["setpriv"] = setpriv
    return programs


def as_user(setpriv: str, uid: int) -> list[str]:
    """The start of a command line that root runs as another user."""
    return [setpriv, "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]


@cache
def users_have_namespaces() -> bool:
    """For root: whether a user without privileges may start bubblewrap here, with a user namespace."""
    programs = find_programs()
    bwrap = [programs["bwrap"], "--unshare-user", "--uid", "1000", "--gid", "1000", "--unshare-pid"]
    mounts = ["--unshare-net", "--ro-bind", "/", "/", "--proc", "/proc"]
    command = [*as_user(programs["setpriv"], 1 << 30), *bwrap, *mounts, "--", "/bin/true"]
    with tempfile.TemporaryFile() as output:
        return run_whole(command, output) == 0


def _help_text(bwrap: str) -> str:
    """The output of `bwrap --help`. A call that fails is made once more.

    Raises PrerequisiteError that says how it failed.
    """
    command, failure = [bwrap, "--help"], ""
    for _ in range(2):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            failure = f"cannot be run ({error})"
            continue
        if done.returncode == 0:
            return done.stdout
        failure = f"{ending(done.returncode)} {done.stderr.strip()}".strip()
    raise PrerequisiteError(f"`{bwrap} --help` {failure}, twice. {INTERRUPTED}")


def ending(code: int) -> str:
    """How a process ended, by the return code that `subprocess` gives: "was killed by SIGKILL"."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def namespace_remedy() -> str:
    """What to do on a machine that lets bubblewrap make no sandbox, for the message of an error."""
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
                return (
                    f"This machine restricts user namespaces. Allow them with: sudo {command}   "
                    "or set sandbox.type = 'docker'."
                )
        except OSError:
            continue
    return (
        "User or pid namespaces may be forbidden here (inside a container, start that container with "
        "--privileged or --security-opt seccomp=unconfined --security-opt apparmor=unconfined), "
        "or set sandbox.type = 'docker'."
    )


# ---- Python


def python_version() -> str:
    """Of this interpreter, such as "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def python_name() -> str:
    return f"python{python_version()}"


def python_identity() -> str:
    """One line that changes when this interpreter can no longer use an environment built with it."""
    version = ".".join(map(str, sys.version_info[:3]))
    return f"{sys.implementation.cache_tag} {version} {os.uname().machine}\n"


def environment_python(environment: str) -> Interpreter | None:
    """The Python that an environment brings along; None if it has that of sandboxes, or is none."""
    if not environment:
        return None
    try:
        return interpreter_of((Path(environment).parent / PYTHON_FILE).read_text())
    except (OSError, UnicodeDecodeError):
        return None


@cache
def loader_cache(bwrap: str, other: Interpreter | None = None) -> bytes:
    """The contents of a sandbox's /etc/ld.so.cache, b"" for none.

    other: a second Python that the sandbox has. Raises SandboxUnavailable, or SandboxInterrupted if
    bubblewrap was killed.

    A Python with a shared library looks for it where it was linked, and a sandbox has it at PYTHON. So
    ldconfig runs in a namespace that has it there too. LD_LIBRARY_PATH would not do, since tests may clear
    their environment.
    """
    host = Path("/etc/ld.so.cache")
    existing = host.read_bytes() if host.exists() else b""
    pythons = {PYTHON: sys.base_prefix, **({other.place: other.prefix} if other else {})}
    shared = {
        place: prefix
        for place, prefix in pythons.items()
        if prefix != "/usr" and any(Path(prefix).glob("lib/libpython3*.so*"))
    }
    if not shared:
        return existing
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "ldconfig"
    with tempfile.TemporaryDirectory(prefix="selfplay-") as folder:
        libraries = "".join(f"{place}/lib\n" for place in shared)
        (Path(folder) / "conf").write_text(f"{libraries}include /etc/ld.so.conf\n")
        command = [bwrap, "--die-with-parent", "--ro-bind", "/", "/", "--tmpfs", "/opt"]
        for place, prefix in shared.items():
            command += ["--ro-bind", prefix, place]
        command += ["--bind", folder, "/mnt"]
        command += [ldconfig, "-X", "-C", "/mnt/cache", "-f", "/mnt/conf"]
        errors = Path(folder) / "errors"
        # A file, not a pipe: a killed bubblewrap leaves processes behind that would hold a pipe open.
        with errors.open("wb") as output:
            code = run_whole(command, output)
        if code != 0:
            reason = errors.read_text(errors="replace").strip() or f"it ended with {code}"
            kind = SandboxInterrupted if code < 0 else SandboxUnavailable
            raise kind(f"bubblewrap cannot run ldconfig: {reason}")
        return (Path(folder) / "cache").read_bytes()


def run_whole(command: Sequence[str], output: IO[bytes]) -> int:
    """The return code of bubblewrap. If it is killed, its child is too: it would wait for it for ever."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
    )
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so the group is its own
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


# ---- hidden folders


@cache
def hidden_folders(other: Interpreter | None = None) -> tuple[str, ...]:
    """The folders that are empty in a sandbox: installed Python packages, and programs written in Python.

    Any of them could hold the very source that a solver is to repair. other: a second Python in sight.
    """
    found = []
    for place, prefix in _pythons(other):
        found += [
            f"{place}/{path}" for path in _python_folders(prefix, whole_programs=prefix == Path("/usr"))
        ]
    found += [f"/usr/{path}" for path in _python_folders(Path("/usr"), whole_programs=True)]
    return tuple(dict.fromkeys(found))


@cache
def bundled_folders(other: Interpreter | None = None) -> tuple[str, ...]:
    """The folders of packages that come with Python, for instance pip's wheel, with other projects in it."""
    found = []
    for place, prefix in (*_pythons(other), ("/usr", Path("/usr"))):
        for pattern in ("lib*/python3*/ensurepip/_bundled", "share/python-wheels"):
            found += [f"{place}/{folder.relative_to(prefix)}" for folder in prefix.glob(pattern)]
    return tuple(found)


def _pythons(other: Interpreter | None) -> list[tuple[str, Path]]:
    """Where a sandbox has a Python -> its prefix on this machine."""
    found = [(PYTHON, Path(sys.base_prefix))]
    return [*found, (other.place, Path(other.prefix))] if other else found


def _python_folders(prefix: Path, whole_programs: bool) -> list[str]:
    """Relative to `prefix`: site-packages and dist-packages; if asked for, programs written in Python too."""
    libraries = [prefix / name for name in ("lib", "lib64", "local/lib", "local/lib64")]
    libraries = [library for library in libraries if library.is_dir() and not library.is_symlink()]
    folders = [
        folder
        for library in libraries
        for kind in ("site-packages", "dist-packages")
        for folder in library.glob(f"python*/{kind}")
    ]
    if whole_programs:
        shared = [prefix / name for name in ("share", "local/share", "src", "local/src")]
        folders += [
            program
            for parent in (*libraries, *filter(Path.is_dir, shared))
            for program in parent.iterdir()
            if not program.name.startswith("python") and _holds_python(program)
        ]
    return [
        str(folder.relative_to(prefix)) for folder in folders if folder.is_dir() and not folder.is_symlink()
    ]


def _holds_python(folder: Path) -> bool:
    seen = 0
    for _, _, files in os.walk(folder):
        seen += sum(name.endswith((".py", ".pyc")) for name in files)
        if seen >= PYTHON_PROGRAM_FILES:
            return True
    return False
