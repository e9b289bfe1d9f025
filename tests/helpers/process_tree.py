"""Finds the living processes of a run in /proc and names their purpose. It kills nothing itself.

Tests use it to choose which process to kill and to find processes that are left behind.
Invariant: the controller is the root of the tree. A process is identified by its position in the tree: its
number says nothing about it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CONTROLLER, MONITOR, SERVER, TEST_RUN, PARSER, COMMAND, RANK, HELPER = (
    "controller",
    "bwrap",
    "command server",
    "test run",
    "parser",
    "command",
    "trainer rank",
    "helper",
)
SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    pid: int
    kind: str
    command: str

    def __str__(self) -> str:
        return (
            self.kind
            if self.kind in (CONTROLLER, MONITOR, SERVER, RANK)
            else f"{self.kind} ({self.command.strip()[:60]})"
        )


def adopt_orphans() -> None:
    """Make orphans children of this process: what a dead child leaves running stays in `own_children`."""
    if ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl refused to make this process a reaper of orphans")


def processes_of(controller: int) -> list[Process]:
    """The processes of the run, the controller first. [] if the controller is dead."""
    return (
        [Process(controller, CONTROLLER, _command(controller)), *_below(controller)]
        if is_alive(controller)
        else []
    )


def is_alive(pid: int) -> bool:
    """True if the process still runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def own_children() -> list[int]:
    """The living children of this process. Dead children are reaped."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return [pid for pid in _children(os.getpid()) if is_alive(pid)]


def _below(parent: int) -> Iterator[Process]:
    for pid in _children(parent):
        command = _command(pid)
        if not is_alive(pid):
            continue
        program = Path(command.partition(" ")[0]).name
        if program == "bwrap":
            yield Process(pid, MONITOR, command)
            # The command server is process 1 of the sandbox all along, but its name changes at first.
            for server in _children(pid):
                yield Process(server, SERVER, _command(server))
                for top in _children(server):
                    yield from _in_sandbox(top)
        elif "selfplay.training.ranks.process" in command:
            yield Process(pid, RANK, command)
        else:
            yield Process(pid, HELPER, command)
            yield from _below(pid)


def _in_sandbox(top: int) -> Iterator[Process]:
    """All processes that one command started. Their kind is found in their command lines."""
    found = [(top, _command(top))]
    for pid, _ in found:
        found += [(child, _command(child)) for child in _children(pid)]
    command_lines = " ".join(command for _, command in found)
    kind = (
        TEST_RUN
        if "/submit/test_script.sh" in command_lines or " -m pytest " in command_lines
        else PARSER
        if "/submit/test_parser.py" in command_lines
        else COMMAND
    )
    for pid, command in found:
        yield Process(pid, kind, command)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""
