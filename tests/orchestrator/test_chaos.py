"""A few kills of `make chaos`, so that every change meets some; fifty of them in all its scenarios are that
command's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from machine import open_or_skip

CHAOS = Path(__file__).parents[1] / "chaos.py"


@pytest.mark.sandbox
@pytest.mark.slow
def test_a_run_whose_processes_are_killed_comes_to_what_it_comes_to_alone(tmp_path: Path) -> None:
    open_or_skip("bubblewrap")
    command = [
        sys.executable,
        str(CHAOS),
        "--kills",
        "4",
        "--scenario",
        "scripted",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
    assert "kill 4, scripted" in done.stdout
