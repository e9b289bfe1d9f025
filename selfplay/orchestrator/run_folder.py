"""The run folder: made once, found again, and brought back to its last committed update. Knows nothing of playing or training.

Invariant: what the database committed is the truth; a checkpoint or partial file that it does not name is removed at the next start.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from selfplay.agent.episode import Episode
from selfplay.config import Config, load_config
from selfplay.curriculum.rows import UpdateRow
from selfplay.errors import RunError


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def repositories_file(self) -> Path:
        return self.path / "repositories.txt"

    @property
    def given_bugs_file(self) -> Path:
        """The task records of `train.bugs`, as they were when the run began; absent without any."""
        return self.path / "given-bugs.jsonl"

    @property
    def database(self) -> Path:
        return self.path / "selfplay.db"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def episodes(self) -> Path:
        return self.path / "episodes"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def evaluation_tasks(self) -> Path:
        """What this run evaluates on: its own copy, so that a resumed run meets the same bugs."""
        return self.evaluations / "tasks.jsonl"

    def checkpoint(self, update: int) -> Path:
        return self.checkpoints / f"update-{update:05d}"

    def episode(self, episode_id: str) -> Episode | None:
        """An episode that was finished and written before a kill, None when there is none (or only a torn one)."""
        path = self.episodes / f"{episode_id}.json.gz"
        if not path.is_file():
            return None
        try:
            return Episode.read(path)
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            path.unlink()
            return None

    def config(self) -> Config:
        return load_config(self.config_file)

    def write_config(self, config: Config) -> None:
        """Whole or not at all: without it the run could not be resumed."""
        _write_whole(self.config_file, config.resolved())

    def mend_metrics(self, committed: Sequence[UpdateRow], is_evaluated: Callable[[int], bool]) -> None:
        """Let metrics.jsonl hold what the database committed, each update and evaluation once.

        A kill can leave the last row torn, an update without its row, and an evaluation's row though it is played again.
        """
        lines = (
            self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            if self.metrics.is_file()
            else []
        )
        missing = {update.update: f"{update.metrics_json}\n" for update in committed}
        kept: list[str] = []
        for line in lines:
            try:
                row = json.loads(line) if line.endswith("\n") else None
            except ValueError:
                row = None
            if row is None or ("evaluation" in row and not is_evaluated(row["evaluation"])):
                continue
            if "update" not in row or missing.pop(row["update"], ""):
                kept.append(line)
        kept += missing.values()
        if kept != lines:
            _write_whole(self.metrics, "".join(kept))

    def newest_checkpoint(self) -> Path | None:
        """Of the weights that are published next or were published last: an update is saved before."""
        return max(
            (folder for folder in self.checkpoints.glob("*") if folder.is_dir() and not folder.suffix),
            default=None,
        )

    def discard_uncommitted(self, committed_checkpoint: str, keep: int = 1) -> None:
        """Remove partial files and all checkpoints but the committed one and the `keep` - 1 before it."""
        for partial in (*self.path.glob("*.partial"), *self.episodes.glob("*.partial")):
            partial.unlink()
        self.discard_checkpoints(committed_checkpoint, keep)

    def discard_checkpoints(self, committed_checkpoint: str, keep: int = 1) -> None:
        """All but the committed one and the `keep` - 1 before it. Episodes may be written meanwhile."""
        folders = sorted(folder for folder in self.checkpoints.glob("*") if folder.is_dir())
        kept = {
            folder
            for folder in folders
            if re.fullmatch(r"update-\d+", folder.name) and folder.name <= committed_checkpoint
        }
        kept = set(sorted(kept)[-keep:]) if committed_checkpoint else set()
        for folder in folders:
            if folder not in kept:
                shutil.rmtree(folder)


def create_run(
    config: Config, repositories: str, now: datetime, given_bugs: str = ""
) -> tuple[RunFolder, Config]:
    """A new run folder that holds the resolved configuration, the repository list and the records of the bugs that it is given.

    Raises RunError when the name is taken or the folder cannot be written.
    """
    root = Path(config.run.folder)
    name = config.run.name or _free_name(root, now.strftime("%Y%m%d-%H%M%S"))
    folder = RunFolder(root / name)
    if folder.path.exists():
        raise RunError(
            f"the run {name!r} exists at {folder.path}. Continue it with --resume {name}, or choose another run.name."
        )
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Renamed as a whole: a start that is killed leaves no folder that could neither be started nor resumed.
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".partial", dir=root) as place:
            made = RunFolder(Path(place) / name)
            for inner in (made.episodes, made.checkpoints, made.path / "logs"):
                inner.mkdir(parents=True)
            made.repositories_file.write_text(repositories, encoding="utf-8")
            if given_bugs:
                made.given_bugs_file.write_text(given_bugs, encoding="utf-8")
            made.write_config(config)
            made.path.rename(folder.path)
    except OSError as error:
        raise RunError(
            f"cannot write the run folder {folder.path}: {error}. Free space there, or set run.folder."
        ) from error
    return folder, config


def _write_whole(path: Path, text: str) -> None:
    """Through a partial file that is synced and renamed: a kill leaves the old text or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _free_name(root: Path, stem: str) -> str:
    name, number = stem, 1
    while (root / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def open_run(name: str, root: Path) -> RunFolder:
    """An existing run, by name below `root`, by path, or "" for the newest. Raises RunError naming what there is."""
    runs = sorted(found.parent for found in root.glob("*/config.json"))
    runs.sort(key=lambda run: (run / "config.json").stat().st_mtime)
    if not name:
        if not runs:
            raise RunError(f"there are no runs in {root}. Start one with: selfplay train --repos list.txt")
        return RunFolder(runs[-1])
    for candidate in (root / name, Path(name)):
        if (candidate / "config.json").is_file():
            return RunFolder(candidate)
    there = ", ".join(run.name for run in runs[-8:]) or "none"
    raise RunError(f"no run named {name!r} in {root} (there are: {there}).")
