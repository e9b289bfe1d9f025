"""The rows of the curriculum as values, and their form in SQLite. schema.py has the tables.

Invariant: `read(Row, stored(row)) == row`. The database keeps tuples and mappings as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from selfplay.source.diffs import reverse_patch
from selfplay.verdicts.confirmation import Confirmation

if TYPE_CHECKING:
    from selfplay.verdicts.bug import BugState

Row = TypeVar("Row")

GROUP_STATUSES = ("open", "complete", "consumed", "void")
BUG_STATUSES = ("fresh", "playing", "measured", "void", "spec_too_long")
# What lists of bugs can be sorted by -> the columns in SQL.
BUG_ORDERS = {
    "created": ("created_update", "bugs.rowid"),
    "repository": ("repository", "created_update", "bugs.rowid"),
    "strategy": ("strategy", "created_update", "bugs.rowid"),
    "order": ('"order"', "created_update", "bugs.rowid"),
    "status": ("status", "created_update", "bugs.rowid"),
    "solve_rate": ("solve_rate IS NULL", "solve_rate", "created_update", "bugs.rowid"),
}


@dataclass(frozen=True)
class EnvironmentRow:
    """How the preparation of a repository ended. log: the end of the build log, where it failed."""

    name: str
    base_commit: str
    environment_key: str
    licence: str
    tests: int
    excluded: tuple[str, ...]
    status: str  # ready | failed
    reason: str = ""
    log: str = ""


@dataclass(frozen=True)
class GroupRow:
    """`size` episodes of one role at one task. Advantages compare their rewards.

    target_json: of an injector group, the JSON of its target, or of the list of its targets; "" without one.
    """

    group_id: str
    update: int
    role: str
    repository: str
    strategy: str
    target_json: str
    bug_id: str  # "" for injectors
    size: int
    thresholds_json: str = ""
    status: str = "open"

    @property
    def targets(self) -> tuple[str, ...]:
        """The JSON of each target. Members take them in turn."""
        if not self.target_json.startswith("["):
            return (self.target_json,) if self.target_json else ()
        return tuple(json.dumps(target, sort_keys=True) for target in json.loads(self.target_json))

    def target_of(self, member: int) -> str:
        """The JSON of one member's target; "" without one."""
        return self.targets[member % len(self.targets)] if self.targets else ""


@dataclass(frozen=True)
class EpisodeRow:
    """An episode as it ended. Later steps add the reward, the advantage and the update that trained on it."""

    episode_id: str
    group_id: str
    member: int
    update: int
    role: str
    repository: str
    strategy: str
    bug_id: str
    finish: str
    path: str  # of the episode's file, relative to the run folder
    turns: int
    action_tokens: int
    total_tokens: int
    weight_version_min: int
    failed_turns: int = 0  # turns whose call failed, or that held no call
    started_at: float = 0.0
    duration_s: float = 0.0
    reward: float | None = None
    advantage: float | None = None
    consumed_update: int | None = None
    masked: bool = False
    note: str = ""


@dataclass(frozen=True)
class VerdictRow:
    """A validator's verdict on the artifact of an injector's episode.

    checks_json: the JSON form of the verdict, or of the list of its checks.
    """

    episode_id: str
    accepted: bool
    failed_check: str
    reason: str
    checks_json: str
    duration_s: float
    test_runs: int
    cached_runs: int


