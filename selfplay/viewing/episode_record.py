"""One recorded episode with all that was decided about it: as a value and as JSON.

`episode_search` finds it, `replay` shows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.agent.episode import Episode
from selfplay.curriculum.rows import AttemptRow, BugRow, EpisodeRow, VerdictRow
from selfplay.evaluation.folder import AttemptResult
from selfplay.source.diffs import reverse_patch

if TYPE_CHECKING:
    from selfplay.evaluation.tasks import Task


@dataclass(frozen=True)
class KnownBug:
    """The bug that a solver was given, or that an injector's artifact made or repeats.

    inject         the diff that breaks the code
    attempt_patch  for order two the failed repair on top of it, else ""
    repair         the diff that repairs the state that a solver starts in
    """

    bug_id: str
    order: int
    inject: str
    attempt_patch: str
    repair: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]

    @classmethod
    def of_row(cls, row: BugRow) -> KnownBug:
        return cls(
            row.bug_id,
            row.order,
            row.artifact["bug_inject.diff"],
            row.attempt_patch,
            row.task_record()["patch"],
            row.fail_to_pass,
            row.pass_to_pass,
        )

    @classmethod
    def of_task(cls, task: Task) -> KnownBug:
        """Raises PatchError if a record without an artifact has a patch that cannot be reversed."""
        return cls(
            task.instance_id,
            task.order,
            task.artifact.get("bug_inject.diff") or reverse_patch(task.patch),
            task.attempt_patch,
            task.patch,
            task.fail_to_pass,
            task.pass_to_pass,
        )


@dataclass(frozen=True)
class Member:
    """An episode beside the others of its group. `name`: its number, or "greedy" in an evaluation.

    result: what its verdict or grade says, in a word or two.
    """

    name: str
    finish: str
    result: str
    reward: float | None = None
    advantage: float | None = None
    masked: bool = False
    is_shown: bool = False


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode with its rows: None where the run's database has none, or there is no database.

    repeats: the bug that its artifact repeats, "" if it is no duplicate.
    result: the recorded attempt of an evaluation, None for an episode of training.
    bug: see KnownBug. None if there is none, or if its record was not kept.
    members: the group of the episode, with the episode itself.
    grown: the second-order bug that this failed repair became, "" if it became none.
    """

    episode: Episode
    path: Path
    row: EpisodeRow | None = None
    verdict: VerdictRow | None = None
    attempt: AttemptRow | None = None
    repeats: str = ""
    result: AttemptResult | None = None
    bug: KnownBug | None = None
    members: tuple[Member, ...] = ()
    grown: str = ""

    def to_json(self) -> dict[str, Any]:
        """The episode as in its file, and what was decided about it. A key is null if nothing is recorded.

        reward, advantage, consumed_update, masked, note
                 of its row in the database; consumed_update is the update that trained on it
        verdict  injector: accepted, failed_check, reason, duration_s, test_runs, cached_runs, checks (name,
                 passed, reason, evidence, duration_s), fail_to_pass, pass_to_pass, repeats (the bug that a
                 duplicate repeats, or "")
        grade    solver: passed, reason, failed_tests, confirmed (true, false, or null without a second
                 grading), confirmation (what the second grading found), restored, patch, duration_s; in an
                 evaluation the line of its results
        bug      the fields of KnownBug
        """
        row = {name: getattr(self.row, name, None) for name in ROW_KEYS}
        grade = attempt_json(self.attempt) if self.attempt else self.result and asdict(self.result)
        return {
            **self.episode.to_json(),
            **row,
            "verdict": self.verdict and {**_verdict_json(self.verdict), "repeats": self.repeats},
            "grade": grade,
            "bug": self.bug and asdict(self.bug),
        }


ROW_KEYS = ("reward", "advantage", "consumed_update", "masked", "note")


def recorded_verdict(row: VerdictRow) -> Mapping[str, Any]:
    """The JSON form of a verdict. Older versions kept only the list of its checks."""
    recorded = json.loads(row.checks_json)
    return recorded if isinstance(recorded, dict) else {"checks": recorded}


def _verdict_json(row: VerdictRow) -> dict[str, Any]:
    columns = {item.name: getattr(row, item.name) for item in fields(row)}
    del columns["checks_json"], columns["episode_id"]
    recorded = recorded_verdict(row)
    return columns | {name: recorded.get(name) for name in ("checks", "fail_to_pass", "pass_to_pass")}


def attempt_json(row: AttemptRow) -> dict[str, Any]:
    """The row with `confirmed` as true, false, or null without a second grading, and what that one found."""
    return {**asdict(row), "confirmed": row.confirmed.as_bool, "confirmation": row.confirmed.value}


# ---- in words


def graded(passed: bool | None) -> str:
    return {True: "repaired", False: "not repaired", None: "not graded"}[passed]


def judged(verdict: VerdictRow | None, repeats: str) -> str:
    """The verdict in a word or two: what a group's table has room for."""
    if verdict is None:
        return "not judged"
    if verdict.accepted:
        return "duplicate" if repeats else "accepted"
    return "no artifact" if verdict.failed_check.startswith("not_submitted/") else verdict.failed_check
