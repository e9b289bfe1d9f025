"""Many sandboxes, together and one after the other, leave nothing behind.

`python -m benchmarks.sandbox --scale` shows the figures.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.sandbox_scale import check_scale, left_over, look
from machine import open_or_skip
from selfplay.sandbox.base import SandboxBackend, SandboxSpec

pytestmark = pytest.mark.sandbox
MEMORY_SLACK = 16 << 20


@pytest.fixture(params=["bubblewrap", "docker"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> SandboxBackend:
    return open_or_skip(request.param, tmp_path)


def test_many_sandboxes_leave_nothing_behind(backend: SandboxBackend) -> None:
    at_once, in_sequence = (20, 50) if backend.name == "bubblewrap" else (6, 10)
    report = check_scale(backend, at_once, in_sequence, MEMORY_SLACK)
    assert report.left == {}
    if backend.name == "bubblewrap":
        # While they are open the count sees them.
        assert report.opened.processes >= report.before.processes + at_once
    else:
        assert len(report.opened.containers - report.before.containers) == at_once


def test_an_open_sandbox_is_reported_as_left_behind(backend: SandboxBackend, tmp_path: Path) -> None:
    spec = SandboxSpec(environment="")
    with backend.open(spec):  # makes the things that are made once for all sandboxes
        pass
    before = look(backend.name, tmp_path)
    with backend.open(spec):
        (tmp_path / "forgotten").touch()
        left = left_over(before, look(backend.name, tmp_path), MEMORY_SLACK)
    assert left.pop("temporary") == "1 more"
    assert {"descriptors", "processes" if backend.name == "bubblewrap" else "containers"} <= set(left)


def test_a_dead_child_that_nobody_waits_for_is_left_behind(tmp_path: Path) -> None:
    before = look("bubblewrap", tmp_path)
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()
        child.stdout.close()
        assert left_over(before, look("bubblewrap", tmp_path), MEMORY_SLACK) == {"processes": "1 more"}
    assert left_over(before, look("bubblewrap", tmp_path), MEMORY_SLACK) == {}


def test_memory_counts_as_left_behind_only_beyond_the_slack(tmp_path: Path) -> None:
    before = look("bubblewrap", tmp_path)
    grown = replace(
        before, resident_bytes=before.resident_bytes + MEMORY_SLACK, mounts=before.mounts | {"/new"}
    )
    assert left_over(before, grown, MEMORY_SLACK) == {"mounts": "1 more, such as /new"}
    assert left_over(before, grown, MEMORY_SLACK - (1 << 20))["memory"] == "16 MiB more"
