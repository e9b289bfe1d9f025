"""A handful of kills of a real run, as `make chaos` plays many: what becomes of it equals a run that was left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import chaos
from selfplay.errors import PrerequisiteError
from selfplay.sandbox import open_backend

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


def test_a_run_whose_processes_are_killed_equals_one_that_was_left_alone(tmp_path):
    try:
        open_backend("bubblewrap")
    except PrerequisiteError as missing:
        pytest.skip(str(missing))
    root = Path(chaos.__file__).parents[1]
    command = [sys.executable, chaos.__file__, "--kills", "4", "--seed", "7", "--scenario", "scripted", "--folder", str(tmp_path)]
    variables = {**os.environ, "PYTHONPATH": str(root)}
    played = subprocess.run(command, capture_output=True, text=True, cwd=root, env=variables)
    assert played.returncode == 0, played.stdout + played.stderr
    assert "scripted, run 1: equals the one left alone" in played.stdout
