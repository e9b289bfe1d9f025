"""The folder of an evaluation: its policy, settings and tasks, and the finished attempts.

Playing attempts is left to `evaluator`. Invariant: a folder holds attempts of one policy, under one set of
settings, at one set of tasks. Otherwise its repair rate would have no meaning.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfplay.errors import RunError, UsageError
from selfplay.verdicts.randomness import Secret

if TYPE_CHECKING:
    from selfplay.config import Config
    from selfplay.evaluation.tasks import Task

Mode = Literal["sampled", "greedy"]
MODES: tuple[Mode, ...] = ("sampled", "greedy")
DIGESTED = (".safetensors", ".bin", ".json", ".jinja")  # files of a policy that decide its output


@dataclass(frozen=True)
class AttemptResult:
    """The result of one attempt at a task. `passed` is None if the machine failed."""

    instance_id: str
    repo: str
    attempt: int
    passed: bool | None
    reason: str
    finish: str
    turns: int
    tokens: int
    mode: Mode = "sampled"
    seconds: float = 0.0  # of the episode
    patch: str | None = None  # what was graded; None in results of earlier versions
    timed_out: int = 0  # commands that met their time limit

    def to_line(self) -> str:
        """The result as a line of results.jsonl."""
        return json.dumps(asdict(self)) + "\n"

    @property
    def key(self) -> tuple[str, Mode, int]:
        return self.instance_id, self.mode, self.attempt


# ---- identity


@dataclass(frozen=True)
class TaskEntry:
    """A task as a folder knows it. `set`, `part` and `repository` say where it belongs in a table.

    digest: equal digests mean that tasks of one id in two folders are the same bug. "" if it is not known.
    """

    digest: str
    set: str = ""
    part: str = ""
    repository: str = ""


@dataclass(frozen=True)
class Identity:
    """What all attempts of a folder have in common.

    policy    values that identify the weights
    settings  dotted key -> value
    """

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
        """Read an identity. Settings of an earlier version get their names of today."""
        from selfplay.config import RENAMED_SETTINGS

        renamed = {**RENAMED_SETTINGS, "agent.temperature": "evaluation.temperature"}
        return cls(
            data["policy"],
            {renamed.get(name, name): value for name, value in data["settings"].items()},
            {name: TaskEntry(**entry) for name, entry in data["tasks"].items()},
        )


def identity_of(config: Config, policy: Mapping[str, Any], tasks: Iterable[Task]) -> Identity:
    """The identity of an evaluation, with the settings that can change an attempt.

    How many attempts run at a time is none of them.
    """
    whole = config.model_dump(mode="json")
    settings = {
        f"{name}.{key}": value
        for name in ("agent", "validator", "sandbox")
        for key, value in whole[name].items()
    }
    # The type of the sandboxes and how early they open change no result. Only training resamples.
    # Training's temperature is none of an evaluation's.
    for name in ("sandbox.type", "sandbox.prewarmed", "agent.resamples", "agent.temperature"):
        del settings[name]
    # Folders of version 0.1 do not name these two. Without them the standard tools were used.
    for name in ("tools", "tool_format"):
        if getattr(config.agent, name) == type(config.agent).model_fields[name].default:
            del settings[f"agent.{name}"]
    # Folders of earlier versions do not name it.
    if config.policy.template_args:
        settings["policy.template_args"] = dict(config.policy.template_args)
    settings |= {
        "seed": config.seed,
        "evaluation.temperature": config.evaluation.temperature,
        "solver.help": whole["solver"]["help"],
        "engine.type": config.engine.type,
    }
    if config.evaluation.top_p < 1:  # earlier folders do not name it
        settings["evaluation.top_p"] = config.evaluation.top_p
    if "suspects" in config.solver.help:
        settings["solver.max_suspects"] = config.solver.max_suspects
    entries = {
        task.instance_id: TaskEntry(task.digest, task.set, task.part, task.repository) for task in tasks
    }
    return Identity(policy, settings, entries)


def policy_identity(model: str, path: str) -> dict[str, Any]:
    """The name of the policy (`policy.model`), and a digest of its files if it is a folder."""
    folder = Path(path)
    if not folder.is_dir():
        return {"model": model}
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.suffix in DIGESTED):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return {"model": model, "digest": digest.hexdigest()[:16]}


def settings_difference(there: Identity, here: Identity) -> str:
    """The settings that differ: `agent.max_turns = 10 there and 12 here`; "" if none does."""
    keys = sorted(
        key for key in {*there.settings, *here.settings} if there.settings.get(key) != here.settings.get(key)
    )
    return ", ".join(
        f"{key} = {there.settings.get(key)!r} there and {here.settings.get(key)!r} here" for key in keys
    )


def _mismatch(there: Identity, here: Identity) -> str:
    """How two identities differ, in words for the user; "" if they do not."""
    if dict(there.policy) != dict(here.policy):
        return f"of the policy {_policy_text(there.policy)}, not {_policy_text(here.policy)}"
    if differing := settings_difference(there, here):
        return f"with {differing}"
    ours = {name: entry.digest for name, entry in here.tasks.items()}
    theirs = {name: entry.digest for name, entry in there.tasks.items()}
    if ours != theirs:
        same = sum(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())
        return f"of other tasks ({len(theirs)} there, {len(ours)} now, {same} of them the same)"
    return ""


def _policy_text(policy: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in policy.items())


# ---- the folder


@dataclass(frozen=True)
class Folder:
    """A folder on disk.

    It holds `evaluation.json` (the identity), `results.jsonl` (a line per finished attempt), `left_out.json`,
    `preds.json` (the patches) and `episodes/`.
    """

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
        """The identity, None for a new folder. Folders of early versions have none either.

        Raises RunError if it cannot be read.
        """
        if not self.identity_file.is_file():
            return None
        try:
            return Identity.from_json(json.loads(self.identity_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.identity_file} cannot be read as an evaluation: {error!r}. Use another --output."
            ) from error

    @property
    def left_out_file(self) -> Path:
        return self.path / "left_out.json"

    def write_left_out(self, left_out: Mapping[str, str], not_counted: Mapping[str, Sequence[str]]) -> None:
        """Keep the reasons of tasks that are not played, and the tests that grades leave out, by task."""
        self.path.mkdir(parents=True, exist_ok=True)
        found = {
            "left_out": dict(left_out),
            "not_counted": {name: list(ids) for name, ids in not_counted.items()},
        }
        partial = self.left_out_file.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        partial.rename(self.left_out_file)

    def left_out(self) -> tuple[dict[str, str], dict[str, list[str]]]:
        """What `write_left_out` kept. Empty for a folder of an earlier version and for a damaged file."""
        try:
            found = json.loads(self.left_out_file.read_text(encoding="utf-8"))
            return dict(found["left_out"]), dict(found["not_counted"])
        except (OSError, ValueError, LookupError, TypeError):
            return {}, {}

    def write_predictions(self, results: Iterable[AttemptResult], model: str) -> None:
        """Write the patches as SWE-bench reads them: preds.json has the first sampled attempt at each task.

        Other attempts are in preds-1.json and so on, and in preds-greedy.json. Without a sampled attempt,
        preds.json has the greedy one. Results of earlier versions have no patch and give none.
        """
        judged = [result for result in results if result.passed is not None and result.patch is not None]
        first = "0" if any(result.mode == "sampled" for result in judged) else "greedy"
        files: dict[str, dict[str, dict[str, str]]] = {}
        for result in judged:
            name = "greedy" if result.mode == "greedy" else str(result.attempt)
            files.setdefault("preds.json" if name == first else f"preds-{name}.json", {})[
                result.instance_id
            ] = {
                "instance_id": result.instance_id,
                "model_name_or_path": model,
                "model_patch": result.patch or "",
            }
        for name, predictions in files.items():
            partial = self.path / f"{name}.partial"
            partial.write_text(json.dumps(predictions, indent=1) + "\n", encoding="utf-8")
            partial.rename(self.path / name)

    def results(self) -> list[AttemptResult]:
        """The finished attempts, each once. A line that a kill cut short is left out."""
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

    def secret(self) -> Secret:
        """The secret from which grading draws, made with the folder. Raises RunError."""
        self.path.mkdir(parents=True, exist_ok=True)
        return Secret.of_folder(self.path)

    def check(self, identity: Identity) -> None:
        """Raises UsageError if the folder belongs to another evaluation, is none or cannot be written.

        Changes nothing.
        """
        there = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            problem = "cannot be written" if there.is_dir() else "is no folder"
            raise UsageError(f"{there} {problem}. It is untouched; give another --output.")
        known = self.identity()
        if known is None and self.results():
            raise UsageError(
                f"{self.path} holds results without an evaluation.json, so their policy is not known. "
                "They are untouched; give another --output."
            )
        if known is not None and (problem := _mismatch(known, identity)):
            raise UsageError(
                f"{self.path} holds another evaluation: {problem}. "
                "Its results are untouched; give another --output."
            )

    def begin(self, identity: Identity) -> None:
        """Create the folder, or continue it: what a kill left half-written goes. Raises as `check` does."""
        self.check(identity)
        for partial in self.episodes.glob("*.partial"):
            partial.unlink()
        if not self.identity_file.is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            partial = self.identity_file.with_suffix(".partial")
            partial.write_text(json.dumps(identity.to_json(), indent=1) + "\n", encoding="utf-8")
            partial.rename(self.identity_file)
        if self.results_file.is_file():
            self._end_last_line()

    def _end_last_line(self) -> None:
        """End the last line if a kill cut it short, so that the next result gets a line of its own."""
        with self.results_file.open("rb+") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.write(b"\n")


def entries_of(folder: Folder) -> dict[str, TaskEntry]:
    """The tasks of a folder, from its identity or, for a folder of an early version, from its results."""
    identity = folder.identity()
    if identity is not None:
        return dict(identity.tasks)
    return {result.instance_id: TaskEntry("", repository=result.repo) for result in folder.results()}
