"""The bugs of `train.bugs`: read with the settings, copied into the run folder, put into the curriculum once.

It trusts that a record was validated, and checks that it fits its repository. Invariant: no bug of an
evaluation set gets into the curriculum, because training on it would make the evaluation worthless.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from selfplay.config import Config
from selfplay.curriculum.rows import BugRow
from selfplay.curriculum.store import Store
from selfplay.errors import ArtifactError, PatchError, RunError, UsageError
from selfplay.evaluation.tasks import Task, bug_of, find_tasks, read_tasks
from selfplay.orchestrator.bug_rows import given_bug
from selfplay.orchestrator.run_state import RunState
from selfplay.repositories.environment import Environment
from selfplay.repositories.specs import RepositorySpec, parse_spec
from selfplay.repositories.targets import Span, function_spans, is_held_out
from selfplay.source.trees import Tree
from selfplay.verdicts.bug import BugState, bug_digest, build_states
from selfplay.verdicts.prediction import MAX_PATCH_BYTES
from selfplay.verdicts.repairs import judge_exact_repair

FROZEN_PREFIXES = ("own-", "human-")  # of ids in the sets that `selfplay eval` measures with
SHOWN = 8  # problems that a message lists


def read_given_bugs(path: Path, repositories: Collection[str]) -> list[Task]:
    """The records of the file `path`.

    repositories: names of the run's repositories.
    Raises UsageError that lists the records which the run cannot use.
    """
    tasks = read_tasks(path)
    problems = [
        f"  {task.instance_id}: {problem}" for task in tasks if (problem := _problem(task, repositories))
    ]
    if problems:
        raise UsageError(
            _listed(
                f"train.bugs = {str(path)!r}: {len(problems)} of {len(tasks)} record(s) cannot be given",
                problems,
            )
        )
    return tasks


def check_given_bugs(config: Config, specs: Sequence[RepositorySpec]) -> str:
    """The text of the file `train.bugs`; "" if the setting is empty.

    Raises UsageError if a record cannot be used, or if a run without injectors has no records.
    """
    if config.train.bugs:
        path = Path(config.train.bugs)
        tasks = read_given_bugs(path, {spec.name for spec in specs})
        given = {(parse_spec(task.repo).name, task.patch): task.instance_id for task in tasks}
        measured = find_tasks(config.evaluation.tasks, config.evaluation.limit)
        evaluated = {(parse_spec(task.repo).name, task.patch) for task in measured}
        if both := sorted(given[bug] for bug in given.keys() & evaluated):
            raise UsageError(
                f"train.bugs and evaluation.tasks share {len(both)} bug(s), {both[0]!r} for one: "
                "a policy is not evaluated on what it trains on. Take them out of one of the two."
            )
        return path.read_text(encoding="utf-8")
    if config.train.reference_share:
        raise UsageError(
            f"train.reference_share = {config.train.reference_share} needs reference bugs: "
            "set train.bugs to a file of task records, or train.reference_share to 0."
        )
    if not config.train.injector_groups:
        raise UsageError(
            "train.injector_groups = 0 makes no bugs, and train.bugs names no file of them: "
            "there is nothing to solve. Set train.injector_groups to 1 or more, or train.bugs to a file that "
            "`selfplay inspect-bugs --order 1 --tasks FILE` wrote."
        )
    return ""


def _problem(task: Task, repositories: Collection[str]) -> str:
    """Why a run cannot use the task; "" if it can."""
    if task.instance_id.startswith(FROZEN_PREFIXES):
        return "is a bug of a frozen evaluation set; training on it would make the evaluation worthless."
    if not task.artifact:
        return (
            "has no artifact (selfplay.artifact); "
            "`selfplay inspect-bugs --tasks FILE` writes records with one."
        )
    if task.order != 1 or task.attempt_patch:
        return (
            "is of order 2, which needs the bug it grew from; "
            "write the file with `selfplay inspect-bugs --order 1 --tasks FILE`."
        )
    if (name := parse_spec(task.repo).name) not in repositories:
        return (
            f"is of {name}, which the repository list does not name; "
            "add it there, or write the file with --repository."
        )
    return ""


def put_given_bugs(
    tasks: Sequence[Task],
    store: Store,
    environments: Mapping[str, Environment],
    is_too_long: Callable[[BugState], bool],
    report: Callable[[str], None],
    max_patch_bytes: int = MAX_PATCH_BYTES,
) -> None:
    """Put the bugs into the curriculum, in one transaction. If they are there already, nothing changes.

    environments: by repository name. Bugs of other repositories are left out and reported.
    is_too_long: True if the specification is too long to play. Such a bug is recorded all the same.
    max_patch_bytes: `validator.max_patch_bytes`, what the diff of a repair may have.
    Raises RunError if a bug does not fit its repository, cannot be repaired or changes a held-out function,
    or if none can be played.
    """
    state = RunState(store)
    if state.has_given_bugs():
        return
    rows: list[BugRow] = []
    problems: list[str] = []
    left_out = 0
    for task in tasks:
        environment = environments.get(parse_spec(task.repo).name)
        if environment is None:
            left_out += 1
            continue
        try:
            rows.append(_bug_row(task, environment, is_too_long, max_patch_bytes))
        except (PatchError, ArtifactError) as error:
            problems.append(f"  {task.instance_id}: {error}")
    if problems:
        raise RunError(_listed(f"{len(problems)} given bug(s) cannot be used", problems))
    with store.transaction():
        added = sum(store.add_bug(row) for row in rows)
        playable = len(store.bugs(status="fresh"))
        state.set_given_bugs(added)
        if not playable:
            raise RunError(
                f"none of the {len(tasks)} given bug(s) can be played: {left_out} are of repositories that "
                "could not be prepared, the others' specifications are longer than solver.max_spec_tokens."
            )
    report(
        f"{added} given bug(s) in the curriculum"
        + (f", {added - playable} of them too long to play" if playable < added else "")
    )
    if left_out or added < len(rows):
        report(
            f"Left out: {left_out} of repositories that could not be prepared, "
            f"{len(rows) - added} that repeat another."
        )


def _bug_row(
    task: Task, environment: Environment, is_too_long: Callable[[BugState], bool], max_patch_bytes: int
) -> BugRow:
    """Raises PatchError or ArtifactError if a run cannot use the record (see `put_given_bugs`)."""
    _, bug = bug_of(task, environment)
    states = build_states(environment.tree, bug)
    touched = touched_functions(states.original, states.buggy)
    if held_out := sorted(name for name in touched if is_held_out(name)):
        raise PatchError(
            f"changes {', '.join(held_out)}, held out for evaluation; no target of `selfplay train` is. "
            "Leave the bug out."
        )
    fixed = environment.fixed_files(states.original.changed_paths(states.buggy))
    repair = judge_exact_repair(states, (*bug.artifact.test_files, *fixed), max_patch_bytes)
    if not repair.passed:
        raise PatchError(f"{repair.reason}. Leave the bug out.")
    digest = bug_digest(states.original, states.buggy)
    return given_bug(task, bug, environment, digest, is_too_long(bug))


def touched_functions(before: Tree, after: Tree) -> set[str]:
    """Qualified names of the functions and methods, of both trees, of which a line differs."""
    touched: set[str] = set()
    for path in before.changed_paths(after):
        if not path.endswith(".py"):
            continue
        contents = [tree[path].content if path in tree else b"" for tree in (before, after)]
        old, new = (content.decode("utf-8", "replace").split("\n") for content in contents)
        old_spans, new_spans = (function_spans(content) for content in contents)
        for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if kind != "equal":
                touched |= {*_names(old_spans, i1, i2), *_names(new_spans, j1, j2)}
    return touched


def _names(spans: Sequence[Span], start: int, end: int) -> Iterator[str]:
    """Names of the spans that hold one of the lines start + 1 … end.

    If start equals end: names of the spans around the gap behind line `start`.
    """
    for span in spans:
        inside = (
            span.code_line <= end and span.last_line > start
            if start < end
            else span.code_line <= start < span.last_line
        )
        if inside:
            yield span.name


def _listed(head: str, problems: Sequence[str]) -> str:
    more = [f"  and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n".join([f"{head}:", *problems[:SHOWN], *more])
