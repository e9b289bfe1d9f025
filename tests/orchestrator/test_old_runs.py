"""A run folder that version 0.1 wrote, before modules and settings were renamed, is shown, replayed and
continued.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from machine import open_or_skip
from selfplay.config import RENAMED_SETTINGS, load_config
from selfplay.curriculum.store import Store
from selfplay.orchestrator.run_folder import RunFolder
from tiny_policy import build_tiny_policy
from tiny_repository import build_tiny_repository

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT / "tests" / "recordings" / "run-before-the-rooms.tar.gz"
WRITTEN_IN = "/tmp/oldrun"  # where the run, its repository and its policy were


@pytest.fixture
def old(tmp_path: Path) -> RunFolder:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    run = RunFolder(tmp_path / "runs" / "old")
    for file in (run.config_file, run.repositories_file):
        file.write_text(file.read_text().replace(WRITTEN_IN, str(tmp_path)))
    return run


def selfplay(run: RunFolder, *arguments: str) -> str:
    command = [sys.executable, "-m", "selfplay.cli", *arguments, "--runs", str(run.path.parent)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=run.path.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_its_settings_have_their_names_of_today(old: RunFolder):
    written = json.loads(old.config_file.read_text())
    assert written["train"]["even"] is True and written["trainer"]["anchor_weight"] == 0.1
    config = load_config(old.config_file)
    assert config.train.fill_idle_slots and config.trainer.kl_coef == 0.1
    assert config.agent.max_format_errors == 4 and config.agent.resamples == 1
    assert config.injector.help == ("tests", "target") and config.sandbox.prewarmed == 1
    assert config.trainer.credit == "kept_edits" and config.train.max_opening == 3
    assert all(key.partition(".")[2] in written[key.partition(".")[0]] for key in RENAMED_SETTINGS)


def test_its_bugs_and_episodes_are_shown(old: RunFolder):
    bugs = json.loads(selfplay(old, "inspect-bugs", "old", "--json"))
    assert [bug["bug_id"] for bug in bugs] and all(bug["repository"] == "tiny" for bug in bugs)
    assert "tiny" in selfplay(old, "inspect-bugs", "old")
    assert "solver" in selfplay(old, "replay", "u0002-sol1-m3", "--run", "old")


@pytest.mark.sandbox
@pytest.mark.slow
def test_it_continues_where_it_was(old: RunFolder, tmp_path: Path):
    open_or_skip("bubblewrap", tmp_path / "cache")
    build_tiny_repository(tmp_path / "tiny", git=True)
    build_tiny_policy(tmp_path / "policy")
    with Store.open(old.database, writer=False) as store:
        before = [(row.episode_id, row.reward, row.advantage) for row in store.episodes()]
    selfplay(old, "train", "--resume", "old", "--set", "train.updates=3")
    with Store.open(old.database, writer=False) as store:
        assert store.last_update() == 3
        after = [(row.episode_id, row.reward, row.advantage) for row in store.episodes()]
    assert after[: len(before)] == before and len(after) > len(before)
    written = json.loads(old.config_file.read_text())
    assert written["train"]["fill_idle_slots"] is True and "even" not in written["train"]
    last = json.loads(old.metrics.read_text().splitlines()[-1])
    assert last["update"] == 3 and last["kl"] > 0
