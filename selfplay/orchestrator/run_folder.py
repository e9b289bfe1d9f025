"""The run folder: creating it, finding it, and bringing it back to its last committed update.

It neither plays nor trains. Invariant: the database decides what is committed. The next start removes partial
files, and checkpoints that no committed update names.
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

from selfplay.config import Config, load_config
from selfplay.curriculum.rows import UpdateRow
from selfplay.errors import RunError, UsageError
from selfplay.evaluation.tasks import Task, write_tasks
from selfplay.verdicts.randomness import Secret


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def repositories_file(self) -> Path:
        return self.path / "repositories.txt"

    @property
    def given_bugs_file(self) -> Path:
        """A copy of `train.bugs`, made when the run began. Missing if the setting is empty."""
        return self.path / "given-bugs.jsonl"

    def secret(self) -> Secret:
        """The secret from which judging draws. A run of an earlier version gets one. Raises RunError."""
        return Secret.of_folder(self.path)

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
        """The tasks that this run evaluates on. A copy, so that a run that resumes has the same ones."""
        return self.evaluations / "tasks.jsonl"

    def checkpoint(self, update: int) -> Path:
        return self.checkpoints / f"update-{update:05d}"

    def config(self) -> Config:
        return load_config(self.config_file)

    def write_config(self, config: Config) -> None:
        """Write it whole or not at all: a run cannot resume without it."""
        _write_whole(self.config_file, config.resolved())

    def repair_metrics(self, committed: Sequence[UpdateRow], is_evaluated: Callable[[int], bool]) -> None:
        """Make metrics.jsonl hold each committed update and each finished evaluation once.

        A kill can tear the last row, lose the row of an update, or leave the row of an evaluation that the
        run plays again.
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
        """The checkpoint of the newest weights. Weights are saved before they are published."""
        return max(
            (folder for folder in self.checkpoints.glob("*") if folder.is_dir() and not folder.suffix),
            default=None,
        )

    def discard_uncommitted(self, committed_checkpoint: str, keep: int = 1) -> None:
        """Remove partial files, and checkpoints as `discard_checkpoints` does, those half written too."""
        for partial in (*self.path.glob("*.partial"), *self.path.glob("*/*.partial")):
            if partial.is_file():
                partial.unlink()
        self.discard_checkpoints(committed_checkpoint, keep)

    def discard_checkpoints(self, committed_checkpoint: str, keep: int = 1) -> None:
        """Remove all but the committed one and the `keep` - 1 before it.

        Episodes may be written meanwhile.
        """
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
    config: Config,
    repositories: str,
    now: datetime,
    given_bugs: str = "",
    evaluation_tasks: Sequence[Task] = (),
    secret: Secret | None = None,
) -> tuple[RunFolder, Config]:
    """Create a run folder. Returns it with the configuration that it holds.

    repositories: text of the repository list. given_bugs: text of the file `train.bugs`.
    evaluation_tasks: the tasks that `evaluation.tasks` names. secret: of judging; None for a new one.
    Raises RunError if the name is taken or the folder cannot be written, UsageError if `run.folder` is none.
    """
    root = Path(config.run.folder)
    if root.exists() and not root.is_dir():
        raise UsageError(f"run.folder = {config.run.folder!r} is no folder. Let it name one that holds runs.")
    name = config.run.name or _free_name(root, now.strftime("%Y%m%d-%H%M%S"))
    folder = RunFolder(root / name)
    if folder.path.exists():
        raise RunError(
            f"the run {name!r} exists at {folder.path}. Continue it with --resume {name}, "
            "or choose another run.name."
        )
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Renamed as a whole: a killed start leaves no folder that can neither be started nor resumed.
        with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".partial", dir=root) as partial:
            made = RunFolder(Path(partial) / name)
            for inner in (made.episodes, made.checkpoints, made.path / "logs"):
                inner.mkdir(parents=True)
            made.repositories_file.write_text(repositories, encoding="utf-8")
            if given_bugs:
                made.given_bugs_file.write_text(given_bugs, encoding="utf-8")
            if evaluation_tasks:
                write_tasks(evaluation_tasks, made.evaluation_tasks)
            (secret or Secret.new()).write(made.path)
            made.write_config(config)
            made.path.rename(folder.path)
    except OSError as error:
        raise RunError(
            f"cannot write the run folder {folder.path}: {error}. "
            "Make room or give write access there, or set run.folder."
        ) from error
    return folder, config


def _write_whole(path: Path, text: str) -> None:
    """Write a partial file, sync and rename it: a kill leaves the old text or the new one."""
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


def found_runs(root: Path) -> list[RunFolder]:
    """The runs in a folder, the one whose settings were written last at the end.

    Raises UsageError if `root` is no folder.
    """
    if root.exists() and not root.is_dir():
        raise UsageError(
            f"--runs {root} is no folder. Give the folder that holds the runs, for instance runs."
        )
    runs = sorted(found.parent for found in root.glob("*/config.json") if _is_run(found.parent))
    return [RunFolder(run) for run in sorted(runs, key=lambda run: (run / "config.json").stat().st_mtime)]


def _is_run(folder: Path) -> bool:
    """A policy, as a warm start writes it below runs/, has a config.json too, and a tokenizer beside it."""
    return (folder / "config.json").is_file() and not (folder / "tokenizer_config.json").exists()


def open_run(name: str, root: Path) -> RunFolder:
    """Find a run by its name below `root` or by its path; "" finds the newest.

    Raises RunError that names the runs there are, and UsageError if `root` is no folder.
    """
    runs = found_runs(root)
    if not name:
        if not runs:
            raise RunError(f"there are no runs in {root}. Start one with: selfplay train --repos list.txt")
        return runs[-1]
    for candidate in (root / name, Path(name)):
        if _is_run(candidate):
            return RunFolder(candidate)
    there = ", ".join(run.path.name for run in runs[-8:]) or "none"
    raise RunError(f"no run named {name!r} in {root} (there are: {there}).")
