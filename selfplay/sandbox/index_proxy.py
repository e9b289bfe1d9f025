"""The way out of a build: a proxy in the harness behind a Unix socket, to the package index and public addresses, not to this machine.

Leaves the wall (a network namespace with nothing but loopback) to the backends. Invariant: the address that is checked is the one called.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import shlex
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

PORT = 3128  # inside, where the namespace is the build's own
MAX_HEAD = 64 << 10  # of a request
MAX_CONNECTIONS = 64  # at once: more wait
CONNECT_S = 30.0
IDLE_S = 600.0
CHUNK = 64 << 10
HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")  # names, and addresses of both kinds
NAT64 = ipaddress.ip_network("64:ff9b::/96")

# Runs inside: answers at 127.0.0.1 with what the harness's socket says, and stays behind once it listens.
FORWARDER = """
import os, socket, sys, threading
port, path = int(sys.argv[1]), sys.argv[2]
def harness():
    there = socket.socket(socket.AF_UNIX)
    there.connect(path)
    return there
harness().close()
listener = socket.create_server(("127.0.0.1", port), backlog=64)
if os.fork():
    os._exit(0)
os.setsid()
def copy(here, there):
    try:
        while data := here.recv(65536):
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)
    except OSError:
        here.close(), there.close()
def serve(here):
    try:
        there = harness()
    except OSError:
        return here.close()
    other = threading.Thread(target=copy, args=(here, there), daemon=True)
    other.start()
    copy(there, here)
    other.join()
    here.close(), there.close()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


class Refusal(Exception):
    """Why a request is not served, as its sender gets to read it."""


@dataclass(frozen=True)
class WayOut:
    """Where a build may go. index: "host:port" that this machine's own settings name, whatever their address.

    upstream: the proxies of this machine, scheme (or "all") -> URL; "no" lists what goes past them.
    """

    index: frozenset[str] = frozenset()
    upstream: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def open_way(way: WayOut) -> Iterator[Path]:
    """The folder with the socket `index`; it ends with the context. Only who is given the folder can get to it."""
    with tempfile.TemporaryDirectory(
        prefix="selfplay-index-"
    ) as closed:  # 0700: other users of this machine stay outside
        folder = Path(closed) / "way"
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "index"))
            (folder / "index").chmod(0o666)  # the sandbox's user is another
            listener.listen(64)
            server = _Server(listener, way)
            threading.Thread(target=server.serve, daemon=True, name="index-proxy").start()
            try:
                yield folder
            finally:
                server.close()


def begin_forwarding(python: str, path: str) -> str:
    """The line of a build script that opens the way inside; it fails where the socket at `path` cannot be called."""
    return f"{python} -I -S -c {shlex.quote(FORWARDER)} {PORT} {shlex.quote(path)} </dev/null >/dev/null 2>&1"


def forwarding_variables() -> dict[str, str]:
    """For pip, git, curl, npm and whatever else goes by these names."""
    address = f"http://127.0.0.1:{PORT}"
    names = ("http_proxy", "https_proxy", "all_proxy")
    return {spelling: address for name in names for spelling in (name, name.upper())} | {
        "no_proxy": "",
        "NO_PROXY": "",
    }


