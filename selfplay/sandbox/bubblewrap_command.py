"""The command line that starts a bubblewrap sandbox. Runs nothing.

Invariant: every option that protects the machine is on it, whoever starts the sandbox. A sandbox has a user
namespace, in which its user always has the same number. Outside root takes a random user for it. In a build,
and where root's other users may make no namespace, root keeps its capabilities until setpriv has changed the
user, since mounts need them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfplay.sandbox.base import SUBMIT, VENV, WORKSPACE, Limits, SandboxSpec
from selfplay.sandbox.bubblewrap_host import (
    PYTHON,
    as_user,
    bundled_folders,
    environment_python,
    hidden_folders,
    python_name,
)
from selfplay.sandbox.environment_builds import BuildNetwork
from selfplay.sandbox.index_proxy import SOCKET
from selfplay.sandbox.layers import DEV, DEVICES

SERVER = "/opt/selfplay/command_server.pyc"
PROXY_SOCKET = "/opt/index"  # where a build has the socket of its proxy
SMALL_TMPFS_BYTES = 16 << 20
LIBRARIES = ("bin", "sbin", "lib", "lib32", "lib64")
ALTERNATIVES = "/etc/alternatives"
CERTIFICATES = ("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs", "/etc/ca-certificates")


@dataclass(frozen=True)
class Start:
    """One start of bubblewrap: what the command line needs besides the spec.

    programs    name -> path of bwrap, and of setpriv for root
    uid         user and group in the sandbox; with is_root also outside
    is_root     root starts bubblewrap, and no user namespace is made
    outer_uid   the user that root becomes before bubblewrap starts, None to stay as it is
    info_fd     where bubblewrap writes the pid of the sandbox's process 1
    file_fds    path in the sandbox -> descriptor with the contents of a read-only file
    seccomp_fd  descriptor with the filter of system calls; None for no filter
    layers      folder of this machine -> its overlay for this sandbox, if it has one
    network     the connection of a build; None for no connection at all
    """

    programs: Mapping[str, str]
    uid: int
    is_root: bool
    outer_uid: int | None
    info_fd: int
    file_fds: Mapping[str, int]
    seccomp_fd: int | None
    layers: Mapping[str, str]
    network: BuildNetwork | None


def bubblewrap_arguments(spec: SandboxSpec, start: Start) -> list[str]:
    """The whole command line. The order of mounts matters: a later one covers an earlier one."""
    before = [] if start.outer_uid is None else as_user(start.programs["setpriv"], start.outer_uid)
    return [
        *before,
        start.programs["bwrap"],
        *_namespaces(start),
        *_system_folders(spec, start),
        *_environment(spec, start),
        *_hidden(spec.hidden, start),
        *(_build_network(start.network) if spec.network else ()),
        *_given_files(start),
        *_kernel_folders(start),
        *_writable_folders(spec.limits),
        *("--remount-ro", "/", "--"),
        *(_privileges_dropped(start) if start.is_root else ()),
        *_command_server(spec.limits),
    ]


def _namespaces(start: Start) -> list[str]:
    line = [
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--hostname",
        "sandbox",
    ]
    line += ["--die-with-parent", "--new-session", "--as-pid-1", "--info-fd", str(start.info_fd)]
    line += ["--chdir", "/", "--unshare-net"]
    if not start.is_root:
        line += ["--unshare-user", "--uid", str(start.uid), "--gid", str(start.uid), "--cap-drop", "ALL"]
    return line


def shared_folders(spec: SandboxSpec) -> list[str]:
    """The folders of this machine that a sandbox reads and others read too."""
    system = ["/usr", *(f"/{name}" for name in LIBRARIES if _is_own_folder(f"/{name}")), sys.base_prefix]
    other = environment_python(spec.environment)
    system += [other.prefix] if other else []
    system += [ALTERNATIVES] if Path(ALTERNATIVES).is_dir() else []
    system.append(DEV)
    return [*system, *([spec.environment] if spec.environment and not spec.writable_env else [])]


def _is_own_folder(path: str) -> bool:
    return Path(path).is_dir() and not Path(path).is_symlink()


def _system_folders(spec: SandboxSpec, start: Start) -> list[str]:
    """This machine's programs and libraries, and its Python, without the folders that stay hidden; and
    the Python that the environment brings along.

    A build sees the packages that come with Python: it makes a virtual environment from them.
    """
    line = _shown(start, "/usr")
    for name in LIBRARIES:
        host = Path("/", name)
        if host.is_symlink():
            line += ["--symlink", str(host.readlink()), f"/{name}"]
        elif host.is_dir():
            line += _shown(start, f"/{name}")
    # Made here with their mode: bubblewrap may make them for root alone.
    for folder in ("/opt", "/etc", "/etc/ssl", "/etc/pki", "/etc/pki/tls"):
        line += _made_folder(folder)
    if Path(ALTERNATIVES).is_dir():
        line += _shown(start, ALTERNATIVES)
    line += _shown(start, sys.base_prefix, PYTHON)
    other = environment_python(spec.environment)
    line += _shown(start, other.prefix, other.place) if other else []
    bundled = () if spec.network else bundled_folders(other)
    return line + _hidden([f"{folder}/" for folder in (*hidden_folders(other), *bundled)], start)


def _hidden(paths: Sequence[str], start: Start) -> list[str]:
    """An empty folder, or a device without contents, in place of each path."""
    nothing = f"{start.layers.get(DEV, DEV)}/null"
    line = []
    for path in paths:
        if path.endswith("/"):
            line += ["--size", "4096", "--perms", "0555", "--tmpfs", path.rstrip("/")]
        else:
            line += ["--ro-bind", nothing, path]
    return line


def _environment(spec: SandboxSpec, start: Start) -> list[str]:
    if not spec.environment:
        return []
    if spec.writable_env:
        return ["--bind", spec.environment, VENV]
    return _shown(start, spec.environment, VENV)


def _shown(start: Start, folder: str, place: str = "") -> list[str]:
    """Show a folder of this machine read-only: its overlay for this sandbox, or the folder itself."""
    return ["--ro-bind", start.layers.get(folder, folder), place or folder]


def _build_network(network: BuildNetwork | None) -> list[str]:
    """Certificates, the proxy's socket, and the folders and files that the settings of the index name."""
    line = []
    for path in CERTIFICATES:
        line += ["--ro-bind-try", os.path.realpath(path), path]
    if network is None:
        return line
    if network.socket_folder is not None:
        line += ["--ro-bind", str(network.socket_folder / SOCKET), PROXY_SOCKET]
    for shared in network.access.paths:
        if Path("/usr") not in (shared, *shared.parents):
            for parent in reversed(shared.parents[:-1]):
                line += _made_folder(str(parent))
            line += ["--ro-bind", str(shared), str(shared)]
    return line


