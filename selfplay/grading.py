"""A repair attempt: taken from a workspace as a patch, and judged in a fresh sandbox. Solve rates and rewards are left to others.

Invariant: tests, runner files and whatever else is protected are the original's when an attempt is judged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.errors import PatchError
from selfplay.judging import judge_repair
from selfplay.patches import MAX_FILES, content_problem, diff_trees, is_protected_path, parse_patch, path_problem
from selfplay.test_runs import TestRun, TestRunner
from selfplay.trees import FileEntry, Tree, ignore_rules
from selfplay.validator import BugState, add_prediction, build_states

if TYPE_CHECKING:
    from selfplay.environments import Environment

MAX_FILE_BYTES = 1 << 20  # a changed file larger than this is put back: no repair needs it, and a diff of it would be refused
CONFIRMATION_SEED = 7919  # far from the seeds that validation uses


@dataclass(frozen=True)
class Prediction:
    """What an attempt changed. `restored`: paths whose change does not count (protected, binary, too large), sorted."""

    patch: str
    restored: tuple[str, ...]


@dataclass(frozen=True)
class Grade:
    """confirmed: None when there was no pass to confirm; False when a second grading disagreed, which voids the bug."""

    passed: bool
    reason: str
    failed_tests: tuple[str, ...]
    restored: tuple[str, ...]
    confirmed: bool | None
    duration_s: float


def take_prediction(before: Tree, workspace_tar: bytes) -> Prediction:
    """The difference between a solver's workspace and the known tree it started from, taken from outside.

    Files that `before` has always count, new ones unless `before`'s own ignore rules cover them.
    """
    ignored = ignore_rules(before)
    workspace = Tree.from_tar(workspace_tar)
    after = Tree({path: entry for path, entry in workspace.items() if path in before or not ignored.match_file(path)})
    restored: list[str] = []
    changes: dict[str, FileEntry | None] = {}
    for path in before.changed_paths(after):
        entry = after.files.get(path)
        if path in before and entry is not None and entry.content == before[path].content:
            continue  # its mode alone
        if _does_not_count(path, before, after) or len(changes) >= MAX_FILES:
            restored.append(path)
        else:
            changes[path] = entry
    return Prediction(diff_trees(before, before.replace(changes)), tuple(_printable(path) for path in restored))


def _does_not_count(path: str, before: Tree, after: Tree) -> bool:
    entry = after.files.get(path)
    if is_protected_path(path, before) or path_problem(path) or content_problem(path, before) or content_problem(path, after):
        return True
    return entry is not None and len(entry.content) > MAX_FILE_BYTES


def _printable(path: str) -> str:
    return path if not path_problem(path) else ascii(path)


def grade(bug: BugState, patch: str, environment: Environment, runner: TestRunner, confirm: bool = True) -> Grade:
    """Whether `patch`, laid on what the solver started from, makes every test of F2P and P2P pass.

    A pass is run a second time, with another hash seed and without what is known of equal runs. Raises SandboxUnavailable.
    """
    started = time.monotonic()

    def decided(
        passed: bool, reason: str, failed: tuple[str, ...] = (), restored: tuple[str, ...] = (), confirmed: bool | None = None
    ) -> Grade:
        return Grade(passed, reason, failed, restored, confirmed, round(time.monotonic() - started, 6))

    original, artifact = environment.tree, bug.artifact
    states = build_states(original, bug)
    tests = (*artifact.test_files, *environment.test_files)
    try:
        prediction = parse_patch(patch, runner.settings.max_patch_bytes)
        predicted, restored = add_prediction(original, states.solver_start, prediction, tests)
    except PatchError as error:
        return decided(False, f"the patch cannot be applied: {error}")
    final = predicted.restore(original, tests)
    if predicted == states.solver_start:
        return decided(False, "only protected files changed" if restored else "no change", restored=restored)

    def run(hash_seed: int, fresh: bool) -> tuple[TestRun, tuple[str, ...]]:
        done = runner.run(environment, final, artifact.test_script, artifact.test_parser, hash_seed, fresh)
        return done, judge_repair(done.outcomes, bug.fail_to_pass, bug.pass_to_pass)

    first, failed = run(0, fresh=False)
    if first.error or failed:
        return decided(False, first.error or f"{len(failed)} test(s) do not pass", failed, restored)
    if not confirm:
        return decided(True, "", restored=restored)
    second, failed = run(CONFIRMATION_SEED, fresh=True)
    if second.error or failed:
        return decided(False, f"passed once and not again: {second.error or ', '.join(failed[:5])}", failed, restored, confirmed=False)
    return decided(True, "", restored=restored, confirmed=True)
