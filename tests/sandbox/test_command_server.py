"""The command server in a bare pid namespace, and its client against processes that break the protocol."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfplay.errors import ArtifactError
from selfplay.sandbox import client, command_server
from selfplay.sandbox.client import Connection, PeerGone, PipeChannel, archive_frames, safe_name
from selfplay.sandbox.owners import abandoned, owner, unique_name

SERVER = Path(command_server.__file__)


@contextmanager
def peer(*command: str) -> Iterator[Connection]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin and process.stdout
        try:
            yield Connection(PipeChannel(process.stdout.fileno(), process.stdin.fileno()))
        finally:
            process.kill()


@contextmanager
def server(tmp_path: Path) -> Iterator[Connection]:
    unshare = shutil.which("unshare")
    flags = ["--pid", "--fork", "--kill-child", "--mount-proc"] + (
        [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    )
    if (
        unshare is None
        or subprocess.run([unshare, *flags, "true"], capture_output=True, check=False).returncode != 0
    ):
        pytest.skip(
            "no pid namespace can be made here; allow user namespaces: "
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    arguments = [str(1 << 20), "0", "1", str(tmp_path)]
    with peer(unshare, *flags, sys.executable, "-I", "-S", str(SERVER), *arguments) as connection:
        connection.hello(time.monotonic() + 20)
        yield connection


def tar_of(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def test_the_server_refuses_to_run_where_it_is_not_process_1() -> None:
    arguments = [sys.executable, "-I", "-S", str(SERVER), "1000", "0", "0", "/tmp"]
    refused = subprocess.run(arguments, input=b"", capture_output=True, check=False)
    assert refused.returncode == 1
    assert b"refuses to run anywhere else" in refused.stderr


def test_the_server_imports_nothing_that_is_slow_to_import() -> None:
    load = f"exec(compile(open({str(SERVER)!r}).read(), 'server', 'exec'), {{'__name__': 'server'}})"
    code = f"import sys; {load}; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"json", "struct", "subprocess", "tarfile"} & set(modules)


def test_a_command_runs_with_its_output_status_and_input(tmp_path: Path) -> None:
    with server(tmp_path) as connection:
        result = connection.run(b"cat; pwd; exit 5", 20, 1000, b"in\0put\n")
        assert (result.exit_code, result.output) == (5, b"in\0put\n" + os.fsencode(tmp_path) + b"\n")
        assert 0 < result.duration_s < 20


def test_a_hundred_commands_leave_no_descriptor_and_no_zombie_behind(tmp_path: Path) -> None:
    with server(tmp_path) as connection:
        for _ in range(100):
            connection.run(b"sleep 0 & true", 20, 1000, b"")
        zombies = b'cat /proc/[0-9]*/stat 2>/dev/null | grep -q " Z $PPID "'
        reaped = connection.run(b"while %b; do sleep 0.1; done; echo reaped" % zombies, 20, 1000, b"")
        assert reaped.output == b"reaped\n"
        last = connection.run(b"exec 9</dev/null; ls /proc/self/fd | wc -l", 20, 1000, b"")
        assert int(last.output) < 8


def test_after_an_exit_trap_or_exec_the_last_known_state_stays(tmp_path: Path) -> None:
    with server(tmp_path) as connection:
        connection.run(b"export A=1; cd /", 20, 1000, b"")
        connection.run(b"trap 'echo mine' EXIT; export A=2; cd /tmp", 20, 1000, b"")
        assert connection.run(b'echo "$A $PWD"', 20, 1000, b"").output == b"1 /\n"


def test_a_forged_state_fools_only_the_next_command(tmp_path: Path) -> None:
    with server(tmp_path) as connection:
        long = b'"$(head -c 200000 /dev/zero | tr "\\0" y)"'
        forged = b'printf "relative\\0=x\\0no equals\\0B=2\\0%s" ' + long + b" >&251; kill -9 $$"
        connection.run(forged, 20, 1000, b"")
        result = connection.run(b'echo "$B"', 20, 1000, b"")
        assert result.exit_code in (0, 1, 127)
        assert connection.run(b"/bin/echo ok", 20, 1000, b"").output == b"ok\n"


def test_files_travel_both_ways(tmp_path: Path) -> None:
    with server(tmp_path) as connection:
        connection.write(str(tmp_path / "in"), list(archive_frames(tar_of(a=b"1", b=bytes(300_000)))))
        with tarfile.open(fileobj=io.BytesIO(connection.read(str(tmp_path / "in"), 1 << 20))) as archive:
            assert {member.name: member.size for member in archive} == {"a": 1, "b": 300_000}


def test_equal_folders_give_equal_archives(tmp_path: Path) -> None:
    with server(tmp_path) as connection:
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            for name in ("x", "y") if folder == "one" else ("y", "x"):
                (tmp_path / folder / name).write_text(name)
        assert connection.read(str(tmp_path / "one"), 1 << 20) == connection.read(
            str(tmp_path / "two"), 1 << 20
        )


def test_a_peer_that_is_silent_is_given_up_at_the_deadline() -> None:
    with peer("sleep", "30") as connection:
        started = time.monotonic()
        with pytest.raises(PeerGone, match="in time"):
            connection.hello(time.monotonic() + 0.2)
        assert time.monotonic() - started < 5


def test_a_peer_that_ends_is_gone_for_every_request() -> None:
    with peer("true") as connection:
        for _ in range(2):
            with pytest.raises(PeerGone):
                connection.run(b"true", 1, 10, b"")


def test_a_peer_that_floods_is_refused_before_it_fills_memory() -> None:
    with peer("yes", "r" * 4000) as connection, pytest.raises(PeerGone, match="larger than it may"):
        connection.hello(time.monotonic() + 20)


def test_a_peer_that_sends_more_output_than_asked_for_is_refused() -> None:
    code = "import os\nwhile True: os.write(1, b'o' + (1000).to_bytes(4, 'big') + b'x' * 1000)"
    with peer(sys.executable, "-c", code) as connection, pytest.raises(PeerGone, match="more output"):
        connection.run(b"true", 5, 10_000, b"")


def test_a_peer_cannot_smuggle_a_name_out_of_its_folder() -> None:
    payload = client.pack(b"../../x", b"420")
    code = f"import os, time; os.write(1, {client.frame(b'p', payload)!r}); time.sleep(5)"
    with peer(sys.executable, "-c", code) as connection, pytest.raises(ArtifactError, match=r"\.\."):
        connection.read("/testbed", 1000)


@pytest.mark.parametrize("name", ["../x", "a/../../b", "/etc/passwd", "..", "a\0b"])
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="leaves its folder"):
        safe_name(name)


def test_harmless_names_are_normalised() -> None:
    assert [safe_name(name) for name in ("./a/b", "a//b/", ".", "..a/b..")] == ["a/b", "a/b", "", "..a/b.."]


def test_fields_survive_packing() -> None:
    fields = [b"", b"x", bytes(range(256)), b"\0" * 1000]
    assert (
        client.unpack(command_server.pack(*fields)) == fields == command_server.unpack(client.pack(*fields))
    )


def test_only_names_of_dead_processes_are_abandoned() -> None:
    code = "from selfplay.sandbox.owners import owner; print(owner())"
    dead = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SERVER.parents[2]
    ).stdout.strip()
    assert not abandoned(unique_name()) and not abandoned(owner())
    assert abandoned(dead) and abandoned(f"selfplay-{dead}-7")
    assert not abandoned("selfplay-of-somebody-else") and not abandoned(f"elsewhere-{dead}")
