"""What sandboxes share in the kernel: memory that runs out, locks, sockets, users, layers."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import open_or_skip
from selfplay.sandbox import cgroups
from selfplay.sandbox.base import Limits, SandboxBackend, SandboxSpec
from selfplay.sandbox.bubblewrap_host import users_have_namespaces
from selfplay.sandbox.cgroups import ControlGroup, machine_kills
from selfplay.sandbox.layers import Layers, can_layer, places
from selfplay.sandbox.seccomp import JUMP_ANY_BIT, JUMP_EQUAL, JUMP_GREATER_EQUAL, LOAD, seccomp_filter

BOMB = 'python3 -c "b = [bytearray(1 << 20) for _ in range(600)]"'


# ---- memory that runs out


@pytest.fixture
def bubblewrap(tmp_path: Path) -> SandboxBackend:
    return open_or_skip("bubblewrap", tmp_path / "cache")


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Groups are made in one that has less memory than they have: so it plays the part of the machine."""
    bases = cgroups._bases()
    if not bases or any("memory" in controllers and len(controllers) > 1 for controllers, _ in bases):
        pytest.skip("no control groups of version 1 can be made here; run as root")
    memory = next(folder for controllers, folder in bases if controllers == ("memory",))
    small = memory / f"small-{os.getpid()}"
    small.mkdir()
    (small / "memory.limit_in_bytes").write_text(str(100 << 20))
    changed = tuple((names, small if names == ("memory",) else folder) for names, folder in bases)
    monkeypatch.setattr(cgroups, "_bases", lambda: changed)
    try:
        yield
    finally:
        small.rmdir()


@pytest.mark.sandbox
def test_a_kill_because_the_machine_has_no_memory_is_evidence(
    bubblewrap: SandboxBackend, short_of_memory: None
) -> None:
    with bubblewrap.open(SandboxSpec("", Limits(memory_bytes=400 << 20))) as box:
        assert box.run(BOMB).is_cut_off
        assert not box.run("kill -9 $$").is_cut_off, "the kill before it counts twice"


@pytest.mark.sandbox
def test_neither_a_signal_nor_the_sandboxs_own_limit_is_evidence(tmp_path: Path) -> None:
    for kind in ("bubblewrap", "docker"):
        backend = open_or_skip(kind, tmp_path / "cache")
        with backend.open(SandboxSpec("", Limits(memory_bytes=200 << 20))) as box:
            done = box.run("kill -9 $$")
            assert done.exit_code == 137 and not done.is_cut_off
            done = box.run(BOMB)
            assert done.exit_code != 0 and not done.is_cut_off


def test_kills_are_read_from_both_versions_of_control_groups(tmp_path: Path) -> None:
    group = ControlGroup((tmp_path,), frozenset({"memory"}))
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 2\n")
    assert machine_kills(group) == 2
    events.write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\n")
    assert machine_kills(group) == 0
    events.unlink()
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (tmp_path / "memory.limit_in_bytes").write_text(f"{200 << 20}\n")
    (tmp_path / "memory.max_usage_in_bytes").write_text(f"{100 << 20}\n")
    assert machine_kills(group) == 3
    (tmp_path / "memory.max_usage_in_bytes").write_text(f"{200 << 20}\n")
    assert machine_kills(group) == 0


# ---- the filter


def answer(program: bytes, number: int, *arguments: int, architecture: int = 0xC000003E) -> int | None:
    """What the filter does with a call, by an interpreter of its few instructions. None: the call is made."""
    given = [number, architecture, 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        given += [argument & 0xFFFFFFFF, argument >> 32]
    steps = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == LOAD:
            value = given[operand // 4]
        elif code in (JUMP_EQUAL, JUMP_ANY_BIT, JUMP_GREATER_EQUAL):
            truth = {
                JUMP_EQUAL: value == operand,
                JUMP_ANY_BIT: bool(value & operand),
                JUMP_GREATER_EQUAL: value >= operand,
            }[code]
            at += if_true if truth else if_false
        else:
            return None if operand == 0x7FFF0000 else operand & 0xFFFF


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("socket", (1, 1, 0), None),
        ("socket", (2, 1, 0), None),
        ("socket", (10, 2, 0), None),
        ("socket", (16, 3, 0), None),
        ("socket", (16, 3, 15), errno.EAFNOSUPPORT),  # events of the machine's devices
        ("socket", (40, 1, 0), errno.EAFNOSUPPORT),
        ("socket", (1 << 32 | 40, 1, 0), errno.EAFNOSUPPORT),
        ("socket", (17, 3, 0), errno.EAFNOSUPPORT),
        ("socketpair", (1, 1, 0), None),
        ("socketpair", (40, 1, 0), errno.EAFNOSUPPORT),
        ("flock", (3, 2), 0),
        ("fcntl", (3, 1), None),
        ("fcntl", (3, 6), 0),
        ("fcntl", (3, 36), errno.ENOLCK),
        ("fcntl", (3, 1024), errno.EINVAL),
        ("preadv2", (3, 0, 1, 0, 0, 8), errno.EOPNOTSUPP),
        ("preadv2", (3, 0, 1, 0, 0, 0), None),
        ("fadvise64", (3, 0, 0, 4), 0),
        ("fadvise64", (3, 0, 0, 3), None),
        ("statx", (3, 0, 0, 0xFFF), None),
        ("statx", (3, 0, 0, 0x4FFF), errno.EINVAL),
        ("clone", (0x10000011,), errno.EPERM),
        ("clone", (17,), None),
        ("clone3", (0,), errno.ENOSYS),
        ("fanotify_init", (0, 0), errno.EPERM),
        ("inotify_add_watch", (3, 0, 0), None),
        ("read", (3, 0, 0), None),
    ],
)
def test_the_filter_answers(call: str, arguments: tuple[int, ...], expected: int | None) -> None:
    numbers = {
        "socket": 41, "socketpair": 53, "flock": 73, "fcntl": 72, "preadv2": 327, "fadvise64": 221,
        "statx": 332, "clone": 56, "clone3": 435, "fanotify_init": 300, "inotify_add_watch": 254, "read": 0,
    }  # fmt: skip
    assert answer(seccomp_filter("x86_64"), numbers[call], *arguments) == expected


