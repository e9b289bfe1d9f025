"""Process 1 of a sandbox: it runs commands with bash and moves files, as requests on its stdin ask.

A standalone program: one file, standard library only, started with `python3 -I -S`. It knows nothing about
the machine around the sandbox. Invariant: no command can write to this process, read, stop or trace it.
"""

# The protocol. A frame is one byte for its kind, four bytes of length (big-endian), and the payload. A
# payload of several fields holds four bytes of length and the bytes of each. The server first sends "h"
# (ready, with the processor's name) or "f" (cannot work here, with the reason). Then it answers one request
# at a time:
#
#   request                                     answer
#   s: a filter of system calls                 k: it holds from now on, or f: the reason of a failure
#   r: timeout in ms, most output, command      o: output, any number of times
#     d: input, any number of times             x: exit code, is truncated, is timed out, duration in µs
#     e
#   w: folder                                   k: done, or
#     m: folder; p: file, mode; d: contents     f: the reason of a failure
#     e
#   g: folder, most bytes                       p: file, mode; d: contents; e at the end, or
#     e                                         b: the size, when it is too much, or
#                                               f: the reason of a failure

# json, struct and tarfile are not imported, since they would double the time that a sandbox takes to open.
# pathlib takes as long to import as everything else here together:
# ruff: noqa: PTH103, PTH108, PTH118, PTH120

import errno
import fcntl
import os
import resource
import select
import stat
import sys
import time

TYPE_CHECKING = False  # as in typing, which also takes long to import
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator
else:
    # Plain numbers. Half the time to import `signal` goes into making enums of them.
    import _signal as signal

PROTOCOL_IN, PROTOCOL_OUT, WAKE_READ, WAKE_WRITE = 200, 201, 202, 203
COMMAND_FD, STATE_FD = 250, 251  # in the command's shell: its text, and where it writes its state at the end
CHUNK = 1 << 16
MAX_FRAME = 1 << 25
MAX_STATE = 1 << 20  # bytes of all exported variables that persist between calls
MAX_VARIABLE = 1 << 17  # bytes; the kernel refuses a longer variable
MAX_LINGERING = 64  # open output pipes of background processes
SPAWN_PATIENCE_S = 2.0
KILL_PATIENCE_S = 10.0

# What bash runs for each command. One line, so that bash counts the command's lines from 1. It reads the
# command from a file, since an argument may have at most 128 KiB. The trap writes folder and variables to
# another file: a command that forges them only misleads the next commands. When memory runs out, the kernel
# kills commands before this server, since their oom_score_adj is higher.
BOOTSTRAP = (
    "{ echo 500 >/proc/self/oom_score_adj; } 2>/dev/null; "
    f'IFS= read -r -d "" -u {COMMAND_FD} _command; exec {COMMAND_FD}<&-; '
    'trap \'{ set +eux; } 2>/dev/null; { printf "%s\\0" "$PWD"; /usr/bin/env -0; } '
    f">&{STATE_FD} 2>/dev/null || :' EXIT; "
    'eval "$_command"'
)


