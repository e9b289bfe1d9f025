"""The harness's end of the protocol of a command server, and the `Sandbox` that both backends build on it.

The backends start and remove what the server runs in. Invariants: no read or write waits past its deadline.
The client trusts nothing that comes out of a sandbox: it bounds the amount of data and checks every name.
"""

from __future__ import annotations

import io
import os
import select
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from selfplay.errors import ArtifactError, SandboxError, SandboxInterrupted, SandboxLost, SandboxUnavailable
from selfplay.sandbox.base import ExecResult, SandboxSpec

CHUNK = 1 << 18
MAX_COMMAND_BYTES = 1 << 20
MAX_INPUT_BYTES = 1 << 26
HELLO_S = 60.0  # for the server's first frame
# In addition to a command's own timeout: the server needs time to kill its processes on a busy machine.
ANSWER_S = 60.0
ARCHIVE_S = 300.0  # for a whole archive, either way
PROBE_S = 60.0
SERVER_MESSAGE_BYTES = 4096  # most output that the server adds to a command's, for a bash that does not start

Result = TypeVar("Result")


class PeerGone(Exception):
    """The command server does not answer, or its answer breaks the protocol. Never leaves this package."""


class Refused(Exception):
    """The command server answered that it cannot do this. Never leaves this package."""


class Channel(Protocol):
    """Bytes to and from a command server. Its methods raise PeerGone at their deadline (time.monotonic)."""

    def send(self, data: bytes, deadline: float) -> None: ...

    def receive(self, deadline: float) -> bytes:
        """Return at least one byte. Raises PeerGone at the end of the stream too."""
        ...

    def close(self) -> None: ...


class PipeChannel:
    """The pipes of a started process. reader: descriptor of its stdout. writer: of its stdin."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        for fd in (reader, writer):
            os.set_blocking(fd, False)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(reader, select.POLLIN)
        self._writable.register(writer, select.POLLOUT)

    def send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._writer, view) :]
            except BlockingIOError:
                self._wait(self._writable, deadline)
            except OSError as error:
                raise PeerGone(f"the command server's input is closed ({error.strerror})") from error

    def receive(self, deadline: float) -> bytes:
        while True:
            self._wait(self._readable, deadline)
            try:
                data = os.read(self._reader, CHUNK)
            except BlockingIOError:
                continue
            except OSError as error:
                raise PeerGone(f"the command server's output is closed ({error.strerror})") from error
            if not data:
                raise PeerGone("the command server ended")
            return data

    @staticmethod
    def _wait(poll: select.poll, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not poll.poll(remaining * 1000):
            raise PeerGone("the command server did not answer in time")

    def close(self) -> None:
        """Closes nothing: the descriptors belong to the code that started the process."""


class SocketChannel:
    """The attach stream of a Docker engine.

    The engine passes on what is sent to the container's stdin. It sends packets: one byte for the stream (1
    for stdout), three zero bytes, four bytes of length, the data.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._raw = bytearray()
        self.errors = bytearray()  # the end of the server's stderr, for messages

    def send(self, data: bytes, deadline: float) -> None:
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._socket.sendall(data)
        except OSError as error:
            raise PeerGone(f"the container's input is closed ({error})") from error

    def receive(self, deadline: float) -> bytes:
        while True:
            data = bytearray()
            while len(self._raw) >= 8:
                size = int.from_bytes(self._raw[4:8], "big")
                if len(self._raw) < 8 + size:
                    break
                if self._raw[0] == 1:
                    data += self._raw[8 : 8 + size]
                else:
                    self.errors += self._raw[8 : 8 + size]
                    del self.errors[:-4096]
                del self._raw[: 8 + size]
            if data:
                return bytes(data)
            try:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                received = self._socket.recv(CHUNK)
            except OSError as error:
                raise PeerGone(f"the container does not answer ({error})") from error
            if not received:
                raise PeerGone("the command server ended")
            self._raw += received

    def close(self) -> None:
        self._socket.close()


# ---- frames: the format is described in command_server.py


