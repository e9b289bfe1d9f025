"""The folder of an evaluation: whose it is, which tasks it holds, and the attempts that are finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from selfplay.config import Config
from selfplay.errors import RunError, UsageError
from selfplay.evaluation.tasks import Task

Mode = Literal["sampled", "greedy"]
MODES: tuple[Mode, ...] = ("sampled", "greedy")
DIGESTED = (".safetensors", ".bin", ".json", ".jinja")  # of a policy's folder: what decides its words


@dataclass(frozen=True)
class AttemptResult:
    instance_id: str
    repo: str
    attempt: int
    passed: bool | None  # None: the machine failed
    reason: str
    finish: str
    turns: int
    tokens: int
    mode: Mode = "sampled"
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, Mode, int]:
        return self.instance_id, self.mode, self.attempt


# ---- the folder


@dataclass(frozen=True)
class TaskEntry:
    """What a folder knows of a task: whether another folder's task of this id is the same, and where it belongs in a table."""

    digest: str
    set: str = ""
    part: str = ""
    repository: str = ""


@dataclass(frozen=True)
class Identity:
    """What the attempts of one folder have in common. policy: whatever names its weights. settings: dotted key -> value."""

    policy: Mapping[str, Any]
    settings: Mapping[str, Any]
    tasks: Mapping[str, TaskEntry]

    @property
    def settings_digest(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {
            "policy": dict(self.policy),
            "settings_digest": self.settings_digest,
            "settings": dict(self.settings),
            "tasks": {name: asdict(entry) for name, entry in self.tasks.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Identity:
        return cls(
            data["policy"],
            data["settings"],
            {name: TaskEntry(**entry) for name, entry in data["tasks"].items()},
        )


def identity_of(config: Config, policy: Mapping[str, Any], tasks: Iterable[Task]) -> Identity:
    """The settings that an attempt can depend on; how many run at a time is none of them."""
    whole = config.model_dump(mode="json")
    settings = {
        f"{name}.{key}": value
        for name in ("agent", "validator", "sandbox")
        for key, value in whole[name].items()
    }
    del (
        settings["sandbox.type"],
        settings["sandbox.prewarmed"],
    )  # where and how early sandboxes open changes no result
    del settings["agent.resamples"]  # training's alone
    settings |= {
        "seed": config.seed,
        "solver.help": whole["solver"]["given"],
        "engine.type": config.engine.type,
    }
    if "suspects" in config.solver.help:
        settings["solver.max_suspects"] = config.solver.max_suspects
    entries = {
        task.instance_id: TaskEntry(task.digest, task.set, task.part, task.repository) for task in tasks
    }
    return Identity(policy, settings, entries)


def policy_identity(model: str, path: str) -> dict[str, Any]:
    """The policy as `policy.model` names it, and the digest of its files where it is a folder."""
    folder = Path(path)
    if not folder.is_dir():
        return {"model": model}
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.suffix in DIGESTED):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return {"model": model, "digest": digest.hexdigest()[:16]}


@dataclass(frozen=True)
class Folder:
    """`evaluation.json` (whose attempts), `results.jsonl` (one a line, as they finish), `episodes/`."""

    path: Path

    @property
    def identity_file(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def results_file(self) -> Path:
        return self.path / "results.jsonl"

    @property
    def episodes(self) -> Path:
        return self.path / "episodes"

    def identity(self) -> Identity | None:
        """None where there is none: a new folder, or one of an earlier version. Raises RunError when it cannot be read."""
        if not self.identity_file.is_file():
            return None
        try:
            return Identity.from_json(json.loads(self.identity_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.identity_file} cannot be read as an evaluation: {error!r}. Use another --output."
            ) from error

    def results(self) -> list[AttemptResult]:
        """What is finished, each attempt once; a line that a kill cut short is left out."""
        if not self.results_file.is_file():
            return []
        found: dict[tuple[str, Mode, int], AttemptResult] = {}
        for line in self.results_file.read_text(encoding="utf-8").splitlines():
            try:
                result = AttemptResult(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found[result.key] = result
        return list(found.values())

    def check(self, identity: Identity) -> None:
        """Raises UsageError when the folder belongs to another evaluation. Changes nothing."""
        known = self.identity()
        if known is None and self.results():
            raise UsageError(
                f"{self.path} holds results without an evaluation.json, so whose they are is not known. "
                "They are untouched; give another --output."
            )
        if known is not None and (problem := _mismatch(known, identity)):
            raise UsageError(
                f"{self.path} holds another evaluation: {problem}. Its results are untouched; give another --output."
            )

    def begin(self, identity: Identity) -> None:
        """Make the folder, or continue it. Raises as `check` does."""
        self.check(identity)
        if not self.identity_file.is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            partial = self.identity_file.with_suffix(".partial")
            partial.write_text(json.dumps(identity.to_json(), indent=1) + "\n", encoding="utf-8")
            partial.rename(self.identity_file)
        if self.results_file.is_file():
            self._mend()

    def _mend(self) -> None:
        """End a last line that a kill cut short, so that the next one stands alone."""
        with self.results_file.open("rb+") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.write(b"\n")


def _mismatch(there: Identity, here: Identity) -> str:
    """What differs, in words; "" for nothing."""
    if dict(there.policy) != dict(here.policy):
        return f"of the policy {_policy_text(there.policy)}, not {_policy_text(here.policy)}"
    if differing := settings_difference(there, here):
        return f"with {differing}"
    ours, theirs = {n: e.digest for n, e in here.tasks.items()}, {n: e.digest for n, e in there.tasks.items()}
    if ours != theirs:
        changed = sum(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())
        return f"of other tasks ({len(theirs)} there, {len(ours)} now, {len(ours.keys() & theirs.keys()) - changed} of them the same)"
    return ""


def settings_difference(there: Identity, here: Identity) -> str:
    """`agent.max_turns = 10 there, 12 here`; "" for none."""
    keys = sorted(
        key for key in {*there.settings, *here.settings} if there.settings.get(key) != here.settings.get(key)
    )
    return ", ".join(
        f"{key} = {there.settings.get(key)!r} there and {here.settings.get(key)!r} here" for key in keys
    )


def _policy_text(policy: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in policy.items())


def entries_of(folder: Folder) -> dict[str, TaskEntry]:
    """What the folder's evaluation.json says of its tasks; for an older folder, what its results say."""
    identity = folder.identity()
    if identity is not None:
        return dict(identity.tasks)
    return {result.instance_id: TaskEntry("", repository=result.repo) for result in folder.results()}
