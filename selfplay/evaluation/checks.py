"""Checks each task by execution, once: do its tests pass on the original and fail on the buggy tree?

Playing is left to `evaluator`. Invariants: a task that does not do what its record says is never played,
since its rate would say nothing about a policy; it is named with its reason. A finding is cached under
everything that decides it. A run that did not count (a timeout) is not cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from selfplay.errors import ArtifactError, PatchError, RunError
from selfplay.evaluation.folder import Folder
from selfplay.evaluation.tasks import Task, bug_of
from selfplay.outcomes import TestOutcomes
from selfplay.repositories.environment import Environment
from selfplay.verdicts.bug import BugState, States, build_states
from selfplay.verdicts.test_runs import TestRunner

SCHEMA = 1  # of cached findings
SHOWN = 3  # test ids that a reason names


@dataclass(frozen=True)
class Finding:
    """What one check found.

    reason        why the task is left out, "" if it is played
    fail_to_pass  as the runner names them; a record may cut ids at the first space
    not_counted   tests of PASS_TO_PASS that do not pass on the original here, so grades leave them out
    passed        all tests that pass on the original
    may_repeat    the run did not count, so another one may find something else
    """

    reason: str = ""
    fail_to_pass: tuple[str, ...] = ()
    pass_to_pass: tuple[str, ...] = ()
    not_counted: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    may_repeat: bool = False


@dataclass(frozen=True)
class Checked:
    """bugs: environment and bug of each task that may be played. left_out: reasons, by id.

    not_counted: tests of PASS_TO_PASS that grades leave out, by the task's id.
    """

    bugs: Mapping[str, tuple[Environment, BugState]]
    left_out: Mapping[str, str]
    not_counted: Mapping[str, tuple[str, ...]]

    @property
    def environments(self) -> Mapping[str, Environment]:
        """The environment of each task that may be played, by its id, with the task's original tree."""
        return {name: environment for name, (environment, _) in self.bugs.items()}


@dataclass(frozen=True)
class Checker:
    """Checks tasks with `runner`, several at a time.

    cache: a folder for findings; None keeps none. report: takes a line for the person who waits.
    """

    runner: TestRunner
    cache: Path | None = None
    workers: int = 2
    report: Callable[[str], None] = lambda _: None

    def check(self, tasks: Sequence[Task], environments: Mapping[str, Environment]) -> Checked:
        """Check all tasks that have an environment. Raises SandboxUnavailable."""
        wanted = [task for task in tasks if task.repo in environments]
        bugs: dict[str, tuple[Environment, BugState]] = {}
        left_out: dict[str, str] = {}
        not_counted: dict[str, tuple[str, ...]] = {}
        with ThreadPoolExecutor(self.workers, thread_name_prefix="check") as pool:
            found = pool.map(lambda task: self._check_one(task, environments[task.repo]), wanted)
            for done, (task, (bug, finding)) in enumerate(zip(wanted, found, strict=True), 1):
                if bug is None or finding.reason:
                    left_out[task.instance_id] = finding.reason
                else:
                    bugs[task.instance_id] = bug
                if finding.not_counted:
                    not_counted[task.instance_id] = finding.not_counted
                self.report(f"{done} of {len(wanted)} tasks checked")
        return Checked(bugs, left_out, not_counted)

    def _check_one(
        self, task: Task, environment: Environment
    ) -> tuple[tuple[Environment, BugState] | None, Finding]:
        if problem := _problem_of(task):
            return None, Finding(problem)
        try:
            environment, bug = bug_of(task, environment)
            states = build_states(environment.tree, bug)
        except (PatchError, ArtifactError) as error:
            return None, Finding(f"does not fit its repository: {error}")
        file = self._file(task, environment, bug)
        finding = _read(file) or self._execute(environment, bug, states)
        if not finding.may_repeat:
            _write(file, finding)
        bug = replace(bug, fail_to_pass=finding.fail_to_pass, pass_to_pass=finding.pass_to_pass)
        if not environment.baseline.passed:
            baseline = TestOutcomes(frozenset(finding.passed), frozenset())
            environment = replace(environment, baseline=baseline)
        return (environment, bug), finding

    def _execute(self, environment: Environment, bug: BugState, states: States) -> Finding:
        script, parser = bug.artifact.test_script, bug.artifact.test_parser
        original = self.runner.run(environment, states.original, script, parser)
        if original.error:
            return Finding(f"the original: {original.error}", may_repeat=True)
        finding = judge_original(bug, original.outcomes)
        if finding.reason:
            tail = original.log.decode("utf-8", "replace").strip().split("\n")[-1][:200]
            return replace(finding, reason=f"{finding.reason}. The log ends with: {tail!r}")
        buggy = self.runner.run(environment, states.buggy, script, parser)
        if buggy.error:
            return Finding(f"with the bug: {buggy.error}", may_repeat=True)
        return judge_buggy(finding, buggy.outcomes)

    def _file(self, task: Task, environment: Environment, bug: BugState) -> Path | None:
        if self.cache is None:
            return None
        settings = self.runner.settings
        key = [
            SCHEMA,
            task.digest,
            environment.key,
            environment.reference,
            environment.tree.digest,
            bug.artifact.digest,
            settings.script_timeout_s,
            settings.max_log_bytes,
        ]
        return self.cache / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"


