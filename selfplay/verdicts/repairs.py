"""A repair from a solver's workspace to the tree that is graded, and whether a bug's exact repair gets there.

The check runs nothing: it takes the repair by the same functions that take and grade a solver's, from the
workspace that a solver would have after undoing the bug. A test compares it with a real sandbox.

Invariant: a bug that can be put in by a diff can be taken out by one, or it is no bug. Otherwise an injector
could make bugs that nobody can repair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfplay.errors import PatchError
from selfplay.source.diffs import diff_bytes, parse_patch
from selfplay.source.trees import Tree
from selfplay.verdicts.checks import Finding, fail
from selfplay.verdicts.prediction import Prediction, add_prediction, take_prediction

if TYPE_CHECKING:
    from selfplay.verdicts.bug import States


@dataclass(frozen=True)
class GradedTrees:
    """The trees of a repair.

    predicted  the solver's start with the repair
    final      the tree whose tests decide: `predicted` with the original's test files
    restored   protected paths whose change was undone
    """

    predicted: Tree
    final: Tree
    restored: tuple[str, ...]


def take_repair(
    states: States, start: Tree, workspace_tar: bytes, test_files: Sequence[str], max_patch_bytes: int
) -> Prediction:
    """The repair in a solver's workspace that began as `start`.

    start: `states.solver_start`, possibly with the original's test files. Changes to these files and to
    `test_files` (what `Environment.fixed_files` gives included) do not count: grading has the originals.
    """
    not_counted = {*start.changed_paths(states.solver_start), *test_files}
    return take_prediction(start, workspace_tar, not_counted, states.original, max_patch_bytes)


def graded_trees(states: States, patch: str, test_files: Sequence[str], max_patch_bytes: int) -> GradedTrees:
    """What a repair makes of a bug. Raises PatchError if it cannot be read or applied."""
    parsed = parse_patch(patch, max_patch_bytes)
    predicted, restored = add_prediction(states.original, states.solver_start, parsed, test_files)
    return GradedTrees(predicted, predicted.restore(states.original, test_files), restored)


def judge_exact_repair(states: States, test_files: Sequence[str], max_patch_bytes: int) -> Finding:
    """Whether a solver that undoes the bug exactly has the original graded.

    test_files: of the artifact, and `Environment.fixed_files`.
    """
    original, start = states.original, states.solver_start
    undone = [path for path in original.changed_paths(states.buggy) if path not in test_files]
    workspace = start.restore(original, undone).to_tar()
    evidence: dict[str, Any] = {"undone": undone[:20]}
    try:
        repair = take_repair(states, start, workspace, test_files, max_patch_bytes)
        evidence["bytes"] = len(diff_bytes(repair.patch))
        if repair.restored:
            reason = f"nobody can repair {repair.restored[0]!r}: {repair.reasons[0]}"
            return fail(reason, not_repairable=list(repair.restored[:20]), **evidence)
        final = graded_trees(states, repair.patch, test_files, max_patch_bytes).final
    except PatchError as error:
        return fail(f"the exact repair cannot be taken or applied: {error}", **evidence)
    if different := final.changed_paths(original):
        reason = f"the exact repair leaves {different[0]!r} other than it was (its executable bit counts too)"
        return fail(reason, different=different[:20], **evidence)
    return Finding(True, "", evidence)
