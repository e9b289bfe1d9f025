"""The attempts to play mutations, as a folder keeps them, and the training texts of kept episodes.

Plays nothing and writes nothing; `executed` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from selfplay.agent.episode import Episode, Role
from selfplay.teacher.conversations import STILL_FAILING
from selfplay.warm_start.documents import ACTION_WEIGHT, SHOWN_WEIGHT, Document
from selfplay.warm_start.settings import ExecuteSettings

ATTEMPTS = "attempts.jsonl"
NOT_PLAYED = ("unnoticed", "not led to")


@dataclass(frozen=True)
class Attempt:
    """One mutation and its outcome: a row of attempts.jsonl.

    outcome: "unnoticed" if no test fails, so it was not played (but for one in UNNOTICED_PLAYED).
        "not led to" if only repairs were wanted and no failing test leads to the mutation; not played.
        If played: "validated", "too long" for a training row, "duplicate", or the check that rejected it.
    digest: of the tree that the solver starts from. "" without a validated bug.
    injector: id of the kept injector episode, or "".
    solvers: ids of the kept solver episodes.
    repairs: for each solver episode "repaired", "too long" or the reason why grading rejected it.
    """

    number: int
    repository: str
    target: str
    operator: str
    outcome: str
    seconds: float
    digest: str = ""
    injector: str = ""
    solvers: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collection:
    """The attempts that a folder holds, by number. Their episodes are files beside attempts.jsonl."""

    folder: Path
    attempts: tuple[Attempt, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Collection:
        """Read attempts.jsonl; an absent file has no attempts. Leaves out a line that a kill cut short."""
        path = folder / ATTEMPTS
        lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
        attempts = {}
        for line in lines:
            try:
                row = json.loads(line)
                attempt = Attempt(**row | {name: tuple(row[name]) for name in ("solvers", "repairs")})
            except (ValueError, TypeError, KeyError):
                continue  # a killed call left a part of a line, and a later call wrote behind it
            attempts[attempt.number] = attempt
        return cls(folder, tuple(attempts[number] for number in sorted(attempts)))

    @property
    def injectors(self) -> list[str]:
        """Ids of kept injector episodes."""
        return [attempt.injector for attempt in self.attempts if attempt.injector]

    @property
    def solvers(self) -> list[str]:
        """Ids of kept solver episodes."""
        return [name for attempt in self.attempts for name in attempt.solvers]

    @property
    def seconds(self) -> float:
        """Sum over all attempts."""
        return sum(attempt.seconds for attempt in self.attempts)

    def is_complete(self, settings: ExecuteSettings) -> bool:
        return (
            len(self.injectors) >= settings.injector_episodes
            and len(self.solvers) >= settings.solver_episodes
        )

    def documents(self, role: Role) -> list[Document]:
        """Training texts of the role's kept episodes."""
        names = self.injectors if role is Role.INJECTOR else self.solvers
        return [training_text(Episode.read(self.folder / f"{name}.json.gz")) for name in names]

    def table(self) -> list[str]:
        """Markdown rows, one for each repository and one for all.

        Columns: functions with a kept injector episode, mutations not played, injector episodes played,
        injector episodes kept, solver episodes played, solver episodes kept.
        """
        rows = []
        for repository in [*dict.fromkeys(sorted(a.repository for a in self.attempts)), "all"]:
            some = [a for a in self.attempts if repository in (a.repository, "all")]
            played = [a for a in some if a.outcome not in NOT_PLAYED]
            cells = [
                len({a.target for a in some if a.injector}),
                len(some) - len(played),
                len(played),
                sum(bool(a.injector) for a in some),
                sum(len(a.repairs) for a in some),
                sum(len(a.solvers) for a in some),
            ]
            rows.append(f"| {repository} | {' | '.join(map(str, cells))} |")
        return rows


def training_text(episode: Episode) -> Document:
    """The episode with loss weights: ACTION_WEIGHT for replies, SHOWN_WEIGHT for prompts and observations.

    A reply that caused an error has weight 0, and so has an edit that was undone because tests failed.
    """
    weights = [ACTION_WEIGHT if is_action else SHOWN_WEIGHT for is_action in episode.loss_mask]
    undone = [bool(STILL_FAILING.search(after.observation)) for after in episode.turns[1:]]
    for turn, is_undone in zip(episode.turns, [*undone, False], strict=True):
        if turn.is_error or (is_undone and turn.tool == "edit"):
            weights[turn.tokens[0] : turn.tokens[1]] = [0.0] * (turn.tokens[1] - turn.tokens[0])
    return Document(list(episode.token_ids), weights)
