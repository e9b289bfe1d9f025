"""The build proxy: the only connection of a build. It runs in the harness behind a Unix socket.

It connects to the hosts that this machine's settings name as package index, and to public addresses: to
nothing else of this machine and its networks. The backends take every other connection away, with a network
namespace that has only loopback. Invariant: the proxy connects to the address that it checked. It does not
resolve a name twice, since the second answer could be another address.
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

PORT = 3128  # on the loopback of the build's own network namespace, where nothing else listens
SOCKET = "index"  # name of the socket in its folder
MAX_HEAD = 64 << 10  # bytes of a request's head
MAX_CONNECTIONS = 64  # at once; further callers wait
CONNECT_S = 30.0
IDLE_S = 600.0
CHUNK = 64 << 10
HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")  # a name, an IPv4 or an IPv6 address
NAT64 = ipaddress.ip_network("64:ff9b::/96")

# Runs in the build's sandbox: passes each connection to 127.0.0.1 on to the harness's socket. Its first
# process ends as soon as a second one listens, so that the build script can go on.
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
    """The proxy does not serve a request. Its sender reads the message."""


@dataclass(frozen=True)
class ProxyRules:
    """Where the proxy connects to for a build, in addition to public addresses.

    index     hosts, as "host:port", that this machine's own settings name; allowed at any address
    upstream  this machine's own proxies, by scheme ("http", "https" or "all"); "no" lists hosts without proxy
    """

    index: frozenset[str] = frozenset()
    upstream: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def open_proxy(rules: ProxyRules) -> Iterator[Path]:
    """Serve a proxy until the context ends. Yields the folder that holds its socket, SOCKET.

    Other users of this machine cannot reach the folder, since its parent is closed to them. A build can,
    since the folder itself is bound into its sandbox.
    """
    with tempfile.TemporaryDirectory(prefix="selfplay-index-") as closed:
        folder = Path(closed) / "way"
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / SOCKET))
            (folder / SOCKET).chmod(0o666)  # the sandbox runs as another user
            listener.listen(64)
            server = _Server(listener, rules)
            threading.Thread(target=server.serve, daemon=True, name="index-proxy").start()
            try:
                yield folder
            finally:
                server.close()


def forwarding_command(python: str, path: str) -> str:
    """The shell command that starts forwarding in a sandbox. It fails when nobody answers at `path`.

    python, path: paths inside the sandbox.
    """
    return f"{python} -I -S -c {shlex.quote(FORWARDER)} {PORT} {shlex.quote(path)} </dev/null >/dev/null 2>&1"


def forwarding_variables() -> dict[str, str]:
    """The variables by which pip, git, curl, npm and others find their proxy."""
    address = f"http://127.0.0.1:{PORT}"
    names = ("http_proxy", "https_proxy", "all_proxy")
    return {spelling: address for name in names for spelling in (name, name.upper())} | {
        "no_proxy": "",
        "NO_PROXY": "",
    }


class _Server:
    def __init__(self, listener: socket.socket, rules: ProxyRules) -> None:
        self.listener = listener
        self.rules = rules
        self.free_connections = threading.Semaphore(MAX_CONNECTIONS)
        self.open: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.is_closed = False

    def serve(self) -> None:
        while True:
            self.free_connections.acquire()
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
        self.free_connections.release()

    def _keep(self, connection: socket.socket) -> bool:
        """Let `close` end this connection. When the server is closed already: close it, return False."""
        with self.lock:
            if not self.is_closed:
                self.open.add(connection)
                return True
        connection.close()
        return False

    def _answer(self, caller: socket.socket) -> None:
        remote: socket.socket | None = None
        try:
            caller.settimeout(IDLE_S)
            head, rest = _read_head(caller)
            remote, request, answer = connect(head, self.rules)
            remote.settimeout(IDLE_S)
            if not self._keep(remote):
                return
            caller.sendall(answer)
            remote.sendall(request + rest)
            other = threading.Thread(target=_copy, args=(caller, remote), daemon=True)
            other.start()
            _copy(remote, caller)
            other.join()
        except Refusal as refusal:
            text = f"{refusal}\n".encode()
            with suppress(OSError):
                caller.sendall(
                    b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                    % (len(text), text)
                )
        except (OSError, ValueError):
            with suppress(OSError):
                caller.sendall(b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        finally:
            with self.lock:
                self.open -= {caller, remote}
            for connection in (caller, remote):
                if connection is not None:
                    connection.close()
            self.free_connections.release()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _read_head(caller: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = caller.recv(CHUNK)
        if not part or len(data) > MAX_HEAD:
            raise ValueError("no request")
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


# ---- requests


def connect(head: bytes, rules: ProxyRules) -> tuple[socket.socket, bytes, bytes]:
    """Open the connection that a request asks for.

    Returns the connection, the bytes to send to the host first, and the bytes to answer the caller with.
    Raises Refusal when the rules forbid the host or the request is malformed, OSError when the host does not
    answer.
    """
    line, _, fields = head.decode("latin-1").partition("\r\n")
    method, _, rest = line.partition(" ")
    target, _, _ = rest.partition(" ")
    if method == "CONNECT":
        host, port = _split(target, 443)
        addresses, proxy = route(host, port, "https", rules)
        remote = _through(proxy, host, port) if proxy else _first(addresses, port)
        return remote, b"", b"HTTP/1.1 200 Connection established\r\n\r\n"
    url = urlsplit(target)
    if url.scheme != "http" or not url.hostname:
        raise Refusal("this is a proxy: ask it with CONNECT, or for http://…")
    host, port = _split(url.netloc.rpartition("@")[2], 80)
    addresses, proxy = route(host, port, "http", rules)
    path = f"{url.path or '/'}{f'?{url.query}' if url.query else ''}"
    kept = [
        field
        for field in fields.split("\r\n")
        if not re.match(r"(proxy-[a-z-]+|connection|keep-alive)\s*:", field, re.IGNORECASE)
    ]
    # One request a connection, since a second one could ask for another host.
    lines = [
        f"{method} {f'http://{_host_and_port(host, port)}' if proxy else ''}{path} HTTP/1.1",
        *(_login(proxy) if proxy else []),
        *kept,
    ]
    said = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
    return (_call(proxy) if proxy else _first(addresses, port)), said, b""


def _split(location: str, default_port: int) -> tuple[str, int]:
    host, colon, port = location.rpartition(":") if not location.endswith("]") else (location, "", "")
    if not colon:
        host, port = location, str(default_port)
    host = host.removeprefix("[").removesuffix("]").rstrip(".").lower()
    if not HOST.fullmatch(host) or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise Refusal(f"{location[:100]!r} is no host and port")
    return host, int(port)


def route(host: str, port: int, scheme: str, rules: ProxyRules) -> tuple[list[str], str]:
    """How to reach `host`: its addresses, and the URL of this machine's own proxy for it, "" for none.

    The list may be empty where that proxy resolves names. Raises Refusal when the rules forbid the host,
    OSError when its name is unknown.
    """
    proxy = rules.upstream.get(scheme) or rules.upstream.get("all", "")
    if proxy.startswith("socks") or bypasses_proxy(host, port, rules.upstream.get("no", "")):
        proxy = ""
    addresses = _addresses(host, port, may_be_unknown=bool(proxy))
    if f"{host}:{port}" not in rules.index:
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


def bypasses_proxy(host: str, port: int, no_proxy: str) -> bool:
    """Whether `no_proxy` lists the host itself or its domain."""
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
    """A connection to the first address that answers. Takes no name: see the module's invariant."""
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), CONNECT_S)
        except OSError as error:
            failure = error
    raise failure


