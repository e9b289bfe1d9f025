"""A bubblewrap that is killed while it is tried: it is tried once more, and the message says how it ended."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machine import open_or_skip
from selfplay.errors import PrerequisiteError, SandboxInterrupted
from selfplay.sandbox import bubblewrap_sandbox
from selfplay.sandbox.base import Limits
from selfplay.sandbox.bubblewrap_host import (
    find_programs,
    loader_cache,
    run_whole,
    users_have_namespaces,
)
from selfplay.sandbox.bubblewrap_process import Launch, OpenedBubblewrap, Spawner
from selfplay.sandbox.bubblewrap_sandbox import BubblewrapBackend

ALL_OPTIONS = "echo --size --perms --as-pid-1 --ro-bind-data --info-fd; exit 0"

Bwrap = Callable[..., Path]


@pytest.fixture
def bwrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bwrap]:
    """Puts a bwrap on PATH that does this with --help and otherwise that."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(on_help: str, otherwise: str = "exit 9") -> Path:
        program = folder / "bwrap"
        program.write_text(f'#!/bin/bash\nif [ "$1" = --help ]; then {on_help}; fi\n{otherwise}\n')
        program.chmod(0o755)
        return program

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for cached in (find_programs, loader_cache, users_have_namespaces):
        cached.cache_clear()
    yield put
    for cached in (find_programs, loader_cache, users_have_namespaces):
        cached.cache_clear()


def only_first(folder: Path, action: str) -> str:
    """Shell text that does `action` in the first call alone."""
    return f"if mkdir {folder / 'called'} 2>/dev/null; then {action}; fi"


def test_a_bwrap_that_is_killed_is_not_called_too_old(bwrap: Bwrap) -> None:
    program = bwrap("kill -9 $$")
    with pytest.raises(PrerequisiteError, match=f"`{program} --help` was killed by SIGKILL, twice"):
        find_programs()


def test_a_bwrap_that_fails_says_how(bwrap: Bwrap) -> None:
    bwrap("echo no such library >&2; exit 3")
    with pytest.raises(PrerequisiteError, match="--help` ended with exit code 3 no such library, twice"):
        find_programs()


def test_a_bwrap_that_cannot_be_run_says_why(bwrap: Bwrap) -> None:
    bwrap("").write_bytes(b"\x7fELF no program")
    with pytest.raises(PrerequisiteError, match="--help` cannot be run .*Exec format error"):
        find_programs()


def test_a_bwrap_that_is_killed_once_is_asked_again(bwrap: Bwrap, tmp_path: Path) -> None:
    program = bwrap(f"{only_first(tmp_path, 'kill -9 $$')}; {ALL_OPTIONS}")
    assert find_programs()["bwrap"] == str(program)


def test_a_bwrap_without_the_options_is_too_old(bwrap: Bwrap) -> None:
    bwrap("echo --size --perms; exit 0")
    with pytest.raises(PrerequisiteError, match="too old, it lacks --as-pid-1, --ro-bind-data, --info-fd"):
        find_programs()


@pytest.mark.parametrize("has_loader_cache", [True, False])
def test_namespaces_are_not_blamed_for_a_sandbox_that_is_killed(
    bwrap: Bwrap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_loader_cache: bool
) -> None:
    bwrap(ALL_OPTIONS, "kill -9 $$")
    if has_loader_cache:  # else it is made in a sandbox, which is killed too
        monkeypatch.setattr(bubblewrap_sandbox, "loader_cache", lambda *_: b"")
    with pytest.raises(PrerequisiteError, match="cannot make a sandbox here: .*(SIGKILL|-9)") as caught:
        BubblewrapBackend(tmp_path / "cache").check()
    assert "what ends it here" in str(caught.value) and "namespaces" not in str(caught.value)


@pytest.mark.sandbox
def test_a_sandbox_that_is_killed_once_is_tried_again(bwrap: Bwrap, tmp_path: Path) -> None:
    open_or_skip("bubblewrap", tmp_path / "cache")
    real = shutil.which("bwrap")
    bwrap(ALL_OPTIONS, f'{only_first(tmp_path, "kill -9 $$")}; exec {real} "$@"')
    for cached in (find_programs, loader_cache, users_have_namespaces):
        cached.cache_clear()
    BubblewrapBackend(tmp_path / "cache").check()
    assert (tmp_path / "called").is_dir()


def test_a_bwrap_killed_at_its_start_leaves_no_child_that_waits_for_it(tmp_path: Path) -> None:
    """Between its fork and its first message bubblewrap's child waits for it, and has no other parent."""
    child = tmp_path / "child"
    info_read, info_write = os.pipe()
    os.set_inheritable(info_write, True)
    program = ["bash", "-c", f"sleep 1000 & echo $! > {child}; kill -9 $$"]
    opened = OpenedBubblewrap(Spawner().start(Launch(program, os.environ, [info_write], {}, None)), None)
    os.close(info_write)
    try:
        with pytest.raises(SandboxInterrupted, match="killed by SIGKILL at its start"):
            opened.begin(info_read, Limits())
    finally:
        opened.close()
        os.close(info_read)
    wait_until_gone(int(child.read_text()))


def test_a_killed_probe_leaves_no_child_that_waits_for_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    program = ["bash", "-c", f"sleep 1000 & echo $! > {child}; kill -9 $$"]
    with (tmp_path / "output").open("wb") as output:
        assert run_whole(program, output) == -signal.SIGKILL
        assert run_whole(["bash", "-c", "exit 7"], output) == 7
    wait_until_gone(int(child.read_text()))


def wait_until_gone(pid: int) -> None:
    """Wait until the kernel has ended the process: it was killed. A process that sleeps on never ends."""
    command = Path(f"/proc/{pid}/cmdline")
    while command.exists() and command.read_bytes():
        time.sleep(0.01)
