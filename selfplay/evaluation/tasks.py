"""Tasks: bugs to repair, from records of the field, of selfplay, or from the frozen sets in the package.

Formats of files are left to `reading`, shapes of records to `records`, playing to `evaluator`. Invariant: a
limit selects tasks by their ids and never by their order, so that two evaluations get the same bugs.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from selfplay.errors import UsageError, listed_faults
from selfplay.evaluation.reading import HOW_TO_WRITE, is_source, read_texts
from selfplay.evaluation.records import Setup, as_task_record
from selfplay.repositories.specs import absolute_line, parse_spec
from selfplay.runtime.resources import resource
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState

if TYPE_CHECKING:
    from selfplay.curriculum.rows import BugRow
    from selfplay.curriculum.store import Store
    from selfplay.repositories.environment import Environment

REQUIRED = ("instance_id", "repo", "patch", "test_patch", "FAIL_TO_PASS", "PASS_TO_PASS")


@dataclass(frozen=True)
class Task:
    """One bug to repair. `repo` is a line of a repository list.

    A record of selfplay holds the artifact that made the bug. A record without one has the SWE-bench meaning:
    `repo` is the buggy state, `patch` repairs it, `test_patch` adds the tests. A solver is told the `issue`;
    if it is "", the tests.
    """

    instance_id: str
    repo: str
    patch: str
    test_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    artifact: Mapping[str, str]
    attempt_patch: str = ""
    failure: str = ""
    order: int = 1
    set: str = ""  # the frozen set or file that holds it
    part: str = ""  # a part of that set
    issue: str = ""
    setup: Setup = field(default_factory=Setup)

    @property
    def repository(self) -> str:
        """The name of the project, the same for all its revisions."""
        location = parse_spec(self.repo).location.partition("#")[0]
        return PurePosixPath(location).name.removesuffix(".git") or location

    @property
    def digest(self) -> str:
        """A digest of the bug and its tests. The names of set and part do not matter."""
        record = task_record(replace(self, set="", part=""))
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


# ---- reading and writing


def parse_task(record: Mapping[str, Any]) -> Task:
    """Read a record. Raises ValueError, which names the missing key or the value of a wrong type."""
    if not isinstance(record, Mapping):
        raise ValueError("is not an object")
    record = as_task_record(record)
    if missing := [key for key in REQUIRED if key not in record]:
        raise ValueError(f"lacks {', '.join(missing)}")
    extra = record.get("selfplay") or {}
    if not isinstance(extra, Mapping):
        raise ValueError("selfplay is not an object")
    artifact = extra.get("artifact") or {}
    if not isinstance(artifact, Mapping) or not all(
        isinstance(part, str) for item in artifact.items() for part in item
    ):
        raise ValueError("selfplay.artifact is not an object of file name to text")
    order = extra.get("order") or 1
    if not isinstance(order, int):
        raise ValueError("selfplay.order is not a whole number")
    return Task(
        instance_id=_text(record, "instance_id"),
        repo=_text(record, "repo"),
        patch=_text(record, "patch"),
        test_patch=_text(record, "test_patch"),
        fail_to_pass=_test_ids(record, "FAIL_TO_PASS"),
        pass_to_pass=_test_ids(record, "PASS_TO_PASS"),
        artifact=dict(artifact),
        attempt_patch=_text(extra, "attempt_patch", ""),
        failure=_text(extra, "failure", ""),
        order=int(order),
        set=_text(extra, "set", ""),
        part=_text(extra, "part", ""),
        issue=_text(record, "problem_statement", "").strip(),
        setup=Setup.from_json(extra.get("setup") or {}),
    )


def _text(record: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """The text under `key`. If it is missing or null, the default, if there is one. Raises ValueError."""
    value = record.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a text")
    return value


def _test_ids(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Test ids from a list or from the JSON text of a list. Raises ValueError, which names the field."""
    value = record[key]
    problem = f"{key} is {ascii(value)[:60]}, neither a list of test ids nor the JSON of one"
    if isinstance(value, str):
        try:
            value = _json(value)
        except ValueError as error:
            raise ValueError(problem) from error
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(problem)
    return tuple(value)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def task_record(task: Task) -> dict[str, Any]:
    """The record of a task: `parse_task(task_record(task)) == task`.

    What is empty and newer than the first evaluations stays out, so that their digests stay the same.
    """
    newer = {"problem_statement": task.issue} if task.issue else {}
    setup = {"setup": task.setup.to_json()} if task.setup != Setup() else {}
    return {
        **newer,
        "instance_id": task.instance_id,
        "repo": task.repo,
        "patch": task.patch,
        "test_patch": task.test_patch,
        "FAIL_TO_PASS": list(task.fail_to_pass),
        "PASS_TO_PASS": list(task.pass_to_pass),
        "selfplay": {
            "artifact": dict(task.artifact),
            "attempt_patch": task.attempt_patch,
            "failure": task.failure,
            "order": task.order,
            "set": task.set,
            "part": task.part,
            **setup,
        },
    }


