"""Real processes: however the parent ends, no process that it started is left."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfplay.engines import process_keeper

# A command that ignores SIGTERM and starts another in a session of its own, as a server's workers may.
TREE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
command = [sys.executable, "-I", "-S", *sys.argv[1:]]
keeper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
print(keeper.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_end(pids: list[int]) -> None:
    end = time.monotonic() + 30
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, [pid for pid in pids if is_alive(pid)]
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def short_grace(tmp_path: Path) -> Path:
    script = tmp_path / "keeper.py"
    script.write_text(Path(process_keeper.__file__).read_text().replace("GRACE_S = 5.0", "GRACE_S = 0.2"))
    return script


def test_all_its_processes_end_when_the_parent_is_killed(short_grace: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", PARENT, str(short_grace), sys.executable, "-S", "-c", TREE],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    keeper = int(parent.stdout.readline())
    started = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(started) == 2 and all(map(is_alive, started))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_for_end([keeper, *started])


def test_all_its_processes_end_when_the_pipe_is_closed_and_its_exit_code_is_the_commands(
    short_grace: Path,
) -> None:
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(short_grace), sys.executable, "-S", "-c", TREE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    started = [int(pid) for pid in keeper.stdout.readline().split()]
    keeper.stdin.close()
    keeper.wait(30)
    keeper.stdout.close()
    assert not any(map(is_alive, started))
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(short_grace), "sh", "-c", "exit 7"], stdin=subprocess.PIPE
    ) as ended:
        assert ended.wait(30) == 7  # before the pipe closes


# Its first thread ends while another runs, as in a server that shuts down: /proc calls it a zombie.
HEADLESS = """
import ctypes, platform, subprocess, sys, threading
libc = ctypes.CDLL(None)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
threading.Thread(target=libc.pause).start()
libc.syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"),
    reason="the number of the system call that ends a thread is not known",
)
def test_children_of_a_process_whose_first_thread_has_ended_are_ended(short_grace: Path) -> None:
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(short_grace), sys.executable, "-S", "-c", HEADLESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    child = int(keeper.stdout.readline())
    first = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    wait_for_end([first])  # its first thread
    assert len(list(Path(f"/proc/{first}/task").iterdir())) == 2
    keeper.stdin.close()
    keeper.wait(30)
    keeper.stdout.close()
    assert not is_alive(child)


def test_shared_memory_of_killed_processes_is_removed(short_grace: Path) -> None:
    code = """
import signal, time
from multiprocessing import resource_tracker, shared_memory
signal.signal(signal.SIGTERM, signal.SIG_IGN)
block = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(block._name, "shared_memory")
print(block.name, flush=True)
time.sleep(60)
"""
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(short_grace), sys.executable, "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    block = Path("/dev/shm") / keeper.stdout.readline().decode().strip()
    assert block.is_file()
    keeper.stdin.close()
    keeper.wait(30)
    keeper.stdout.close()
    assert not block.exists()


def test_its_first_process_ends_with_a_killed_keeper(short_grace: Path) -> None:
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(short_grace), sys.executable, "-S", "-c", TREE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert keeper.stdin is not None and keeper.stdout is not None
    first, second = (int(pid) for pid in keeper.stdout.readline().split())
    keeper.kill()
    keeper.wait()
    wait_for_end([first])
    os.kill(second, signal.SIGKILL)  # in its own session, where only the sweep of a later start finds it
    keeper.stdin.close()
    keeper.stdout.close()