@dataclass(frozen=True)
class BugRow:
    """An accepted bug.

    solve_rate, attempts, passes: of the latest measurement.
    first_solve_rate: of the first measurement. It decides the injector's reward, which replays must not
        change.
    tree_digest: what artifacts of one bug have in common (`bug_digest`); no two bugs of a run share it. Bugs
        of older versions have the digest of their tree.
    plays: number of groups that played the bug.
    """

    bug_id: str
    repository: str
    environment_key: str
    base_commit: str
    order: int
    parent_bug_id: str | None
    parent_episode_id: str | None
    injector_episode_id: str
    strategy: str
    target: str
    artifact: Mapping[str, str]
    attempt_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    failure: str
    tree_digest: str
    status: str = "fresh"
    solve_rate: float | None = None
    attempts: int = 0
    passes: int = 0
    created_update: int = 0
    created_at: float = 0.0
    first_solve_rate: float | None = None
    plays: int = field(default=0, metadata={"derived": True})

    def state(self) -> BugState:
        """The part of the bug that the validator and the grading read."""
        from selfplay.verdicts.artifact import Artifact
        from selfplay.verdicts.bug import BugState

        return BugState(
            Artifact.from_files(self.artifact),
            self.order,
            self.attempt_patch,
            self.fail_to_pass,
            self.pass_to_pass,
        )

    def task_record(self) -> dict[str, Any]:
        """The bug as a SWE-bench shaped record.

        `patch` repairs the bug. `test_patch` is the specification that a solver sees. Both apply to the state
        that a solver starts in. `base_commit` is the original, before the bug.
        """
        repair = reverse_patch(self.attempt_patch) if self.attempt_patch else ""
        return {
            "instance_id": f"{self.repository}__{self.bug_id}",
            "repo": self.repository,
            "base_commit": self.base_commit,
            "image_name": self.environment_key,
            "patch": repair + reverse_patch(self.artifact["bug_inject.diff"]),
            "test_patch": reverse_patch(self.artifact["test_weaken.diff"]),
            "problem_statement": "",
            "FAIL_TO_PASS": list(self.fail_to_pass),
            "PASS_TO_PASS": list(self.pass_to_pass),
            "created_at": self.created_at,
            "strategy": self.strategy,
            "solve_rate": self.solve_rate,
        }


@dataclass(frozen=True)
class AttemptRow:
    """A solver's graded repair.

    passed: None if the machine failed.
    confirmed: what the second grading says.
    restored: paths whose change did not count.
    """

    episode_id: str
    bug_id: str
    passed: bool | None
    reason: str
    failed_tests: tuple[str, ...]
    confirmed: Confirmation
    restored: tuple[str, ...]
    patch: str
    duration_s: float


@dataclass(frozen=True)
class UpdateRow:
    """An optimiser step. Until it is committed, `checkpoint` is "" and the metrics are its seconds so far."""

    update: int
    checkpoint: str
    weight_version: int
    carried_gradient: bool
    metrics_json: str
    begun_at: float
    committed_at: float | None


@dataclass(frozen=True)
class FailureRow:
    """A failure of the machine, never of the policy."""

    update: int
    phase: str
    message: str
    at: float


# Fields where "" means no reference. The database keeps NULL instead, which satisfies a foreign key.
REFERENCES = ("bug_id", "injector_episode_id")
CONFIRMATION_VALUES = {
    Confirmation.NOT_NEEDED: None,
    Confirmation.CONFIRMED: 1,
    Confirmation.NOT_CONFIRMED: 0,
    Confirmation.UNDISGUISED: 2,
    Confirmation.FORGED: 3,
    Confirmation.NOT_REPEATED: 4,
}


def stored(row: Any) -> dict[str, Any]:
    """The row's columns with the values that SQLite keeps."""
    values: dict[str, Any] = {}
    for item in fields(row):
        if item.metadata.get("derived"):
            continue
        value = getattr(row, item.name)
        if isinstance(value, tuple):
            value = json.dumps(list(value))
        elif isinstance(value, Mapping):
            value = json.dumps(dict(value))
        elif isinstance(value, Confirmation):
            value = CONFIRMATION_VALUES[value]
        elif item.name in REFERENCES and value == "":
            value = None
        values[item.name] = plain(value)
    return values


def plain(value: Any) -> Any:
    """The value in a type that SQLite accepts.

    Text with lone surrogates becomes bytes: UTF-8 cannot hold them.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return value


def text_of(value: Any) -> Any:
    """The value that `plain` stored."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def read(kind: type[Row], values: Mapping[str, Any]) -> Row:
    """The row whose columns `stored` wrote."""
    hints = _hints(kind)
    read_values: dict[str, Any] = {}
    for item in fields(kind):  # type: ignore[arg-type]
        value, hint = values[item.name], hints[item.name]
        value = text_of(value)
        if get_origin(hint) is tuple:
            value = tuple(json.loads(value))
        elif get_origin(hint) is Mapping:
            value = json.loads(value)
        elif hint is Confirmation:
            value = _confirmation(value)
        elif value is not None and (hint is bool or bool in get_args(hint)):
            value = bool(value)
        elif value is None and hint is str:
            value = ""
        read_values[item.name] = value
    return kind(**read_values)


def _confirmation(value: int | None) -> Confirmation:
    return next(found for found, stored_value in CONFIRMATION_VALUES.items() if stored_value == value)


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]
