"""A running bubblewrap: its start, its limits, its end.

Makes neither its command line nor its control group. Invariant: a pid namespace dies with its process 1, and
process 1 dies with the harness. So a killed harness leaves no process behind.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from selfplay.errors import SandboxInterrupted, SandboxUnavailable
from selfplay.sandbox.base import Limits
from selfplay.sandbox.bubblewrap_host import ending
from selfplay.sandbox.cgroups import ControlGroup, machine_kills, memory_kills
from selfplay.sandbox.client import HELLO_S, Connection, PeerGone, PipeChannel, Refused
from selfplay.sandbox.layers import Layers

WATCH_INTERVAL_S = 0.05
END_INTERVAL_S = 0.2  # between two looks whether bubblewrap has ended
END_S = 10.0  # until bubblewrap itself is killed, after its process 1


# Joins the groups before it becomes bubblewrap. So bubblewrap's cgroup namespace begins at the groups, and
# code inside cannot read their names. Where it may not join, the harness finds out and uses a watchdog.
JOIN = (
    'n=$1; shift; while [ "$n" -gt 0 ]; do { echo 0 >"$1"; } 2>/dev/null || :; n=$((n - 1)); shift; done; '
    'exec "$@"'
)


@dataclass(frozen=True)
class Launch:
    """What `Spawner.start` starts.

    arguments  the command line of bubblewrap
    variables  all of its environment variables
    fds        descriptors that stay open in it
    layers     folder of this machine -> where the command line expects its overlay
    group      the control group that it starts in, None for the harness's own
    """

    arguments: Sequence[str]
    variables: Mapping[str, str]
    fds: Sequence[int]
    layers: Mapping[str, str]
    group: ControlGroup | None

    def in_group(self) -> list[str]:
        """The command line that joins the group first."""
        if self.group is None:
            return list(self.arguments)
        doors = [str(folder / "cgroup.procs") for folder in self.group.folders]
        return ["/bin/sh", "-c", JOIN, "sh", str(len(doors)), *doors, *self.arguments]


class Spawner:
    """Starts processes from one thread that lives as long as this process.

    --die-with-parent means the thread that started bubblewrap, so a sandbox would end with its caller's
    thread. The thread also has the mount namespaces with the overlays of a start.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: tuple[int, ThreadPoolExecutor] | None = None  # with the pid of its process
        self._layers: Layers | None = None  # of the thread

    def start(self, launch: Launch) -> subprocess.Popen[bytes]:
        """Start bubblewrap. Raises SandboxUnavailable."""
        with self._lock:
            # A forked child has the object but not the thread.
            if self._executor is None or self._executor[0] != os.getpid():
                self._executor = (os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="bubblewrap"))
                self._layers = None
            executor = self._executor[1]
        try:
            return executor.submit(self._start, launch).result()
        except OSError as error:
            raise SandboxUnavailable(f"bubblewrap does not start: {error}") from error

    def _start(self, launch: Launch) -> subprocess.Popen[bytes]:
        with ExitStack() as stack:
            if launch.layers:
                self._layers = self._layers or Layers()
                stack.enter_context(self._layers.mounted(launch.layers))
            return subprocess.Popen(
                launch.in_group(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(launch.variables),
                pass_fds=launch.fds,
                cwd="/",
                process_group=0,
            )


class OpenedBubblewrap:
    """A started bubblewrap: its process, its command server, its control group (None: a watchdog instead)."""

    def __init__(self, process: subprocess.Popen[bytes], group: ControlGroup | None) -> None:
        assert process.stdin and process.stdout
        self.process = process
        self.group = group
        self.connection = Connection(PipeChannel(process.stdout.fileno(), process.stdin.fileno()))
        self.server_pid = 0
        self._server: int | None = None  # a pidfd, since a pid could be reused
        self._closed = threading.Event()
        self._used_too_much = False  # the watchdog ended it
        self._memory_kills = memory_kills(group)
        self._machine_kills = machine_kills(group)

    def begin(self, info: int, limits: Limits) -> None:
        """Wait until the command server answers, and put it under its limits before any command runs.

        info: the descriptor from which bubblewrap's --info-fd is read. Raises SandboxUnavailable,
        or SandboxInterrupted if bubblewrap was killed.
        """
        try:
            text = self._read_info(info)
            self.server_pid = int(json.loads(text)["child-pid"])
            self._server = os.pidfd_open(self.server_pid)
            if self.group is None or not self.group.has(self.server_pid):
                threading.Thread(
                    target=self._watch, args=(limits,), daemon=True, name="sandbox-watchdog"
                ).start()
            self.connection.hello(time.monotonic() + HELLO_S)
        except (PeerGone, Refused, OSError, ValueError, KeyError) as error:
            has_ended = self._has_ended(patience_s=1.0)
            self._kill_all()
            said = self._errors()
            if has_ended and (code := self.process.poll() or 0) < 0:
                raise SandboxInterrupted(f"bubblewrap {ending(code)} at its start") from error
            raise SandboxUnavailable(
                f"bubblewrap started no command server: {error} {said}".strip()
            ) from error

    def _read_info(self, info: int) -> bytes:
        """What bubblewrap writes to --info-fd. Raises PeerGone if it ended, or is late.

        A child that it leaves behind keeps the descriptor open, so its end is looked for too.
        """
        data, deadline = b"", time.monotonic() + HELLO_S
        while b"}" not in data:
            has_ended = self._has_ended()
            ready, _, _ = select.select([info], [], [], END_INTERVAL_S)
            part = os.read(info, 4096) if ready else b""
            if (ready and not part) or (not part and has_ended) or time.monotonic() > deadline:
                raise PeerGone("it ended before it began")
            data += part
        return data

    def _has_ended(self, patience_s: float = 0.0) -> bool:
        """Whether bubblewrap ended, now or within some seconds. It is not reaped: its group stays its own."""
        give_up = time.monotonic() + patience_s
        while not os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if time.monotonic() >= give_up:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Kill process 1. The kernel then kills all of its namespace, and bubblewrap ends by itself."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._server is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self._server, signal.SIGKILL)
        else:
            self._kill_all()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._server is not None:
            os.close(self._server)
            self._server = None
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        if self.group:
            self.group.remove()

    def _kill_all(self) -> None:
        """Kill bubblewrap and its child: if it was killed at its start, the child waits for it for ever."""
        if self.process.returncode is None:  # so the process group is still its own
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def machine_kills(self) -> int:
        """Number of its processes that the kernel killed because the machine ran out of memory."""
        return machine_kills(self.group) - self._machine_kills

    def killed_from_outside(self) -> str:
        """Say how somebody outside ended the sandbox; "" when it runs, or a command may have ended it.

        A command cannot send SIGKILL to bubblewrap, which it does not see, nor to process 1
        (pid_namespaces(7)). It can only use up memory until the kernel or the watchdog kills: so where one of
        them did, the command may be to blame.
        """
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.poll()
        kills = self._memory_kills
        if self._used_too_much or kills is None or memory_kills(self.group) != kills:
            return ""
        if code is not None and code < 0:
            return f"its bubblewrap was ended by {signal.Signals(-code).name} from outside"
        if code == 128 + signal.SIGKILL:
            return "its command server was ended by SIGKILL from outside"
        return ""

    def _errors(self) -> str:
        stream = self.process.stderr
        if stream is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        os.set_blocking(stream.fileno(), False)
        return (stream.read(4000) or b"").decode("utf-8", "replace").strip()

    def _watch(self, limits: Limits) -> None:
        """The watchdog, for want of a control group: end the sandbox when its processes use too much."""
        while not self._closed.wait(WATCH_INTERVAL_S):
            usage = tree_usage(self.server_pid)
            if usage.resident_bytes > limits.memory_bytes or usage.processes > 4 * limits.processes:
                self._used_too_much = True
                with suppress(OSError):
                    os.kill(self.server_pid, signal.SIGKILL)
                return


@dataclass(frozen=True)
class TreeUsage:
    processes: int
    resident_bytes: int


def tree_usage(pid: int) -> TreeUsage:
    """What a process and its descendants use. Memory that they share counts twice, which is the safe side."""
    page = os.sysconf("SC_PAGE_SIZE")
    pending, processes, resident = [pid], 0, 0
    while pending:
        current = pending.pop()
        try:
            resident += int(Path(f"/proc/{current}/statm").read_text().split()[1]) * page
            for thread in Path(f"/proc/{current}/task").iterdir():
                pending += [int(child) for child in (thread / "children").read_text().split()]
        except (OSError, ValueError, IndexError):
            continue
        processes += 1
    return TreeUsage(processes, resident)
