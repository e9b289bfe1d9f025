"""A prewarmed sandbox is like any other, whatever happened to it before it was handed out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from machine import open_or_skip, sandbox_groups
from selfplay.sandbox.base import Sandbox, SandboxSpec
from selfplay.sandbox.client import ConnectedSandbox
from selfplay.sandbox.prewarmed import PrewarmedSandboxes

pytestmark = pytest.mark.sandbox

SPEC = SandboxSpec(environment="", variables={"NAME": "first"})
OTHER = SandboxSpec(environment="", variables={"NAME": "second"})


@pytest.fixture
def ready(tmp_path: Path) -> Iterator[PrewarmedSandboxes]:
    made = PrewarmedSandboxes(open_or_skip("bubblewrap", tmp_path), 2)
    yield made
    made.close()


def server_of(box: Sandbox) -> int:
    return int(cast(ConnectedSandbox, box).details["server_pid"])


def waiting_server(ready: PrewarmedSandboxes) -> int:
    ready.settle()
    ((box, _),) = next(iter(ready._waiting.values()))
    return server_of(box)


def test_a_prewarmed_sandbox_has_the_requested_spec_and_was_not_used(ready: PrewarmedSandboxes) -> None:
    seen = set()
    for spec, name in (
        (SPEC, "first"),
        (OTHER, "second"),
        (SPEC, "first"),
        (OTHER, "second"),
        (SPEC, "first"),
    ):
        with ready.open(spec) as box:
            assert box.run("echo $NAME; ls; pwd").text == f"{name}\n/testbed\n"
            box.run("touch used; cd /tmp")
            seen.add(server_of(box))
        ready.settle()
    assert len(seen) == 5
    assert ready.waiting == 2


def test_a_spec_that_was_requested_before_gets_a_prewarmed_sandbox(
    ready: PrewarmedSandboxes,
) -> None:
    with ready.open(SPEC):
        ahead = waiting_server(ready)
    with ready.open(SPEC) as box:
        assert server_of(box) == ahead


def test_a_prewarmed_sandbox_that_died_is_not_handed_out(ready: PrewarmedSandboxes) -> None:
    with ready.open(SPEC):
        os.kill(waiting_server(ready), signal.SIGKILL)
    with ready.open(SPEC) as box:
        assert box.run("echo alive").text == "alive\n"


def test_sandboxes_of_the_least_recently_requested_spec_are_closed_first(ready: PrewarmedSandboxes) -> None:
    for spec in (SPEC, OTHER, SandboxSpec(environment="", variables={"NAME": "third"})):
        with ready.open(spec):
            ready.settle()
    assert [len(waiting) for waiting in ready._waiting.values()] == [0, 1, 1]


def test_closing_leaves_nothing_behind(ready: PrewarmedSandboxes) -> None:
    before = sandbox_groups()
    with ready.open(SPEC):
        ready.settle()
    assert ready.waiting == 1
    ready.close()
    assert sandbox_groups() == before
    with ready.open(SPEC) as box:  # a late caller gets one, and no further one is ordered
        assert box.run("true").exit_code == 0
    assert (ready.waiting, sandbox_groups()) == (0, before)
