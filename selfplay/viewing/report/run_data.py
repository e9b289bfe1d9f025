"""All that a report says of one run, read once: rows of its database, metrics, evaluations."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from selfplay.curriculum.rows import AttemptRow, BugRow, EpisodeRow, GroupRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.evaluation.folder import AttemptResult, Folder, Mode, TaskEntry, entries_of
from selfplay.evaluation.rates import rates_by_bug
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.viewing.changes import place_text
from selfplay.viewing.duplicates import repeated_bugs
from selfplay.viewing.report.rates import Rate, rate_of
from selfplay.viewing.runs import flat_settings
from selfplay.viewing.summary import evaluation_folders


@dataclass(frozen=True)
class Evaluation:
    """The attempts of one evaluation of the run. update: the last one before it."""

    update: int
    results: Sequence[AttemptResult]
    entries: Mapping[str, TaskEntry]

    def rates(self) -> dict[str, Rate]:
        """Set -> repair rate: of sampled attempts, or of greedy ones if none was sampled."""
        mode: Mode = "sampled" if any(result.mode == "sampled" for result in self.results) else "greedy"
        by_set: dict[str, list[float]] = defaultdict(list)
        for name, outcomes in rates_by_bug(self.results, mode).items():
            entry = self.entries.get(name)
            by_set[(entry.set if entry else "") or "tasks"].append(sum(outcomes) / len(outcomes))
        return {name: rate_of(rates) for name, rates in sorted(by_set.items())}


@dataclass(frozen=True)
class RunData:
    """One run. updates: the metrics of each committed update. settings: dotted name -> value.

    duplicates: episode id -> the bug that its artifact repeats.
    """

    name: str
    path: Path
    updates: Sequence[Mapping[str, Any]]
    bugs: Sequence[BugRow]
    groups: Sequence[GroupRow]
    episodes: Sequence[EpisodeRow]
    verdicts: Sequence[VerdictRow]
    attempts: Sequence[AttemptRow]
    duplicates: Mapping[str, str]
    evaluations: Sequence[Evaluation]
    machine_failures: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def episode_by_id(self) -> dict[str, EpisodeRow]:
        return {row.episode_id: row for row in self.episodes}

    @cached_property
    def bug_by_id(self) -> dict[str, BugRow]:
        return {bug.bug_id: bug for bug in self.bugs}

    def metric(self, name: str) -> list[tuple[int, float]]:
        """(update, value) of each update that has the metric as a number."""
        return [
            (row["update"], float(row[name]))
            for row in self.updates
            if isinstance(row.get(name), int | float) and not isinstance(row[name], bool)
        ]

    def update_of(self, episode_id: str) -> int:
        row = self.episode_by_id.get(episode_id)
        return row.update if row else 0

    def evaluation_folder(self, update: int) -> Folder:
        return Folder(self.path / "evaluations" / f"u{update:04d}")

    def function_of(self, bug: BugRow) -> str:
        return f"{bug.repository}: {place_text(bug.target, bug.artifact.get('bug_inject.diff', ''))}"


def read_run(folder: RunFolder) -> RunData:
    """Read the run, also while it plays. Raises StoreError or ConfigError if it cannot be read."""
    settings = flat_settings(folder.config().model_dump(mode="json"))
    with closing(Store.open(folder.database, writer=False)) as store:
        return RunData(
            name=folder.path.name,
            path=folder.path,
            updates=[json.loads(row.metrics_json) for row in store.updates() if row.committed_at is not None],
            bugs=store.bugs(),
            groups=store.groups(),
            episodes=store.episodes(),
            verdicts=store.verdicts(),
            attempts=store.attempts(),
            duplicates=repeated_bugs(store),
            evaluations=[
                Evaluation(update, results, entries_of(found))
                for update, found in evaluation_folders(folder.path)
                if (results := found.results())
            ],
            machine_failures=len(store.failures()),
            settings=settings,
        )