def read_tasks(path: Path | str) -> list[Task]:
    """All tasks of a file or folder (`reading`).

    Raises UsageError, which lists each bad record with its number, and PrerequisiteError for Parquet without
    pyarrow.
    """
    unit, lines = read_texts(str(path))
    tasks: dict[str, Task] = {}
    faults: list[tuple[int, str]] = []
    names: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = _json(line)
            names[number] = _name_of(record)
            task = parse_task(record)
            parse_spec(task.repo)
            if task.instance_id in tasks:
                raise ValueError(f"repeats the instance_id {task.instance_id!r}")
            tasks[task.instance_id] = task if task.set else replace(task, set=Path(path).stem)
        except (ValueError, UsageError) as error:
            faults.append((number, str(error)))
    if faults:
        listed = listed_faults(_named_faults(faults, names), unit)
        raise UsageError(
            f"{path}: {len(faults)} unusable task record(s), nothing was started:\n{listed}\n"
            f"A {unit} is a task record as one JSON object (docs/evaluation.md). {HOW_TO_WRITE}"
        )
    if not tasks:
        raise UsageError(f"{path} holds no task. {HOW_TO_WRITE}")
    return list(tasks.values())


def _name_of(record: object) -> str:
    name = record.get("instance_id") if isinstance(record, Mapping) else None
    return name if isinstance(name, str) else ""


def _named_faults(faults: Sequence[tuple[int, str]], names: Mapping[int, str]) -> list[tuple[int, str]]:
    """The faults, with the record's instance_id where no other record has the same fault."""
    counts = Counter(text for _, text in faults)
    named = []
    for number, text in faults:
        what, separator, remedy = text.partition("; ")
        name = names.get(number, "")
        if name and counts[text] == 1 and repr(name) not in what:
            what = f"{what} (instance_id {name[:80]!a})"
        named.append((number, f"{what}{separator}{remedy}"))
    return named


def write_tasks(tasks: Iterable[Task], path: Path) -> None:
    """Write a file that `read_tasks` can read in any folder: paths of repositories become absolute."""
    moved = (replace(task, repo=absolute_line(parse_spec(task.repo))) for task in tasks)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(task_record(task)) + "\n" for task in moved), encoding="utf-8")
    partial.rename(path)


class ListsRepositories(Protocol):
    """The part of a run folder that `export_tasks` needs."""

    @property
    def repositories_file(self) -> Path: ...


def export_tasks(store: Store, bugs: Sequence[BugRow], run: ListsRepositories, path: Path) -> int:
    """Write `bugs` as task records and return their number. `repo` is the bug's line in the run's list.

    Raises UsageError if the file cannot be written.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"cannot write the tasks to {path}: it is no file in a folder that exists.")
    lines = run.repositories_file.read_text(encoding="utf-8").splitlines()
    specs = {parse_spec(line).name: line for line in lines if line.strip()}
    with path.open("w", encoding="utf-8") as file:
        for bug in bugs:
            record = bug.task_record()
            record["repo"] = specs.get(bug.repository, bug.repository)
            record["selfplay"] = {
                "artifact": dict(bug.artifact),
                "attempt_patch": bug.attempt_patch,
                "failure": bug.failure,
                "order": bug.order,
            }
            file.write(json.dumps(record) + "\n")
    return len(bugs)


# ---- choosing


def frozen_sets() -> list[str]:
    """The names of the task sets in the package."""
    return sorted(path.stem for path in resource("data/tasks").glob("*.jsonl"))


def find_tasks(sources: Sequence[str], limit: int = 0) -> list[Task]:
    """The tasks of all `sources`: names of frozen sets, files, or folders of data sets.

    limit: at most so many tasks (`choose_subset`), 0 for all. Raises UsageError for an unknown source, a bad
    record, or an id in two sources.
    """
    tasks: dict[str, Task] = {}
    for source in sources:
        for task in read_tasks(_task_file(source)):
            if task.instance_id in tasks:
                other = tasks[task.instance_id].set
                raise UsageError(
                    f"the task {task.instance_id!r} is in {other!r} and in {source!r}; name one of them."
                )
            tasks[task.instance_id] = task
    return choose_subset(list(tasks.values()), limit) if limit else list(tasks.values())


def _task_file(source: str) -> str:
    frozen = resource("data/tasks") / f"{source}.jsonl"
    if Path(source).name == source and frozen.is_file():
        return str(frozen)
    if not is_source(source):
        known = ", ".join(frozen_sets()) or "none"
        raise UsageError(
            f"there is no task set and no file named {source!r}. "
            f"Sets that come with selfplay: {known}. {HOW_TO_WRITE}"
        )
    return source


def choose_subset(tasks: Sequence[Task], limit: int) -> list[Task]:
    """At most `limit` tasks, in their given order, spread evenly over sets and repositories.

    Within a set and repository, the hashes of the ids decide. A larger limit keeps all tasks of a smaller
    one.
    """
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in sorted(tasks, key=lambda task: hashlib.sha256(task.instance_id.encode()).digest()):
        groups.setdefault((task.set, task.repository), []).append(task)
    ranked = [
        (rank, group, task.instance_id) for group, some in groups.items() for rank, task in enumerate(some)
    ]
    kept = {instance_id for _, _, instance_id in sorted(ranked)[:limit]}
    return [task for task in tasks if task.instance_id in kept]


# ---- the bug of a task


def bug_of(task: Task, environment: Environment) -> tuple[Environment, BugState]:
    """The environment with the task's original (repaired) tree, and its bug as a solver gets it.

    Raises PatchError or ArtifactError if the record's patches do not fit the repository.
    """
    if task.artifact:
        return environment, BugState(
            Artifact.from_files(task.artifact),
            task.order,
            task.attempt_patch,
            task.fail_to_pass,
            task.pass_to_pass,
        )
    from selfplay.evaluation.record_bugs import bug_of_record

    return bug_of_record(task, environment)
