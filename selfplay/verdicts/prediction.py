"""A solver's prediction: the code that it changed, as a patch.

Taking it from a workspace and applying it; grading it is left to `grading`.

Invariant: a change to a test, a runner file or another protected file never counts, because these files
decide the verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from selfplay.source.apply import apply_parsed, content_problem, diff_trees
from selfplay.source.diffs import MAX_FILES, Patch, path_problem
from selfplay.source.path_policy import is_protected_path
from selfplay.source.trees import FileEntry, Tree, ignore_rules

# A larger changed file is restored: no repair needs it, and the reader of diffs would refuse its diff.
MAX_FILE_BYTES = 1 << 20
MAX_CHANGED_BYTES = 8 << 20  # of all changed files together, for the same reason


@dataclass(frozen=True)
class Prediction:
    """What an attempt changed.

    `restored`: paths whose change does not count, sorted (protected, excluded, binary or too large).
    """

    patch: str
    restored: tuple[str, ...]


def take_prediction(before: Tree, workspace_tar: bytes, not_counted: Collection[str] = ()) -> Prediction:
    """Compare a solver's workspace with the tree that it started from.

    before         the tree at the start, as this process knows it: nothing of it is read from the sandbox
    workspace_tar  the workspace as a tar archive
    not_counted    paths whose changes do not count

    Changes to the files of `before` count. A new file counts unless the ignore rules of `before` cover it.
    """
    ignored = ignore_rules(before)
    workspace = Tree.from_tar(workspace_tar)
    after = Tree(
        {path: entry for path, entry in workspace.items() if path in before or not ignored.match_file(path)}
    )
    restored: list[str] = []
    changes: dict[str, FileEntry | None] = {}
    bytes_left = MAX_CHANGED_BYTES
    for path in before.changed_paths(after):
        entry = after.files.get(path)
        if path in before and entry is not None and entry.content == before[path].content:
            continue  # only its mode changed
        size = len(entry.content) if entry is not None else 0
        is_excluded = path in not_counted or _does_not_count(path, before, after)
        if is_excluded or len(changes) >= MAX_FILES or size > bytes_left:
            restored.append(path)
        else:
            changes[path] = entry
            bytes_left -= size
    patch = diff_trees(before, before.replace(changes))
    return Prediction(patch, tuple(_printable(path) for path in restored))


def add_prediction(
    original: Tree, before: Tree, patch: Patch, test_files: Sequence[str]
) -> tuple[Tree, tuple[str, ...]]:
    """Apply a prediction to `before`.

    Changes to `test_files` and to protected paths of `original` are undone.

    Returns the tree and the paths whose change was undone. Raises PatchError.
    """
    after = apply_parsed(before, patch)
    restored = tuple(
        path for path in patch.changed_paths if path in test_files or is_protected_path(path, original)
    )
    return after.restore(before, restored), restored


def _does_not_count(path: str, before: Tree, after: Tree) -> bool:
    if is_protected_path(path, before) or path_problem(path):
        return True
    if content_problem(path, before) or content_problem(path, after):
        return True
    entry = after.files.get(path)
    return entry is not None and len(entry.content) > MAX_FILE_BYTES


def _printable(path: str) -> str:
    return path if not path_problem(path) else ascii(path)
