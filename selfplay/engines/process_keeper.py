"""Runs a command whose processes end with this one's parent: `python process_keeper.py COMMAND …`, a pipe to the parent on stdin.

Imports nothing of selfplay, so that it starts at once. Invariant: when it ends, however its parent ended, no process of the command lives.
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
    prctl(
        PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
    )  # grandchildren whose parent dies become children of this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    child = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: prctl(
            PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0
        ),  # this process has one thread, which lives as long as it
    )
    try:
        while child.poll() is None:
            readable, _, _ = select.select([0], [], [], 0.2)
            if readable and not os.read(0, 1024):  # the parent closed the pipe, or is dead
                return 0
        return child.returncode
    finally:
        end(child.pid)


def end(first: int) -> None:
    """Every descendant: asked, then made to; then the shared memory goes that they had no time to remove."""
    shared = {name for pid in descendants(os.getpid()) for name in shared_memory(pid)}
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_S
        asked: set[int] = set()
        while (alive := descendants(os.getpid())) and time.monotonic() < deadline:
            for pid in alive - asked:
                try:
                    # The first process alone ends the others in good order; what it leaves is made to.
                    if number == signal.SIGKILL or pid == first:
                        os.kill(pid, number)
                except ProcessLookupError:
                    pass
                asked.add(pid)
            if number == signal.SIGTERM and first not in alive:
                break
            reap()
            time.sleep(0.02)
        reap()
    for name in shared:
        if not any(name in shared_memory(int(pid)) for pid in os.listdir("/proc") if pid.isdigit()):  # noqa: PTH208
            with contextlib.suppress(OSError):
                os.unlink(name)  # noqa: PTH108


def shared_memory(pid: int) -> set[str]:
    """Files that a process maps as Python's shared memory: a killed vLLM server leaves 400 MB of them."""
    try:
        with open(f"/proc/{pid}/maps") as file:  # noqa: PTH123
            return {
                name for line in file if (name := line.rpartition(" ")[2].strip()).startswith("/dev/shm/psm_")
            }
    except OSError:
        return set()


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def descendants(root: int) -> set[int]:
    """Living processes below `root`, at any depth."""
    parents, ended = {}, set()
    for name in os.listdir("/proc"):  # noqa: PTH208  (pathlib costs a start-up that this script does not want)
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
            # One whose first thread has ended looks like a zombie; while others run it lives, and its children are its own.
            if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1:
                ended.add(int(name))
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - ended - {root}


if __name__ == "__main__":
    sys.exit(main())
