"""A bug, and the file trees that it makes of the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from selfplay.source.apply import apply_parsed
from selfplay.source.diffs import Patch, parse_patch
from selfplay.source.path_policy import is_protected_path
from selfplay.source.trees import Tree
from selfplay.verdicts.artifact import Artifact

MAX_STORED_PATCH = 1 << 24  # diffs that were accepted before are read again with this cap only


@dataclass(frozen=True)
class BugState:
    """An accepted bug. `attempt_patch` is the failed attempt that makes it one of order two, "" in order one."""

    artifact: Artifact
    order: int
    attempt_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]


@dataclass(frozen=True)
class States:
    """A bug's trees.

    buggy         all of its code (for order two the failed attempt too) with the original's tests
    weakened      the first bug and the weakened tests
    solver_start  what a solver sees: weakened, and for order two the failed attempt
    """

    original: Tree
    buggy: Tree
    weakened: Tree
    solver_start: Tree


@lru_cache(
    maxsize=64
)  # a group's members and gradings ask for the same; a tree shares what it did not change
def build_states(tree: Tree, bug: BugState) -> States:
    """The trees of an accepted bug on its original. Raises PatchError when its diffs do not belong to `tree`."""
    buggy = apply_parsed(tree, parse_patch(bug.artifact.bug_inject, MAX_STORED_PATCH))
    weakened = apply_parsed(buggy, parse_patch(bug.artifact.test_weaken, MAX_STORED_PATCH))
    if not bug.attempt_patch:
        return States(tree, buggy, weakened, weakened)
    attempted, _ = add_prediction(
        tree, weakened, parse_patch(bug.attempt_patch, MAX_STORED_PATCH), bug.artifact.test_files
    )
    return States(tree, attempted.restore(tree, bug.artifact.test_files), weakened, attempted)


def add_prediction(
    original: Tree, before: Tree, patch: Patch, test_files: Sequence[str]
) -> tuple[Tree, tuple[str, ...]]:
    """`before` with the prediction's code, and the protected paths whose change was taken back. Raises PatchError."""
    after = apply_parsed(before, patch)
    restored = tuple(
        path for path in patch.changed_paths if path in test_files or is_protected_path(path, original)
    )
    return after.restore(before, restored), restored