def pack(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def unpack(payload: bytes) -> "list[bytes]":
    fields, at = [], 0
    while at < len(payload):
        size = int.from_bytes(payload[at : at + 4], "big")
        fields.append(payload[at + 4 : at + 4 + size])
        at += 4 + size
    return fields


def harden(die_with_parent: bool) -> None:
    """Forbid tracing and /proc/1/fd to processes of the same user. die_with_parent: end with the launcher."""
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    set_death_signal, set_dumpable, set_no_new_privileges = 1, 4, 38
    if prctl(set_dumpable, 0, 0, 0, 0) or prctl(set_no_new_privileges, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl refused")
    if die_with_parent:
        prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)


class Server:
    """Serves requests one after another. Its state between them: working directory and exported variables."""

    def __init__(self, workspace: str) -> None:
        self.workspace = workspace
        self.folder = workspace
        self.variables = dict(os.environb)
        self.incoming = b""
        self.child: int | None = None  # pid of the running bash, until its status is known
        self.status: int | None = None  # of the last bash: its exit code, or minus the signal that ended it
        self.lingering: list[int] = []  # output pipes that background processes of earlier commands hold open
        self.poll = select.poll()
        self.poll.register(PROTOCOL_IN, select.POLLIN)
        self.poll.register(WAKE_READ, select.POLLIN)

    # ---- frames

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        data = memoryview(kind + len(payload).to_bytes(4, "big") + payload)
        while data:
            data = data[os.write(PROTOCOL_OUT, data) :]

    def wait(self, timeout_s: "float | None" = None) -> "list[int]":
        """Sleep until something happens. Returns the readable descriptors that it does not handle itself.

        It handles incoming bytes, dead processes and lingering pipes.
        """
        ready = []
        for fd, _ in self.poll.poll(None if timeout_s is None else max(0, int(timeout_s * 1000) + 1)):
            if fd == PROTOCOL_IN:
                data = os.read(PROTOCOL_IN, CHUNK)
                if not data:
                    os._exit(0)  # the harness has ended, and the namespace ends with process 1
                self.incoming += data
            elif fd == WAKE_READ:
                os.read(WAKE_READ, 4096)
                self.reap()
            elif fd in self.lingering:
                if self.drain(fd, CHUNK) is None:
                    self.forget(fd)
            else:
                ready.append(fd)
        return ready

    def receive(self) -> "tuple[bytes, bytes]":
        while len(self.incoming) < 5:
            self.wait()
        size = int.from_bytes(self.incoming[1:5], "big")
        if size > MAX_FRAME:
            os._exit(4)
        parts, have = [self.incoming], len(self.incoming)
        while have < 5 + size:
            self.incoming = b""
            self.wait()
            parts.append(self.incoming)
            have += len(self.incoming)
        data = b"".join(parts)
        self.incoming = data[5 + size :]
        return data[:1], data[5 : 5 + size]

    def receive_rest(self) -> "Iterator[tuple[bytes, bytes]]":
        """The further frames of one request, up to its end."""
        while True:
            kind, payload = self.receive()
            if kind == b"e":
                return
            yield kind, payload

    def serve(self) -> None:
        self.send(b"h", os.uname().machine.encode())
        while True:
            kind, payload = self.receive()
            fields = unpack(payload)
            if kind == b"r":
                self.run(*fields)
            elif kind == b"w":
                self.write_files(*fields)
            elif kind == b"g":
                self.read_files(*fields)
            elif kind == b"s":
                self.restrict(payload)
            else:
                os._exit(4)

    def restrict(self, program: bytes) -> None:
        """Refuse system calls to this process and to all that it starts. program: of struct sock_filter."""
        import ctypes

        class Filter(ctypes.Structure):
            _fields_ = (("steps", ctypes.c_ushort), ("program", ctypes.c_char_p))

        set_seccomp, filter_mode = 22, 2
        wanted = ctypes.byref(Filter(len(program) // 8, program))
        failed = ctypes.CDLL(None).prctl(set_seccomp, filter_mode, wanted, 0, 0)
        self.send(b"f" if failed else b"k", b"no filter of system calls can be set" if failed else b"")

    # ---- processes

    def reap(self) -> bool:
        """Collect the status of dead processes. Returns False when no other process is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.child:
                self.child = None
                self.status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def kill_all(self) -> None:
        """Kill every other process of the namespace. Orphans become our children, so `reap` sees all."""
        assert os.getpid() == 1  # anywhere else kill(-1) would take the machine down
        give_up = time.monotonic() + KILL_PATIENCE_S
        while True:
            try:  # noqa: SIM105  (contextlib is not imported either)
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                pass
            if not self.reap():
                return
            if time.monotonic() > give_up:
                os._exit(3)
            time.sleep(0.001)

    def spawn(self, stdin: int, output: int, command: int, state: int) -> int:
        """Start bash with these descriptors; returns its pid. Raises OSError.

        When processes of earlier commands fill the limit for SPAWN_PATIENCE_S, kill them and try for as long
        again.
        """
        variables = dict(self.variables)
        try:
            os.chdir(self.folder)
        except OSError:
            os.chdir(self.workspace)
        variables[b"PWD"] = os.fsencode(self.folder)
        actions = [
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
            (os.POSIX_SPAWN_DUP2, command, COMMAND_FD),
            (os.POSIX_SPAWN_DUP2, state, STATE_FD),
        ]
        give_up, killed = time.monotonic() + SPAWN_PATIENCE_S, False
        try:
            while True:
                try:
                    return os.posix_spawn(
                        "/bin/bash",
                        ["bash", "--noprofile", "--norc", "-c", BOOTSTRAP],
                        variables,
                        file_actions=actions,
                        setsid=True,
                        setsigmask=[],
                        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT],
                    )
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.ENOMEM):
                        raise
                    if time.monotonic() > give_up:
                        if killed:
                            raise
                        self.kill_all()
                        killed = True
                    self.reap()
                    time.sleep(0.02)
        finally:
            os.chdir("/")

    # ---- commands

    def run(self, timeout_ms: bytes, max_output: bytes, command: bytes) -> None:
        started = time.monotonic()
        deadline = started + int(timeout_ms) / 1000
        stdin = self.receive_stdin()
        command_fd = memory_file(command)
        state_fd = memory_file(b"")
        output, output_write = os.pipe()
        os.set_blocking(output, False)
        self.status = self.child = None
        try:
            self.child = self.spawn(stdin, output_write, command_fd, state_fd)
        except OSError as error:
            self.status = 126
            self.send(b"o", f"cannot start bash: {error.strerror}\n".encode())
        os.close(output_write)
        os.close(stdin)
        os.close(command_fd)
        self.poll.register(output, select.POLLIN)

        left = [int(max_output)]
        is_truncated = timed_out = False
        is_open = True
        while self.status is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                timed_out = True
                self.child = None
                self.kill_all()
                break
            if output in self.wait(min(remaining, 60.0)):
                seen = self.drain(output, 16 * CHUNK, left)
                if seen is None:
                    self.poll.unregister(output)
                    is_open = False
                elif seen:
                    is_truncated = True
        if is_open:
            # The pipe holds all that bash wrote before it ended. Only background processes write to it later.
            seen = self.drain(output, 16 * CHUNK, left)
            is_truncated = is_truncated or bool(seen)
            if seen is None:
                self.poll.unregister(output)
                os.close(output)
            else:
                self.lingering.append(output)
                if len(self.lingering) > MAX_LINGERING:
                    self.forget(self.lingering[0])
        else:
            os.close(output)
        if not timed_out:
            self.remember(state_fd)
        os.close(state_fd)
        status = self.status or 0
        code = 124 if timed_out else status if status >= 0 else 128 - status
        duration_us = int((time.monotonic() - started) * 1e6)
        fields = (code, int(is_truncated or left[0] < 0), int(timed_out), duration_us)
        self.send(b"x", pack(*(str(field).encode() for field in fields)))

    def receive_stdin(self) -> int:
        fd = None
        for _, payload in self.receive_rest():
            if fd is None:
                fd = os.memfd_create("stdin")
            write_all(fd, payload)
        if fd is None:
            return os.open("/dev/null", os.O_RDONLY)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def drain(self, fd: int, most: int, left: "list[int] | None" = None) -> "bool | None":
        """Read up to `most` bytes, send what still fits into `left`, drop the rest.

        left: one item, the number of bytes that may still be sent, lowered here; None: send nothing. Returns
        None at the end of the pipe (left is then -1 if bytes were dropped), else whether bytes were dropped.
        """
        dropped = False
        while most > 0:
            try:
                data = os.read(fd, CHUNK)
            except BlockingIOError:
                return dropped
            if not data:
                if left is not None and dropped:
                    left[0] = -1
                return None
            most -= len(data)
            if left is None:
                continue
            keep = data[: max(0, left[0])]
            if keep:
                self.send(b"o", keep)
                left[0] -= len(keep)
            dropped = dropped or len(keep) < len(data)
        return dropped

    def forget(self, fd: int) -> None:
        """Close a lingering pipe."""
        self.lingering.remove(fd)
        self.poll.unregister(fd)
        os.close(fd)

    def remember(self, state_fd: int) -> None:
        """Take over folder and variables as the command left them."""
        size = os.fstat(state_fd).st_size
        if not 0 < size <= MAX_STATE:
            return  # the trap did not run (`exec`, an EXIT trap of the command, a signal): keep the old state
        folder, *entries = os.pread(state_fd, size, 0).split(b"\0")
        pairs = [entry.partition(b"=") for entry in entries if len(entry) < MAX_VARIABLE]
        if folder.startswith(b"/"):
            self.folder = os.fsdecode(folder)
        self.variables = {
            name: value for name, equals, value in pairs if name and equals and name not in (b"_", b"SHLVL")
        }

    # ---- files

    def write_files(self, folder: bytes) -> None:
        """Write files and folders, whose names the client has checked. Reports a failure at the end."""
        failure = b""
        out = None
        root = os.fsdecode(folder)
        for kind, payload in self.receive_rest():
            if failure:
                continue
            try:
                if kind == b"m":
                    os.makedirs(os.path.join(root, os.fsdecode(payload)), exist_ok=True)
                elif kind == b"p":
                    if out is not None:
                        os.close(out)
                        out = None
                    name, mode = unpack(payload)
                    path = os.path.join(root, os.fsdecode(name))
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    if os.path.lexists(path):
                        os.unlink(path)  # a link that a command left here is replaced, not followed
                    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, int(mode))
                elif out is not None:
                    write_all(out, payload)
            except OSError as error:
                failure = describe(error)
        if out is not None:
            os.close(out)
        self.send(b"f" if failure else b"k", failure)

    def read_files(self, folder: bytes, most_bytes: bytes) -> None:
        """Send every regular file below `folder`, after a first pass that adds up their sizes."""
        root, most = os.fsdecode(folder), int(most_bytes)
        for _ in self.receive_rest():
            pass
        try:
            if not stat.S_ISDIR(os.lstat(root).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", root)
            files: list[str] = []
            total = 0
            for path, size in regular_files(root):
                total += 512 + (size + 511) // 512 * 512
                if len(files) <= most // 512:  # more files exceed `most` by their headers alone
                    files.append(path)
            if total > most:
                self.send(b"b", str(total).encode())
                return
            for path in files:
                self.read_file(root, path)
        except OSError as error:
            self.send(b"f", describe(error))
            return
        self.send(b"e")

    def read_file(self, root: str, path: str) -> None:
        fd = os.open(os.path.join(root, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return
            self.send(b"p", pack(os.fsencode(path), str(stat.S_IMODE(status.st_mode)).encode()))
            left = status.st_size
            while left > 0:
                data = os.read(fd, min(left, CHUNK))
                if not data:
                    return
                self.send(b"d", data)
                left -= len(data)
        finally:
            os.close(fd)


def regular_files(root: str) -> "Iterator[tuple[str, int]]":
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if entry.name.lower() == ".git":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.stat(follow_symlinks=False).st_size


def memory_file(content: bytes) -> int:
    fd = os.memfd_create("selfplay")
    write_all(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def describe(error: OSError) -> bytes:
    text = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    return text.encode("utf-8", "replace")


def main(arguments: "list[str]") -> None:
    """Run the server until its input ends.

    arguments: most bytes of a file, most processes of this user (0 sets no limit), 1 to end with the
    launcher, the workspace.
    """
    file_bytes, processes, die_with_parent, workspace = arguments
    if os.getpid() != 1:
        sys.exit("command_server is process 1 of a sandbox and refuses to run anywhere else")
    for name, value in (
        (resource.RLIMIT_FSIZE, int(file_bytes)),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, int(processes)),
    ):
        if value or name == resource.RLIMIT_CORE:
            resource.setrlimit(name, (value, value))
    # The kernel delivers no signal to process 1 that has no handler there, so these cannot end it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for old, new in ((0, PROTOCOL_IN), (1, PROTOCOL_OUT)):
        os.dup2(old, new, inheritable=False)
        fcntl.fcntl(new, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    reader, writer = os.pipe()
    os.dup2(reader, WAKE_READ, inheritable=False)
    os.dup2(writer, WAKE_WRITE, inheritable=False)
    os.set_blocking(WAKE_READ, False)
    os.set_blocking(WAKE_WRITE, False)
    signal.set_wakeup_fd(WAKE_WRITE, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = Server(workspace)
    try:
        harden(die_with_parent == "1")
        for program in ("/bin/bash", "/usr/bin/env"):
            if not os.access(program, os.X_OK):
                raise OSError(errno.ENOENT, "the sandbox lacks a program", program)
    except (ImportError, OSError) as error:
        server.send(b"f", str(error).encode())
        return
    try:  # noqa: SIM105
        server.serve()
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
