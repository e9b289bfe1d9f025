"""Runs a command and ends all its processes when the parent ends.

Usage: `python process_keeper.py COMMAND …`, with a pipe from the parent as stdin. It imports nothing from
selfplay, so that it starts at once. Invariant: when it ends, no process of the command is left, however its
parent ended.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE_S = 5.0


def main() -> int:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    # Grandchildren whose parent dies become children of this process.
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    child = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        # The signal follows the end of the parent's thread; this process has one thread, which lives as long
        # as the process.
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
    )
    try:
        while child.poll() is None:
            readable, _, _ = select.select([0], [], [], 0.2)
            if readable and not os.read(0, 1024):  # the parent closed the pipe or died
                return 0
        return child.returncode
    finally:
        end(child.pid)


def end(first: int) -> None:
    """End every descendant, first by SIGTERM and then by SIGKILL.

    Then remove the shared memory that they left.
    """
    shared = {name for pid in descendants(os.getpid()) for name in shared_memory(pid)}
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_S
        signalled: set[int] = set()
        while (alive := descendants(os.getpid())) and time.monotonic() < deadline:
            for pid in alive - signalled:
                try:
                    # SIGTERM goes to the first process alone, which ends the others in order.
                    if number == signal.SIGKILL or pid == first:
                        os.kill(pid, number)
                except ProcessLookupError:
                    pass
                signalled.add(pid)
            if number == signal.SIGTERM and first not in alive:
                break
            reap()
            time.sleep(0.02)
        reap()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    for name in shared:
        if not any(name in shared_memory(pid) for pid in pids):
            with contextlib.suppress(OSError):
                os.unlink(name)  # noqa: PTH108


def shared_memory(pid: int) -> set[str]:
    """Files that a process maps as Python's shared memory. A killed vLLM server leaves 400 MB of them."""
    try:
        with open(f"/proc/{pid}/maps") as file:  # noqa: PTH123
            names = (line.rpartition(" ")[2].strip() for line in file)
            return {name for name in names if name.startswith("/dev/shm/psm_")}
    except OSError:
        return set()


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def descendants(root: int) -> set[int]:
    """Running processes below `root`, at any depth."""
    parents, ended = {}, set()
    for name in os.listdir("/proc"):  # noqa: PTH208  (importing pathlib would delay the start)
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
            # A process whose first thread ended looks like a zombie. It lives while other threads run, and
            # keeps its children.
            if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1:
                ended.add(int(name))
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - ended - {root}


if __name__ == "__main__":
    sys.exit(main())
