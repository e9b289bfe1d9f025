"""A command in a terminal emulator: what a person sees of it, and whether it took over the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import pyte


class TerminalScreen:
    """`python -m selfplay.cli ARGUMENTS` on a pseudo-terminal, whose output `pyte` interprets.

    It waits for what is shown, never for a time: a command that shows it never meets the test's time limit.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, columns: int = 80, lines: int = 24) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        self._size(columns, lines)
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "selfplay.cli", *arguments],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**inherited, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> TerminalScreen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def wait_for(self, is_shown: str | Callable[[str], bool]) -> str:
        """Read until the screen holds this text, or the function is true of it. Returns the screen's text."""
        holds = (lambda text: is_shown in text) if isinstance(is_shown, str) else is_shown
        while not holds(self.text):
            if not self._read():
                raise AssertionError(f"the command ended before it showed {is_shown!r}:\n{self.text}")
        return self.text

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        self._size(columns, lines)
        os.killpg(self._process.pid, signal.SIGWINCH)

    def end(self) -> int:
        """Read all that is left. Returns the exit code."""
        while self._read():
            pass
        return self._process.wait()

    def close(self) -> int:
        """Close the terminal, as somebody who closes its window. Returns the exit code.

        The command is in a session that has no controlling terminal, so no signal tells it.
        """
        self._master, old = os.open(os.devnull, os.O_RDWR), self._master
        os.close(old)
        return self._process.wait()

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self._stream.feed(data)
        return bool(data)

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