def test_files_cannot_be_watched_where_sandboxes_share_them() -> None:
    shared = seccomp_filter("x86_64", shares_files=True)
    assert answer(shared, 254, 3, 0, 0) == errno.ENOSPC
    assert answer(shared, 72, 3, 1026) == errno.EINVAL and answer(shared, 72, 3, 6) == 0


def test_calls_of_another_architecture_are_refused() -> None:
    assert answer(seccomp_filter("x86_64"), 0, architecture=0x40000003) == errno.EPERM
    assert answer(seccomp_filter("x86_64"), 0x40000000) == errno.EPERM
    assert answer(seccomp_filter("aarch64"), 198, 40, 1, 0, architecture=0xC00000B7) == errno.EAFNOSUPPORT
    assert seccomp_filter("riscv64") == b""


# ---- layers


def test_overlays_show_nothing_to_the_rest_of_the_process() -> None:
    if not can_layer():
        pytest.skip("no overlay can be mounted here; run as root, with an overlay file system")
    found = places(["/usr"])
    seen: list[bool] = []

    def mount_twice() -> None:
        layers = Layers()
        for _ in range(2):
            with layers.mounted(found):
                seen.append(Path(found["/usr"], "bin").is_dir())

    thread = threading.Thread(target=mount_twice)
    thread.start()
    thread.join()
    assert seen == [True, True]
    assert "of-0" not in Path("/proc/self/mountinfo").read_text()


# ---- users and names


@pytest.mark.sandbox
def test_locks_succeed_and_sqlite_works(tmp_path: Path) -> None:
    code = (
        "import sqlite3; c = sqlite3.connect('/testbed/x.db'); c.execute('create table t (a)'); "
        "c.execute('insert into t values (1)'); c.commit(); print(c.execute('select a from t').fetchone())"
    )
    for kind in ("bubblewrap", "docker"):
        with open_or_skip(kind, tmp_path / "cache").open(SandboxSpec("")) as box:
            assert box.run("flock -n /testbed true; echo $?").text == "0\n"
            assert box.run(f'python3 -c "{code}"').text == "(1,)\n"


@pytest.mark.sandbox
def test_names_and_users_tell_nothing(tmp_path: Path) -> None:
    for kind in ("bubblewrap", "docker"):
        backend = open_or_skip(kind, tmp_path / "cache")
        inside, outside, groups = [], set(), ""
        for _ in range(3):
            with backend.open(SandboxSpec("")) as box:
                inside.append(int(box.run("id -u").text))
                groups += box.run("cat /proc/self/cgroup; hostname").text
                if pid := getattr(box, "details", {}).get("server_pid"):
                    outside.add(Path(f"/proc/{pid}").stat().st_uid)
        assert "selfplay" not in groups and str(os.getpid()) not in groups.split()
        if kind == "docker":
            assert len(set(inside)) == 3
        elif os.geteuid() == 0 and can_layer() and users_have_namespaces():
            assert inside == [1000] * 3, "the same user in each sandbox"
            assert not outside & {0, 1000}, outside


@pytest.mark.sandbox
def test_the_kernel_counts_each_sandbox_by_itself(tmp_path: Path) -> None:
    """All watch queues that a user may have, in one sandbox: the other one still gets its own."""
    make = "c = ctypes.CDLL(None); [c.inotify_init1(0) for _ in range(9999)]"
    use_up = f"import ctypes, time; {make}; print(1, flush=True)"
    for kind in ("bubblewrap", "docker"):
        backend = open_or_skip(kind, tmp_path / "cache")
        if kind == "bubblewrap" and os.geteuid() != 0:
            continue  # the kernel counts for the one user that started them
        with backend.open(SandboxSpec("")) as one, backend.open(SandboxSpec("")) as two:
            one.run(f"(python3 -c '{use_up}; time.sleep(60)' >/tmp/done 2>&1 </dev/null &)")
            one.run("until grep -q 1 /tmp/done; do sleep 0.05; done", timeout_s=30)
            ask = "import ctypes; print(ctypes.CDLL(None).inotify_init1(0) >= 0)"
            assert two.run(f"python3 -c '{ask}'").text == "True\n"
