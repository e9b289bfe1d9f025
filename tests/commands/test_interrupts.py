"""Ctrl-C: the command ends with exit code 130 and says how to go on."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# The real command line. Only what would open sandboxes is replaced by a Ctrl-C.
PROGRAM = """
import os, signal, sys
from types import SimpleNamespace
from selfplay import cli
from selfplay.commands import train

# A process that was started in the background may have been told to ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupted(*_):
    os.kill(os.getpid(), signal.SIGINT)

train.open_backend = lambda *_: (SimpleNamespace(), "none")
train._play = interrupted
cli.main()
"""


def selfplay_interrupted(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "60"},
        timeout=120,
    )


def command_in(message: str) -> list[str]:
    lines = [line for line in message.splitlines() if line.startswith("the run continues with: ")]
    assert len(lines) == 1, message
    return shlex.split(lines[0].removeprefix("the run continues with: "))


def test_an_interrupted_run_prints_the_command_that_continues_it(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("pypi:toolz==1.0.0\n")
    settings = ["--set", "run.name=mine", "--set", "run.folder=my runs"]
    first = selfplay_interrupted(tmp_path, "train", "--repos", "list.txt", *settings)
    assert first.returncode == 130, first.stderr
    assert "interrupted" in first.stderr
    command = command_in(first.stderr)
    assert command == ["selfplay", "train", "--resume", "mine", "--runs", "my runs"]

    second = selfplay_interrupted(tmp_path, *command[1:])
    assert "Resuming mine" in second.stdout
    assert second.returncode == 130, second.stderr
    assert command_in(second.stderr) == command