def pack(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def unpack(payload: bytes) -> list[bytes]:
    fields, start = [], 0
    while start < len(payload):
        size = int.from_bytes(payload[start : start + 4], "big")
        fields.append(payload[start + 4 : start + 4 + size])
        start += 4 + size
    return fields


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return kind + len(payload).to_bytes(4, "big") + payload


def safe_name(name: str) -> str:
    """Normalise a relative path. Raises ArtifactError when it leaves the folder that it is relative to."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ArtifactError(
            f"archive member {name!r} leaves its folder; only relative paths without '..' are taken"
        )
    return "/".join(parts)


def archive_frames(tar: bytes) -> Iterator[bytes]:
    """The frames that unpack `tar` in a sandbox. Raises ArtifactError for links and special files."""
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
            for member in archive:
                name = safe_name(member.name)
                encoded = name.encode("utf-8", "surrogateescape")
                if member.isdir():
                    if name:
                        yield frame(b"m", encoded)
                    continue
                if not member.isreg() or member.issparse() or not name:
                    raise ArtifactError(
                        f"archive member {member.name!r} is a link, a device or a sparse file; "
                        "only files and folders are taken"
                    )
                mode = 0o755 if member.mode & 0o111 else 0o644
                yield frame(b"p", pack(encoded, str(mode).encode()))
                content = archive.extractfile(member)
                assert content is not None
                while data := content.read(CHUNK):
                    yield frame(b"d", data)
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ArtifactError(f"not an uncompressed tar archive: {error}") from error


class Connection:
    """The connection to one command server. Every method but `close` raises PeerGone when the server is lost.

    Makes one request at a time. `Sandbox` says what `run`, `write` and `read` do; they raise Refused when the
    server cannot do it, and `read` raises ArtifactError for too many bytes and for unsafe names.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = bytearray()

    def hello(self, deadline: float) -> str:
        """Wait for the server's first frame. Returns the processor's name, as `uname -m` prints it.

        Raises Refused, with the reason, when it cannot work here.
        """
        kind, payload = self._receive(deadline)
        if kind == b"f":
            raise Refused(payload.decode("utf-8", "replace"))
        if kind != b"h":
            raise PeerGone(f"the command server opened with {kind!r}")
        return payload.decode("utf-8", "replace")

    def restrict(self, program: bytes, deadline: float) -> None:
        """Refuse system calls inside from now on, by a filter as `seccomp_filter` makes it."""
        self._channel.send(frame(b"s", program), deadline)
        kind, payload = self._receive(deadline)
        if kind != b"k":
            raise Refused(payload.decode("utf-8", "replace"))

    def run(self, command: bytes, timeout_s: float, output_bytes: int, stdin: bytes) -> ExecResult:
        deadline = time.monotonic() + timeout_s + ANSWER_S
        request = [
            frame(b"r", pack(str(int(timeout_s * 1000)).encode(), str(output_bytes).encode(), command))
        ]
        request += [frame(b"d", stdin[at : at + CHUNK]) for at in range(0, len(stdin), CHUNK)]
        request.append(frame(b"e"))
        self._channel.send(b"".join(request), deadline)
        output = bytearray()
        while True:
            kind, payload = self._receive(deadline)
            if kind == b"o":
                output += payload
                if len(output) > output_bytes + SERVER_MESSAGE_BYTES:
                    raise PeerGone("the command server sent more output than was asked for")
            elif kind == b"x":
                code, truncated, timed_out, duration_us = (int(field) for field in unpack(payload))
                return ExecResult(code, bytes(output), bool(truncated), bool(timed_out), duration_us / 1e6)
            else:
                raise PeerGone(f"the command server answered a command with {kind!r}")

    def write(self, folder: str, frames: list[bytes]) -> None:
        deadline = time.monotonic() + ARCHIVE_S
        self._channel.send(frame(b"w", pack(folder.encode())), deadline)
        for item in frames:
            self._channel.send(item, deadline)
        self._channel.send(frame(b"e"), deadline)
        kind, payload = self._receive(deadline)
        if kind == b"f":
            raise Refused(payload.decode("utf-8", "replace"))
        if kind != b"k":
            raise PeerGone(f"the command server answered an archive with {kind!r}")

    def read(self, folder: str, max_bytes: int) -> bytes:
        deadline = time.monotonic() + ARCHIVE_S
        self._channel.send(
            frame(b"g", pack(folder.encode(), str(max_bytes).encode())) + frame(b"e"), deadline
        )
        files: list[tuple[str, int, bytearray]] = []
        total = 0
        while True:
            kind, payload = self._receive(deadline)
            if kind == b"e":
                return make_archive(files)
            if kind == b"b":
                raise ArtifactError(
                    f"{folder} holds {int(payload)} bytes of archive, more than the {max_bytes} allowed"
                )
            if kind == b"f":
                raise Refused(payload.decode("utf-8", "replace"))
            if kind == b"p":
                name, mode = unpack(payload)
                files.append((safe_name(name.decode("utf-8", "surrogateescape")), int(mode), bytearray()))
                total += 512
            elif kind == b"d" and files:
                files[-1][2].extend(payload)
                total += len(payload)
            else:
                raise PeerGone(f"the command server sent {kind!r} in an archive")
            if total > max_bytes + CHUNK:
                raise PeerGone("the command server sent a larger archive than was asked for")

    def close(self) -> None:
        self._channel.close()

    def _receive(self, deadline: float) -> tuple[bytes, bytes]:
        buffer = self._buffer
        while len(buffer) < 5 or len(buffer) < 5 + int.from_bytes(buffer[1:5], "big"):
            if len(buffer) > 4 * CHUNK:
                raise PeerGone("the command server sent a frame larger than it may")
            buffer += self._channel.receive(deadline)
        size = int.from_bytes(buffer[1:5], "big")
        kind, payload = bytes(buffer[:1]), bytes(buffer[5 : 5 + size])
        del buffer[: 5 + size]
        return kind, payload


def make_archive(files: list[tuple[str, int, bytearray]]) -> bytes:
    """A tar of files (name, mode, content), sorted and without times: equal files give equal bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, mode, content in sorted(files, key=lambda file: file[0]):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755 if mode & 0o111 else 0o644
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


class ConnectedSandbox:
    """A `Sandbox` over a command server.

    release  removes what the backend started
    probe    called after a loss. Raises SandboxUnavailable when a fresh sandbox of the same spec does not run
             `true`, and SandboxInterrupted when somebody outside ended this one. Else a command ended it.
    kills    the number of its processes that the kernel killed because the machine ran out of memory
    details  what tests look up: process ids, names of containers
    """

    def __init__(
        self,
        spec: SandboxSpec,
        connection: Connection,
        release: Callable[[], None],
        probe: Callable[[], None],
        kills: Callable[[], int],
        **details: Any,
    ) -> None:
        self._spec = spec
        self._connection = connection
        self._release = release
        self._probe = probe
        self._kills = kills
        self._known_kills = 0
        self._ended: SandboxError | None = None
        self.details = details

    @property
    def spec(self) -> SandboxSpec:
        return self._spec

    def run(
        self, command: str, timeout_s: float = 60.0, output_bytes: int | None = None, stdin: bytes = b""
    ) -> ExecResult:
        encoded = command.encode("utf-8", "surrogateescape")
        max_input = min(self._spec.limits.file_bytes, MAX_INPUT_BYTES)
        max_command = min(self._spec.limits.file_bytes, MAX_COMMAND_BYTES)
        if len(encoded) > max_command or len(stdin) > max_input or b"\0" in encoded:
            most = f"at most {max_command} bytes without NUL, and {max_input} bytes of input"
            reason = f"command not run: {most}\n"
            return ExecResult(126, reason.encode(), truncated=False, timed_out=False, duration_s=0.0)
        max_output = self._spec.limits.output_bytes if output_bytes is None else output_bytes
        done = self._ask(lambda: self._connection.run(encoded, timeout_s, max_output, stdin))
        if done.exit_code:
            before, self._known_kills = self._known_kills, self._kills()
            return replace(done, is_cut_off=self._known_kills > before)
        return done

    def write_archive(self, folder: str, tar: bytes) -> None:
        frames = list(archive_frames(tar))  # checks all of it before the first byte is sent
        try:
            self._ask(lambda: self._connection.write(folder, frames))
        except Refused as error:
            raise ArtifactError(f"cannot write an archive into {folder}: {error}") from error

    def read_archive(self, folder: str, max_bytes: int) -> bytes:
        try:
            return self._ask(lambda: self._connection.read(folder, max_bytes))
        except Refused as error:
            raise ArtifactError(f"cannot read {folder}: {error}") from error

    def close(self) -> None:
        if self._ended is None:
            self._ended = SandboxError("this sandbox is closed")
        self._connection.close()
        self._release()

    def _ask(self, request: Callable[[], Result]) -> Result:
        if self._ended is not None:
            raise self._ended
        try:
            return request()
        except PeerGone as gone:
            self._ended = self._explain(gone)
            self._connection.close()
            self._release()
            raise self._ended from gone

    def _explain(self, gone: PeerGone) -> SandboxError:
        try:
            self._probe()
        except SandboxInterrupted as error:
            return SandboxInterrupted(f"{gone}: {error}")
        except SandboxUnavailable as error:
            return SandboxUnavailable(f"{gone}, and a fresh sandbox fails too: {error}")
        return SandboxLost(f"{gone}; a fresh sandbox works, so what ran in this one ended it")


def probe(connection: Connection) -> None:
    """Raise SandboxUnavailable unless the sandbox behind `connection` runs `true`."""
    try:
        result = connection.run(b"true", PROBE_S, 4096, b"")
    except PeerGone as error:
        raise SandboxUnavailable(f"`true` did not run: {error}") from error
    if result.exit_code != 0:
        raise SandboxUnavailable(f"`true` ended with {result.exit_code}: {result.text.strip()}")