def _made_folder(path: str) -> list[str]:
    return ["--perms", "0755", "--dir", path]


def _given_files(start: Start) -> list[str]:
    line = []
    for path, fd in start.file_fds.items():
        line += ["--perms", "0444", "--ro-bind-data", str(fd), path]
    return line if start.seccomp_fd is None else [*line, "--seccomp", str(start.seccomp_fd)]


def _kernel_folders(start: Start) -> list[str]:
    line = ["--proc", "/proc", "--dev", DEV]
    if DEV in start.layers:
        for device in DEVICES:
            line += ["--dev-bind", f"{start.layers[DEV]}/{device}", f"{DEV}/{device}"]
    line += ["--perms", "1777", "--size", str(SMALL_TMPFS_BYTES), "--tmpfs", "/dev/shm"]
    return [*line, "--remount-ro", DEV]


def _writable_folders(limits: Limits) -> list[str]:
    line = []
    for path, mode, size in (
        (WORKSPACE, "0777", limits.workspace_bytes),
        (SUBMIT, "0777", limits.submit_bytes),
        ("/tmp", "1777", limits.tmp_bytes),
    ):
        line += ["--perms", mode, "--size", str(size), "--tmpfs", path]
    return line


def _privileges_dropped(start: Start) -> list[str]:
    capabilities = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    return [*as_user(start.programs["setpriv"], start.uid), *capabilities, "--no-new-privs"]


def _command_server(limits: Limits) -> list[str]:
    """See `command_server.main` for its arguments."""
    line = [f"{PYTHON}/bin/{python_name()}", "-I", "-S", SERVER]
    return [*line, str(limits.file_bytes), str(limits.processes), "1", WORKSPACE]