def is_public(address: str) -> bool:
    """Whether the internet routes to it: not this machine, its networks or its cloud's metadata service."""
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
    """Whether it is this machine's: the kernel then sends to it from the same address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as chooser, suppress(OSError):
        chooser.connect((address, 9))  # sends nothing
        return bool(chooser.getsockname()[0] == address)
    return False


def _call(proxy: str) -> socket.socket:
    url = urlsplit(proxy)
    if url.scheme != "http" or not url.hostname:
        raise OSError(f"this machine's proxy has an unsupported scheme: {url.scheme!r}")
    return socket.create_connection((url.hostname, url.port or 80), CONNECT_S)


def _login(proxy: str) -> list[str]:
    url = urlsplit(proxy)
    login = f"{unquote(url.username or '')}:{unquote(url.password or '')}".encode()
    return [] if url.username is None else [f"Proxy-Authorization: Basic {base64.b64encode(login).decode()}"]


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _through(proxy: str, host: str, port: int) -> socket.socket:
    """Open a tunnel through this machine's own proxy."""
    remote = _call(proxy)
    try:
        target = _host_and_port(host, port)
        request = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *_login(proxy), "", ""]
        remote.sendall("\r\n".join(request).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            # Byte by byte, since the bytes after the answer belong to the host.
            byte = remote.recv(1)
            if not byte or len(answer) > MAX_HEAD:
                raise OSError("this machine's proxy gave no answer")
            answer += byte
        if not re.match(rb"HTTP/1\.[01] 200\b", answer):
            raise OSError(f"this machine's proxy refuses: {answer.splitlines()[0][:100]!r}")
    except BaseException:
        remote.close()
        raise
    return remote


def named_hosts(texts: Iterable[str]) -> frozenset[str]:
    """The host of each http and https address in `texts`, as "host:port"."""
    found = set()
    for text in texts:
        for word in text.split():
            with suppress(ValueError):  # not a complete address
                url = urlsplit(word)
                if url.scheme in ("http", "https") and url.hostname:
                    found.add(f"{url.hostname.lower()}:{url.port or (443 if url.scheme == 'https' else 80)}")
    return frozenset(found)


def listed_hosts(environ: Mapping[str, str]) -> frozenset[str]:
    """The hosts of SELFPLAY_BUILD_HOSTS (comma-separated, port 443 unless given), as "host:port"."""
    words = (
        word.strip().lower().partition(":") for word in environ.get("SELFPLAY_BUILD_HOSTS", "").split(",")
    )
    return frozenset(f"{host}:{port or 443}" for host, _, port in words if host)