class _Server:
    def __init__(self, listener: socket.socket, way: WayOut) -> None:
        self.listener = listener
        self.way = way
        self.places = threading.Semaphore(MAX_CONNECTIONS)
        self.open: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.is_closed = False

    def serve(self) -> None:
        while True:
            self.places.acquire()
            try:
                caller, _ = self.listener.accept()
            except OSError:
                return
            if not self._keep(caller):
                return
            threading.Thread(
                target=self._answer, args=(caller,), daemon=True, name="index-proxy-call"
            ).start()

    def close(self) -> None:
        with self.lock:
            self.is_closed = True
            connections = list(self.open)
        for connection in (self.listener, *connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.places.release()

    def _keep(self, connection: socket.socket) -> bool:
        with self.lock:
            if not self.is_closed:
                self.open.add(connection)
                return True
        connection.close()
        return False

    def _answer(self, caller: socket.socket) -> None:
        there: socket.socket | None = None
        try:
            caller.settimeout(IDLE_S)
            head, rest = _read_head(caller)
            there, first, answer = connect(head, self.way)
            there.settimeout(IDLE_S)
            if not self._keep(there):
                return
            caller.sendall(answer)
            there.sendall(first + rest)
            other = threading.Thread(target=_copy, args=(caller, there), daemon=True)
            other.start()
            _copy(there, caller)
            other.join()
        except Refusal as refusal:
            text = f"{refusal}\n".encode()
            with suppress(OSError):
                caller.sendall(
                    b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(text), text)
                )
        except (OSError, ValueError) as error:
            with suppress(OSError):
                caller.sendall(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            del error
        finally:
            with self.lock:
                self.open -= {caller, there}
            for connection in (caller, there):
                if connection is not None:
                    connection.close()
            self.places.release()


def _copy(here: socket.socket, there: socket.socket) -> None:
    with suppress(OSError):
        while data := here.recv(CHUNK):
            there.sendall(data)
    with suppress(OSError):
        there.shutdown(socket.SHUT_WR)


def _read_head(caller: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = caller.recv(CHUNK)
        if not part or len(data) > MAX_HEAD:
            raise ValueError("no request")
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


# ---- who is called


def connect(head: bytes, way: WayOut) -> tuple[socket.socket, bytes, bytes]:
    """The connection that a request asks for, what is said there first, and what its sender is told. Raises Refusal, OSError."""
    line, _, fields = head.decode("latin-1").partition("\r\n")
    method, _, rest = line.partition(" ")
    target, _, _ = rest.partition(" ")
    if method == "CONNECT":
        host, port = _split(target, 443)
        addresses, proxy = route(host, port, "https", way)
        there = _through(proxy, host, port) if proxy else _first(addresses, port)
        return there, b"", b"HTTP/1.1 200 Connection established\r\n\r\n"
    url = urlsplit(target)
    if url.scheme != "http" or not url.hostname:
        raise Refusal("this is a proxy: ask it with CONNECT, or for http://…")
    host, port = _split(url.netloc.rpartition("@")[2], 80)
    addresses, proxy = route(host, port, "http", way)
    path = f"{url.path or '/'}{f'?{url.query}' if url.query else ''}"
    kept = [
        field
        for field in fields.split("\r\n")
        if not re.match(r"(proxy-[a-z-]+|connection|keep-alive)\s*:", field, re.IGNORECASE)
    ]
    # One request a connection: a second one might be for another host.
    lines = [
        f"{method} {f'http://{_place(host, port)}' if proxy else ''}{path} HTTP/1.1",
        *(_login(proxy) if proxy else []),
        *kept,
    ]
    said = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
    return (_call(proxy) if proxy else _first(addresses, port)), said, b""


def _split(place: str, usual: int) -> tuple[str, int]:
    host, colon, port = place.rpartition(":") if not place.endswith("]") else (place, "", "")
    if not colon:
        host, port = place, str(usual)
    host = host.removeprefix("[").removesuffix("]").rstrip(".").lower()
    if not HOST.fullmatch(host) or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise Refusal(f"{place[:100]!r} is no host and port")
    return host, int(port)


def route(host: str, port: int, scheme: str, way: WayOut) -> tuple[list[str], str]:
    """The addresses of `host`, and this machine's own proxy, if any. Raises Refusal for what is none of a build's business."""
    proxy = way.upstream.get(scheme) or way.upstream.get("all", "")
    if proxy.startswith("socks") or goes_past(host, port, way.upstream.get("no", "")):
        proxy = ""
    addresses = _addresses(host, port, may_be_unknown=bool(proxy))
    if f"{host}:{port}" not in way.index:
        for address in addresses:
            if not is_public(address) or is_own(address):
                raise Refusal(
                    f"{host}:{port} is {address}: builds reach the package index and public addresses only. "
                    f"Set SELFPLAY_BUILD_HOSTS={host}:{port} where a build needs it."
                )
        if (
            proxy
            and not addresses
            and ("." not in host or host.endswith((".localhost", ".local", ".internal")))
        ):
            raise Refusal(f"{host} is a name of a local network")
    return addresses, proxy


def goes_past(host: str, port: int, no_proxy: str) -> bool:
    """Whether `no_proxy` lists the host, as itself or by its domain."""
    for word in no_proxy.lower().split(","):
        entry = word.strip().lstrip(".")
        if entry == "*" or (entry and f".{host}".endswith(f".{entry}")) or entry == f"{host}:{port}":
            return True
    return False


def _addresses(host: str, port: int, may_be_unknown: bool) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        if may_be_unknown:
            return []
        raise
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


def _first(addresses: list[str], port: int) -> socket.socket:
    """The first address that answers; the name is not looked up again, since it could lead somewhere else then."""
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), CONNECT_S)
        except OSError as error:
            failure = error
    raise failure


