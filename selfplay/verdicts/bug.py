"""A bug, and the file trees of its states. Whether an artifact is a bug is left to `validator`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from selfplay.source.apply import apply_parsed
from selfplay.source.diffs import parse_patch
from selfplay.source.normal_form import normal_form
from selfplay.source.trees import Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.prediction import add_prediction

# Bytes. A stored diff met `validator.max_patch_bytes` when it was accepted; the setting may be smaller now.
MAX_STORED_PATCH = 1 << 24


@dataclass(frozen=True)
class BugState:
    """An accepted bug.

    `attempt_patch` is the failed attempt that makes it a bug of order two, "" for order one.
    """

    artifact: Artifact
    order: int
    attempt_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]


@dataclass(frozen=True)
class States:
    """The trees of a bug.

    buggy         the bug's code (for order two with the failed attempt) and the original's tests
    weakened      the first bug's code and the weakened tests
    solver_start  the tree that a solver gets: `weakened`, for order two with the failed attempt
    """

    original: Tree
    buggy: Tree
    weakened: Tree
    solver_start: Tree


# Cached: the members and gradings of a group need the same trees. Trees share the files that did not change.
@lru_cache(maxsize=64)
def build_states(tree: Tree, bug: BugState) -> States:
    """The trees of an accepted bug of the original `tree`.

    Raises PatchError if a diff of the bug does not fit the tree.
    """
    buggy = apply_parsed(tree, parse_patch(bug.artifact.bug_inject, MAX_STORED_PATCH))
    weakened = apply_parsed(buggy, parse_patch(bug.artifact.test_weaken, MAX_STORED_PATCH))
    if not bug.attempt_patch:
        return States(tree, buggy, weakened, weakened)
    attempt = parse_patch(bug.attempt_patch, MAX_STORED_PATCH)
    attempted, _ = add_prediction(tree, weakened, attempt, bug.artifact.test_files)
    return States(tree, attempted.restore(tree, bug.artifact.test_files), weakened, attempted)


def bug_digest(original: Tree, buggy: Tree) -> str:
    """What artifacts of one bug have in common: SHA-256 over the changed code.

    Files count in their normal form, and those whose normal form is the original's do not count. If there is
    no other, files count in the exact form, and at last by their bytes. The weakening, the script, the
    parser and the tests that break do not count: they make no other bug. An author chooses them, and with
    them which tests run and what they are called.
    """
    changed = original.changed_paths(buggy)
    forms: dict[str, str] = {}
    for exact in (False, True):
        forms = {
            path: form
            for path in changed
            if (form := _form_in(buggy, path, exact)) != _form_in(original, path, exact)
        }
        if forms:
            break
    parts = [original.digest, *(text for item in sorted(forms.items()) for text in item)]
    if not forms:
        parts.append(buggy.digest)
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        sha.update(b"%d:" % len(data) + data)
    return sha.hexdigest()


def _form_in(tree: Tree, path: str, exact: bool) -> str:
    return normal_form(path, tree[path].content, exact) if path in tree else "no file"
