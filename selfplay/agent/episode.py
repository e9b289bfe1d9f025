"""One played episode as a value, and its JSON form.

The file holds what happened. What is decided later (reward, advantage) is in the database.

Invariant: `token_ids`, `loss_mask` and `logprobs` have one length, and only action tokens have mask 1.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Role(StrEnum):
    INJECTOR = "injector"
    SOLVER = "solver"


class FinishReason(StrEnum):
    SUBMITTED = "submitted"
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    BAD_FORMAT = "bad_format"
    STUCK = "stuck"
    COMMAND_TIMEOUTS = "command_timeouts"
    SANDBOX_LOST = "sandbox_lost"
    ENV_ERROR = "env_error"  # the machine's fault: masked and retried, never scored


@dataclass(frozen=True)
class Turn:
    """One action of the policy and what came back.

    text         the assistant's text as decoded
    tool         the tool that ran, "" when the format was bad
    observation  what the policy was shown next, "" after the last turn
    tokens       (first, one past last) index of the action in the episode's token_ids
    exit_code    of a bash command, None otherwise
    rejected     how many draws in its place were thrown away (`agent.resamples`)
    """

    text: str
    tool: str
    observation: str
    tokens: tuple[int, int]
    exit_code: int | None = None
    generate_s: float = 0.0
    act_s: float = 0.0
    is_error: bool = False
    rejected: int = 0


@dataclass(frozen=True)
class Episode:
    """weight_versions: (first token index, version) spans over token_ids.

    submission: injector: file name -> text. solver: "patch", and "restored" if there are paths whose change
    does not count, one on each line.
    """

    episode_id: str
    role: Role
    repository: str
    update: int
    group: str
    member: int
    seed: int
    finish: FinishReason
    messages: tuple[Mapping[str, str], ...]
    turns: tuple[Turn, ...]
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    weight_versions: tuple[tuple[int, int], ...] = ()
    strategy: str = ""
    target: str = ""
    bug_id: str = ""
    prompt_hash: str = ""
    submission: Mapping[str, str] = field(default_factory=dict)
    started_at: float = 0.0
    duration_s: float = 0.0
    error: str = ""

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.loss_mask) == len(self.logprobs):
            raise ValueError(f"episode {self.episode_id}: token_ids, loss_mask and logprobs differ in length")

    @property
    def action_tokens(self) -> int:
        return sum(self.loss_mask)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Episode:
        values = dict(data)
        values["role"] = Role(values["role"])
        values["finish"] = FinishReason(values["finish"])
        values["messages"] = tuple(values["messages"])
        values["turns"] = tuple(Turn(**{**turn, "tokens": tuple(turn["tokens"])}) for turn in values["turns"])
        for name in ("token_ids", "loss_mask", "logprobs"):
            values[name] = tuple(values[name])
        values["weight_versions"] = tuple((int(a), int(b)) for a, b in values["weight_versions"])
        return cls(**values)

    def write(self, folder: Path) -> Path:
        """Write `<episode_id>.json.gz` once, atomically: a killed process leaves the whole file or none."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.episode_id}.json.gz"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with gzip.open(partial, "wt", encoding="utf-8", compresslevel=5) as file:
            json.dump(self.to_json(), file)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.rename(path)
        return path

    @classmethod
    def read(cls, path: Path) -> Episode:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return cls.from_json(json.load(file))
