"""What every export format gets, and what it gives back. A format is a function of a `RunExport` and a path.

It writes the path, a file or a folder that does not exist yet. `parts` holds the names of the formats.
Invariant: file names come from ids of selfplay, never from a policy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from selfplay.agent.episode import Episode
from selfplay.config import Config
from selfplay.curriculum.rows import AttemptRow, BugRow, EpisodeRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.repositories.specs import RepositorySpec, absolute_line, parse_spec


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode with its rows. bug: what a solver was given, or what an injector's artifact became."""

    episode: Episode
    row: EpisodeRow
    verdict: VerdictRow | None = None
    attempt: AttemptRow | None = None
    bug: BugRow | None = None


@dataclass(frozen=True)
class RunExport:
    """A run that is exported. left_out: reason -> number, of what a format cannot hold; formats add to it."""

    folder: RunFolder
    config: Config
    store: Store
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def model(self) -> str:
        return self.config.policy.model

    def bugs(self) -> list[BugRow]:
        """The bugs, without void ones, which pass without a repair, and those of unknown repositories."""
        found = []
        for bug in self.store.bugs():
            if bug.status == "void":
                self.left_out["bugs are void: they pass without a repair"] += 1
            elif bug.repository not in self.specs:
                self.left_out["bugs are of repositories that the run's list does not name"] += 1
            else:
                found.append(bug)
        return found

    def episodes(self, role: str | None = None) -> Iterator[PlayedEpisode]:
        """The recorded episodes with their files, in the order of update, group and member."""
        verdicts = {verdict.episode_id: verdict for verdict in self.store.verdicts()}
        attempts = {attempt.episode_id: attempt for attempt in self.store.attempts()}
        bugs = {bug.bug_id: bug for bug in self.store.bugs()}
        injected = {bug.injector_episode_id: bug for bug in bugs.values() if bug.order == 1}
        for row in self.store.episodes(role=role):
            path = self.folder.path / row.path
            try:
                episode = Episode.read(path)
            except (OSError, EOFError, ValueError, KeyError, TypeError):
                self.left_out["episodes have no file that can be read"] += 1
                continue
            name = row.episode_id
            bug = bugs.get(row.bug_id) or injected.get(name)
            yield PlayedEpisode(episode, row, verdicts.get(name), attempts.get(name), bug)

    @cached_property
    def specs(self) -> Mapping[str, RepositorySpec]:
        """Repository -> its line in the run's list."""
        lines = self.folder.repositories_file.read_text(encoding="utf-8").splitlines()
        specs = [parse_spec(line) for line in lines if line.strip()]
        return {spec.name: spec for spec in specs}

    def line_of(self, bug: BugRow) -> str:
        """The line of the bug's repository, as it is read in any folder."""
        return absolute_line(self.specs[bug.repository])


class ExportFormat(Protocol):
    def __call__(self, run: RunExport, path: Path) -> int:
        """Write `path` and return the number of bugs or episodes in it."""
        ...


def clean(text: str) -> str:
    """The text without lone surrogates, which stand for bytes that are no UTF-8: other tools refuse them."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


def instance_id(bug: BugRow) -> str:
    """The id of a bug's task, as in its records."""
    return str(bug.task_record()["instance_id"])


def write_lines(records: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write one JSON object a line. Returns their number."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
            count += 1
    return count