def is_public(address: str) -> bool:
    """Whether the internet would carry packets to it: not this machine, its networks, its provider's metadata service."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not (
        found.is_multicast or found.is_reserved or found.is_loopback or found.is_unspecified
    )


def is_own(address: str) -> bool:
    """Whether packets to it stay on this machine: then the kernel takes it for their sender's address too."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as chooser, suppress(OSError):
        chooser.connect((address, 9))  # sends nothing
        return bool(chooser.getsockname()[0] == address)
    return False


def _call(proxy: str) -> socket.socket:
    url = urlsplit(proxy)
    if url.scheme != "http" or not url.hostname:
        raise OSError(f"a proxy of this kind is not known: {url.scheme}")
    return socket.create_connection((url.hostname, url.port or 80), CONNECT_S)


def _login(proxy: str) -> list[str]:
    url = urlsplit(proxy)
    login = f"{unquote(url.username or '')}:{unquote(url.password or '')}".encode()
    return [] if url.username is None else [f"Proxy-Authorization: Basic {base64.b64encode(login).decode()}"]


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _through(proxy: str, host: str, port: int) -> socket.socket:
    """A tunnel through this machine's own proxy."""
    there = _call(proxy)
    try:
        there.sendall(
            "\r\n".join(
                [
                    f"CONNECT {_place(host, port)} HTTP/1.1",
                    f"Host: {_place(host, port)}",
                    *_login(proxy),
                    "",
                    "",
                ]
            ).encode()
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):  # byte by byte: what follows is the other side's
            byte = there.recv(1)
            if not byte or len(answer) > MAX_HEAD:
                raise OSError("the proxy of this machine gave no answer")
            answer += byte
        if not re.match(rb"HTTP/1\.[01] 200\b", answer):
            raise OSError(f"the proxy of this machine refuses: {answer.splitlines()[0][:100]!r}")
    except BaseException:
        there.close()
        raise
    return there


def named_hosts(texts: Iterable[str]) -> frozenset[str]:
    """Each http and https address in `texts`, as "host:port"."""
    found = set()
    for text in texts:
        for word in text.split():
            with suppress(ValueError):  # half an address
                url = urlsplit(word)
                if url.scheme in ("http", "https") and url.hostname:
                    found.add(f"{url.hostname.lower()}:{url.port or (443 if url.scheme == 'https' else 80)}")
    return frozenset(found)


def listed_hosts(environ: Mapping[str, str]) -> frozenset[str]:
    """SELFPLAY_BUILD_HOSTS, comma-separated "host:port"; the port is https's where none is said."""
    words = (
        word.strip().lower().partition(":") for word in environ.get("SELFPLAY_BUILD_HOSTS", "").split(",")
    )
    return frozenset(f"{host}:{port or 443}" for host, _, port in words if host)
