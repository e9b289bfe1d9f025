"""Histories of any size in the workspace, and repositories that have none."""

from __future__ import annotations

import io
import os
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bare_environment import an_environment
from machine import open_or_skip
from selfplay.agent.workspaces import take_history
from selfplay.commands import dry_run
from selfplay.config import Config, build_config
from selfplay.errors import RunError
from selfplay.orchestrator.histories import check_histories, strategies_for
from selfplay.repositories import history as histories
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.git import init_bare, run_git
from selfplay.repositories.history import History, history_of
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, SandboxSpec
from selfplay.sandbox.workspace import fill_workspace

MIB = 1 << 20
LIMITS = Limits(workspace_bytes=2 * MIB, file_bytes=2 * MIB, memory_bytes=256 * MIB)
WEIGHTS = {"removal": 1.0, "history": 1.0}


def project(folder: Path, blobs: int, blob_bytes: int) -> Path:
    """A git repository with a large file that was removed again, in so many versions."""
    init_bare(folder)
    stream = io.BytesIO()
    for number in range(blobs):
        stream.write(
            f"commit refs/heads/main\ncommitter a <a@b> {number + 1} +0000\ndata 1\n{number}\n".encode()
        )
        stream.write(b"M 100644 inline large\ndata %d\n" % blob_bytes + os.urandom(blob_bytes) + b"\n")
    stream.write(b"commit refs/heads/main\ncommitter a <a@b> 999 +0000\ndata 4\nlast\nD large\n")
    stream.write(b"M 100644 inline a.py\ndata 2\nx\n\ndone\n")
    run_git(folder, "fast-import", "--quiet", "--done", stdin=stream.getvalue())
    return folder


def packed(checkout: Checkout) -> History:
    found = history_of(checkout)
    assert found is not None
    return found


@pytest.mark.sandbox
@pytest.mark.parametrize("kind", ["bubblewrap", "docker"])
def test_a_history_larger_than_the_workspace_is_put_into_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_or_skip(kind, tmp_path)
    monkeypatch.setattr(histories, "PACK_BYTES", MIB)
    checkout = fetch(parse_spec(str(project(tmp_path / "project", 6, MIB))), tmp_path / "cache")
    history = packed(checkout)
    assert history.size > 6 * MIB
    assert len([name for name, _ in history.packs() if name.endswith(".pack")]) >= 6
    with backend.open(SandboxSpec("", history.added_to(LIMITS))) as box:
        fill_workspace(box, checkout.tree)
        take_history(box, history)
        seen = box.run(
            "git log --format=%s | tr '\n' ' '; git status --porcelain; git fsck 2>&1 | grep -v dangling"
        )
        assert seen.text == "last 5 4 3 2 1 0 "
        assert box.run("git show HEAD~1:large | wc -c").text.strip() == str(MIB)


def test_one_pack_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "PACK_BYTES", MIB)
    checkout = fetch(parse_spec(str(project(tmp_path / "project", 5, MIB // 2))), tmp_path / "cache")
    tracemalloc.start()
    try:
        history = packed(checkout)
        for _, content in history.packs():
            del content
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB < history.size
    finally:
        tracemalloc.stop()


@pytest.mark.sandbox
def test_a_history_that_was_cut_off_is_a_history(tmp_path: Path) -> None:
    backend = open_or_skip("bubblewrap", tmp_path)
    whole = project(tmp_path / "project", 3, 10)
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--bare", "--depth=2", f"file://{whole}", str(shallow)], check=True)
    checkout = fetch(parse_spec(str(shallow)), tmp_path / "cache")
    history = packed(checkout)
    with backend.open(SandboxSpec("", history.added_to(LIMITS))) as box:
        fill_workspace(box, checkout.tree)
        take_history(box, history)
        assert box.run("git log --format=%s").text.split() == ["last", "2"]


# ---- repositories with one commit


def with_commits(count: int) -> Environment:
    environment = an_environment("true")
    return replace(environment, checkout=replace(environment.checkout, commits=count))


def config_with(strategies: dict[str, float]) -> Config:
    return build_config({"injector": {"strategies": strategies}})


def test_a_repository_with_one_commit_is_left_out_of_the_strategy_by_name() -> None:
    environments, said = {"lonely": with_commits(1)}, list[str]()
    check_histories(config_with(WEIGHTS), environments, said.append)
    assert said == ["lonely has one commit, and the strategy history needs more: left out of that strategy."]
    assert list(environments) == ["lonely"]
    assert strategies_for(WEIGHTS, has_commits=False) == {"removal": 1.0}
    assert strategies_for(WEIGHTS, has_commits=True) == WEIGHTS


def test_it_is_left_out_of_the_game_if_there_is_no_other_strategy() -> None:
    only = config_with({"history": 1.0, "removal": 0.0})
    environments, said = {"lonely": with_commits(1)}, list[str]()
    with pytest.raises(RunError, match="no repository has more than one"):
        check_histories(only, environments, said.append)
    assert said == ["lonely has one commit, and the strategy history needs more: left out of the game."]


def test_the_dry_run_names_repositories_that_have_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path / "grown", 2, 10)
    (tmp_path / "plain").mkdir()
    (tmp_path / "list.txt").write_text(
        "./grown\n./plain\npypi:toolz==1.0.0\npypi:toolz==0.9.0..1.0.0\nhttps://host/owner/name\n"
    )
    out = io.StringIO()
    monkeypatch.setattr(dry_run, "Console", lambda: Console(file=out, width=200))
    dry_run.dry_run_training(tmp_path / "list.txt", Path("quickstart"), ["injector.strategies={history=1.0}"])
    lines = [line for line in out.getvalue().splitlines() if "one commit" in line]
    assert [line.split()[0] for line in lines] == ["plain", "toolz-1.0.0"]
