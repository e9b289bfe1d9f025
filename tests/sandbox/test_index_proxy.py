"""The build proxy, with real sockets on loopback.

A socket that the rules name stands for the package index, any other for a service of this machine.
"""

import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfplay.sandbox.index_access import index_access
from selfplay.sandbox.index_proxy import (
    FORWARDER,
    MAX_HEAD,
    ProxyRules,
    Refusal,
    is_own,
    is_public,
    listed_hosts,
    named_hosts,
    open_proxy,
    route,
)


@contextmanager
def server(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"):
    """A service on loopback that answers each caller once. Yields its port and the list of requests."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            try:
                while True:
                    caller, _ = listener.accept()
                    with caller:
                        asked.append(caller.recv(65536))
                        caller.sendall(answer)
            except OSError:
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def ask(folder: Path, text: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        caller.connect(str(folder / "index"))
        caller.sendall(text.encode())
        said = b""
        while part := caller.recv(65536):
            said += part
        return said


def test_a_named_index_is_reached_by_connect_even_on_loopback():
    with server() as (port, asked), open_proxy(ProxyRules(frozenset({f"127.0.0.1:{port}"}))) as folder:
        said = ask(folder, f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nits own bytes")
    assert said.startswith(b"HTTP/1.1 200") and said.endswith(b"hello") and asked == [b"its own bytes"]


def test_a_named_index_is_asked_over_http_for_a_path_alone():
    with server() as (port, asked), open_proxy(ProxyRules(frozenset({f"localhost:{port}"}))) as folder:
        line = f"GET http://localhost:{port}/simple/?a=b HTTP/1.1"
        text = f"{line}\r\nHost: x\r\nProxy-Connection: keep-alive\r\nAccept: */*\r\n\r\n"
        assert ask(folder, text).endswith(b"hello")
    assert asked == [b"GET /simple/?a=b HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nConnection: close\r\n\r\n"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
    ],
)
@pytest.mark.parametrize("form", ["CONNECT {host}:{port} HTTP/1.1", "GET http://{host}:{port}/ HTTP/1.1"])
def test_a_service_of_this_machine_is_refused_under_any_name(host, form):
    with server() as (port, asked), open_proxy(ProxyRules(frozenset({f"127.0.0.1:{port + 1}"}))) as folder:
        said = ask(folder, form.format(host=host, port=port) + "\r\n\r\n")
    assert said.startswith((b"HTTP/1.1 403", b"HTTP/1.1 502")) and asked == []


def test_a_refusal_says_what_was_asked_for_and_how_to_allow_it():
    with pytest.raises(
        Refusal, match=r"127\.0\.0\.1:5432 is 127\.0\.0\.1: .* SELFPLAY_BUILD_HOSTS=127\.0\.0\.1:5432"
    ):
        route("127.0.0.1", 5432, "https", ProxyRules())


@pytest.mark.parametrize(
    "text",
    [
        "\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT \r\n\r\n",
        "CONNECT a:0 x\r\n\r\n",
        "CONNECT a/b:1 x\r\n\r\n",
    ],
)
def test_text_that_is_not_a_proxy_request_is_refused(text):
    with open_proxy(ProxyRules()) as folder:
        assert ask(folder, text).startswith((b"HTTP/1.1 403", b"HTTP/1.1 502"))


def test_an_endless_request_is_cut_off():
    with open_proxy(ProxyRules()) as folder, socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        caller.connect(str(folder / "index"))
        with pytest.raises(OSError):  # after how many bytes depends on the kernel
            for _ in range(64):
                caller.sendall(b"x" * MAX_HEAD)
            raise AssertionError("all was read")


def test_the_proxy_ends_with_its_context():
    with open_proxy(ProxyRules()) as folder:
        assert (folder.parent.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o700, 0o755)
        waiting = socket.socket(socket.AF_UNIX)
        waiting.settimeout(10)
        waiting.connect(str(folder / "index"))
    try:
        assert waiting.recv(1) == b""
    except ConnectionResetError:
        pass
    finally:
        waiting.close()
    assert not folder.exists()


def test_requests_pass_through_the_machines_own_proxy_with_its_password():
    with server(b"HTTP/1.1 200 OK\r\n\r\nthrough") as (port, asked):
        rules = ProxyRules(frozenset({"pypi.invalid:443"}), {"https": f"http://me:s%40cret@127.0.0.1:{port}"})
        with open_proxy(rules) as folder:
            said = ask(folder, "CONNECT pypi.invalid:443 HTTP/1.1\r\n\r\n")
    assert said.endswith(b"through")
    assert asked == [
        b"CONNECT pypi.invalid:443 HTTP/1.1\r\nHost: pypi.invalid:443\r\n"
        b"Proxy-Authorization: Basic bWU6c0BjcmV0\r\n\r\n"
    ]


def test_a_proxy_of_this_machine_leads_to_no_local_name():
    rules = ProxyRules(frozenset(), {"https": "http://127.0.0.1:9"})
    for host in ("printer", "metadata.google.internal", "127.0.0.1"):
        with pytest.raises(Refusal):
            route(host, 443, "https", rules)
    assert route("example.invalid", 443, "https", rules) == ([], "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("address", "public"),
    {
        "1.1.1.1": True,
        "2606:4700::1111": True,
        "127.0.0.1": False,
        "0.0.0.0": False,
        "10.1.2.3": False,
        "172.17.0.1": False,
        "192.168.1.1": False,
        "100.64.0.1": False,
        "169.254.169.254": False,
        "224.0.0.1": False,
        "::1": False,
        "::": False,
        "fe80::1%eth0": False,
        "fd00::1": False,
        "::ffff:127.0.0.1": False,
        "::ffff:1.1.1.1": True,
        "64:ff9b::7f00:1": False,
        "64:ff9b::a9fe:a9fe": False,
        "2002:7f00:1::": False,
    }.items(),
)
def test_public_addresses_are_those_that_the_internet_routes_to(address, public):
    assert is_public(address) is public


def test_an_address_of_this_machine_is_its_own():
    assert is_own("127.0.0.1") and not is_own("192.0.2.1")


def test_the_forwarder_answers_on_loopback_and_stays_behind():
    with server() as (port, asked), open_proxy(ProxyRules(frozenset({f"127.0.0.1:{port}"}))) as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            inside = free.getsockname()[1]
        # Prints the pid of the process that stays, so that the test can end it.
        code = FORWARDER.replace("os.setsid()", "print(os.getpid(), flush=True)")
        line = [sys.executable, "-I", "-S", "-c", code]
        started = subprocess.Popen([*line, str(inside), str(folder / "index")], stdout=subprocess.PIPE)
        pid = int(started.stdout.readline())
        try:
            assert started.wait(10) == 0
            with socket.create_connection(("127.0.0.1", inside), 10) as caller:
                caller.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nhi".encode())
                said = b""
                while part := caller.recv(4096):
                    said += part
            assert said.endswith(b"hello") and asked == [b"hi"]
        finally:
            subprocess.run(["kill", str(pid)], check=True)
            started.stdout.close()


def test_the_forwarder_fails_if_its_socket_does_not_exist(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", FORWARDER, "0", str(tmp_path / "none")],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1


def test_hosts_are_read_from_pips_settings_and_from_our_own_variable():
    texts = [
        "https://me:pw@Index.Example/simple file:///srv",
        "http://10.0.0.5:3141/team/pypi",
        "no address",
        "https://[oops",
    ]
    assert named_hosts(texts) == {"index.example:443", "10.0.0.5:3141"}
    assert listed_hosts({"SELFPLAY_BUILD_HOSTS": "git.example, Other.example:8443,"}) == {
        "git.example:443",
        "other.example:8443",
    }


def test_the_harness_keeps_its_proxies_and_a_build_does_not_see_them(tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nproxy = proxy.example:8080\nindex-url = https://index.example/simple\n")
    environ = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_DIRS": str(tmp_path),
        "PIP_CONFIG_FILE": str(config),
        "NO_PROXY": "index.example",
    }
    access = index_access(environ)
    assert "proxy" not in access.pip_conf and "index-url" in access.pip_conf
    assert not any("proxy" in name.lower() for name in access.variables)
    assert access.rules.upstream == {
        "no": "index.example",
        "http": "http://proxy.example:8080",
        "https": "http://proxy.example:8080",
    }
    assert {"index.example:443", "pypi.org:443"} <= access.rules.index