def check_into(
    folder: Folder,
    checker: Checker,
    tasks: Sequence[Task],
    environments: Mapping[str, Environment],
    left_out: Mapping[str, str],
) -> Checked:
    """Check the tasks, and write into `folder` which are left out and why.

    left_out: reasons of tasks without an environment. Raises RunError, with the reasons, if no task is left,
    and SandboxUnavailable.
    """
    found = checker.check(tasks, environments)
    known = {**left_out, **found.left_out}
    reasons = {task.instance_id: known[task.instance_id] for task in tasks if task.instance_id in known}
    folder.write_left_out(reasons, found.not_counted)
    if not found.bugs:
        listed = [f"  {name}: {reason}" for name, reason in reasons.items()]
        more = [f"  and {len(listed) - 20} more"] if len(listed) > 20 else []
        raise RunError(f"none of {len(tasks)} task(s) can be played:\n" + "\n".join([*listed[:20], *more]))
    return found


# ---- decisions


def _problem_of(task: Task) -> str:
    """What is wrong with a task that no run needs to show; "" if nothing is."""
    if task.setup.left_out:
        return task.setup.left_out
    if not task.fail_to_pass:
        return "FAIL_TO_PASS is empty: no test tells a repair from the bug"
    if not task.artifact and not task.patch.strip():
        return "patch is empty: there is no bug"
    if not task.artifact and not task.issue and not task.test_patch.strip():
        return "it has neither problem_statement nor test_patch: a solver would be told nothing"
    return ""


def judge_original(bug: BugState, original: TestOutcomes) -> Finding:
    """What the outcomes on the original say of the record's tests, and the runner's names of these tests."""
    names = _names_of(original.ids)
    broken = {test_id: _found(test_id, names) for test_id in bug.fail_to_pass}
    if unknown := sorted(test_id for test_id, found in broken.items() if not found):
        many = f"{len(unknown)} of {len(broken)} ids in FAIL_TO_PASS name no test that ran on the original"
        return Finding(f"{many}: {_listed(unknown)}")
    fail_to_pass = {name for found in broken.values() for name in found}
    if failing := sorted(fail_to_pass - original.passed):
        many = f"{len(failing)} of {len(fail_to_pass)} tests in FAIL_TO_PASS do not pass on the original"
        return Finding(f"{many}: {_listed(failing)}")
    kept: set[str] = set()
    not_counted: list[str] = []
    for test_id in bug.pass_to_pass:
        found = _found(test_id, names)
        if found and found <= original.passed:
            kept |= found
        else:
            not_counted.append(test_id)
    return Finding(
        "",
        _in_order(fail_to_pass, bug.fail_to_pass),
        _in_order(kept - fail_to_pass, bug.pass_to_pass),
        tuple(sorted(not_counted)),
        tuple(sorted(original.passed)),
    )


def judge_buggy(finding: Finding, buggy: TestOutcomes) -> Finding:
    """The finding, with a reason if the bug leaves a test of FAIL_TO_PASS passing."""
    if passing := sorted(set(finding.fail_to_pass) & buggy.passed):
        many = f"{len(passing)} of {len(finding.fail_to_pass)} tests in FAIL_TO_PASS pass with the bug"
        return replace(finding, reason=f"{many}: {_listed(passing)}")
    return finding


def _names_of(ids: Iterable[str]) -> dict[str, set[str]]:
    """The runner's ids by the forms in which records give them: whole, and cut at the first space."""
    names: dict[str, set[str]] = {}
    for test_id in ids:
        for form in {test_id, test_id.split()[0] if test_id.split() else test_id}:
            names.setdefault(form, set()).add(test_id)
    return names


def _found(test_id: str, names: Mapping[str, set[str]]) -> set[str]:
    """The tests that a record's id means. An exact id means one test; a cut one, all that begin so.

    Ids are cut at a space, or somewhere in their parameters.
    """
    found = names.get(test_id, set())
    if test_id in found:
        return {test_id}
    if not found and test_id.count("[") > test_id.count("]"):
        found = {name for some in names.values() for name in some if name.startswith(test_id)}
    return found


def _in_order(ids: set[str], recorded: Sequence[str]) -> tuple[str, ...]:
    """`ids` in the record's order, so that a record with exact ids keeps its tuple. The others come last."""
    first = [test_id for test_id in recorded if test_id in ids]
    return tuple(dict.fromkeys([*first, *sorted(ids.difference(first))]))


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(test_id[:120] for test_id in ids[:SHOWN]) + more


# ---- the cache


def _read(file: Path | None) -> Finding | None:
    """A cached finding. None without one, and for a damaged one."""
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        names = ("fail_to_pass", "pass_to_pass", "not_counted", "passed")
        broken, passing, not_counted, passed = (tuple(map(str, found[name])) for name in names)
        return Finding(str(found["reason"]), broken, passing, not_counted, passed)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(file: Path | None, finding: Finding) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{id(finding)}.partial")
    partial.write_text(json.dumps(asdict(finding)), encoding="utf-8")
    partial.rename(file)
