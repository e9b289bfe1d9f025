"""A solver's prediction: the code that it changed, as a patch.

Taking it from a workspace and applying it; grading it is left to `grading`.

Invariants:
- A change to a test, a runner file or another protected file never counts, because these files decide the
  verdict.
- What counts depends on the original repository, on paths and on sizes, never on files that a policy wrote.
- A file that a bug may change is a file that a repair may change. `repairs` has the check.
- A file that is no code counts only if the bug changed it: tests may compare with what it holds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from selfplay.source.apply import apply_parsed, change_problem, diff_sections
from selfplay.source.diffs import MAX_FILES, Patch, diff_bytes, path_problem
from selfplay.source.path_policy import is_code_path, is_protected_path, shadows
from selfplay.source.trees import Tree, ignore_rules

MAX_FILE_BYTES = 1 << 20  # of a new file: no repair needs a larger one, and a run may leave a log behind
MAX_CHANGED_BYTES = 8 << 20  # of all changed files together, to bound the work of comparing them
MAX_PATCH_BYTES = 1 << 24


@dataclass(frozen=True)
class Prediction:
    """What an attempt changed.

    restored  paths whose change does not count, sorted
    reasons   why, for each of them: it is protected, excluded, binary or too large
    """

    patch: str
    restored: tuple[str, ...]
    reasons: tuple[str, ...] = ()


def take_prediction(
    before: Tree,
    workspace_tar: bytes,
    not_counted: Collection[str] = (),
    original: Tree | None = None,
    max_patch_bytes: int = MAX_PATCH_BYTES,
) -> Prediction:
    """Compare a solver's workspace with the tree that it started from.

    before           the tree at the start, as this process knows it: nothing of it is read from the sandbox
    workspace_tar    the workspace as a tar archive
    not_counted      paths whose changes do not count
    original         the repository without the bug; None for `before`
    max_patch_bytes  what the reader of the patch allows

    Changes to the files of `before` and of `original` count, the large ones only as far as there is room.
    Other new files count unless the ignore rules of `original` cover them.
    """
    original = before if original is None else original
    workspace = Tree.from_tar(workspace_tar)
    ignored = ignore_rules(original)
    restored: dict[str, str] = {}
    changed: list[str] = []
    for path in before.changed_paths(workspace):
        if _is_same(path, before, workspace):
            continue
        if path not in before and path not in original and ignored.match_file(path):
            continue
        is_fixed = path in not_counted or shadows(path, not_counted, original)
        problem = "changes to it do not count" if is_fixed else ""
        if problem := problem or _problem(path, original, before, workspace):
            restored[path] = problem
        else:
            changed.append(path)

    def fitting(what: str, sizes: Mapping[str, int], most: int) -> list[str]:
        """The paths that fit. Files of the repository come first, so that others take no room from them."""
        is_new = {path: path not in before and path not in original for path in sizes}
        order = sorted(sizes, key=lambda path: (is_new[path], sizes[path]))
        paths = _fitting(order, sizes, most)
        for path in set(order).difference(paths):
            restored[path] = f"{what} all changes exceed {MAX_FILES} files or {most} bytes"
        return paths

    sizes = {path: _size(path, before, workspace) for path in changed}
    compared = fitting("the files of", sizes, MAX_CHANGED_BYTES)
    sections = diff_sections(before, before.restore(workspace, compared))
    sizes = {path: len(diff_bytes(text)) for path, text in sections.items()}
    kept = set(fitting("the diffs of", sizes, max_patch_bytes))
    patch = "".join(text for path, text in sections.items() if path in kept)
    paths = sorted(restored)
    return Prediction(patch, tuple(map(_printable, paths)), tuple(restored[path] for path in paths))


def add_prediction(
    original: Tree, before: Tree, patch: Patch, test_files: Sequence[str]
) -> tuple[Tree, tuple[str, ...]]:
    """Apply a prediction to `before`.

    Changes to `test_files`, to protected paths of `original` and to files that `_is_open` refuses are undone.

    Returns the tree and the paths whose change was undone. Raises PatchError.
    """
    after = apply_parsed(before, patch)
    tests = frozenset(test_files)
    restored = tuple(
        path
        for path in patch.changed_paths
        if path in tests
        or shadows(path, test_files, original)
        or is_protected_path(path, original)
        or not _is_open(path, original, before)
    )
    return after.restore(before, restored), restored


def _problem(path: str, original: Tree, before: Tree, after: Tree) -> str:
    """Why a change of `path` does not count; "" if it does."""
    if is_protected_path(path, original):
        return "it is a test or a file that steers the test run"
    if not _is_open(path, original, before):
        return "it is no code, and the bug did not change it"
    is_too_large = path not in before and path not in original and _size(path, after) > MAX_FILE_BYTES
    too_large = f"it is new and has more than {MAX_FILE_BYTES} bytes" if is_too_large else ""
    return change_problem(path, before) or change_problem(path, after) or too_large


def _is_open(path: str, original: Tree, before: Tree) -> bool:
    """Whether a repair may change a path that is not protected: code, or a file that the bug changed."""
    return is_code_path(path) or original.files.get(path) != before.files.get(path)


def _is_same(path: str, before: Tree, after: Tree) -> bool:
    """Whether both trees have the file with the same content: a change of its mode does not count."""
    return path in before and path in after and before[path].content == after[path].content


def _size(path: str, *trees: Tree) -> int:
    return max(len(tree[path].content) for tree in trees if path in tree)


def _fitting(paths: Sequence[str], sizes: Mapping[str, int], most: int) -> list[str]:
    """At most MAX_FILES of `paths`, `most` bytes together: each one that still fits, in order."""
    fitting: list[str] = []
    for path in paths:
        if len(fitting) < MAX_FILES and sizes[path] <= most:
            fitting.append(path)
            most -= sizes[path]
    return fitting


def _printable(path: str) -> str:
    return path if not path_problem(path) else ascii(path)
