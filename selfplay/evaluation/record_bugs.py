"""The bug of a record that holds no artifact: which trees, which test files, which script, which parser.

Whether the tests do what the record says is left to `checks`. Invariant: the files that hold the record's
tests are hidden from a solver, and are the record's own when an attempt is graded.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from selfplay.repositories.scripts import command_script
from selfplay.repositories.test_hints import shipped_parser
from selfplay.source.apply import apply_patch, diff_trees
from selfplay.source.diffs import parse_patch, reverse_patch
from selfplay.source.trees import Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import MAX_STORED_PATCH, BugState

if TYPE_CHECKING:
    from selfplay.evaluation.tasks import Task
    from selfplay.repositories.environment import Environment


def bug_of_record(task: Task, environment: Environment) -> tuple[Environment, BugState]:
    """The environment with the task's original (repaired) tree, and its bug as a solver gets it.

    Raises PatchError or ArtifactError if the record's patches do not fit the repository.
    """
    if task.setup.patch_is_bug:
        original, inject = environment.tree, task.patch
    else:
        original = repaired_tree(task, environment.tree)
        inject = reverse_patch(task.patch)
    patched = parse_patch(task.test_patch, MAX_STORED_PATCH).changed_paths
    touched = [path for path in patched if path in original]
    named = {test_id.partition("::")[0] for test_id in (*task.fail_to_pass, *task.pass_to_pass)}
    holders = sorted(path for path in named if path in original)
    hidden = reverse_patch(task.test_patch)
    if not hidden.strip():
        broken = {test_id.partition("::")[0] for test_id in task.fail_to_pass}
        hidden = _without(original, inject, [path for path in holders if path in broken])
    runnable = [path for path in touched if path.endswith(".py") and not path.endswith("conftest.py")]
    script, parser = _runner(task, environment, list(dict.fromkeys([*holders, *runnable])))
    files = {
        "bug_inject.diff": inject,
        "test_weaken.diff": hidden,
        "test_files.txt": "".join(f"{path}\n" for path in dict.fromkeys([*touched, *holders])),
        "test_script.sh": script,
        "test_parser.py": parser,
    }
    state = BugState(Artifact.from_files(files), 1, "", task.fail_to_pass, task.pass_to_pass)
    command = task.setup.test or environment.command
    return replace(environment, tree=original, command=command), state


def repaired_tree(task: Task, tree: Tree) -> Tree:
    """The tree with the record's repair and tests. Raises PatchError."""
    return apply_patch(apply_patch(tree, task.patch), task.test_patch)


def _without(original: Tree, inject: str, paths: Sequence[str]) -> str:
    """The diff that removes `paths` from the buggy tree."""
    buggy = apply_patch(original, inject)
    return diff_trees(buggy, buggy.replace(dict.fromkeys(paths)))


def _runner(task: Task, environment: Environment, files: Sequence[str]) -> tuple[str, str]:
    """The script and the parser of the record's tests."""
    if not task.setup.test:
        return environment.script_for(files), environment.parser
    modules = shlex.join(path.removeprefix("tests/").removesuffix(".py").replace("/", ".") for path in files)
    command = task.setup.test.replace("{files}", shlex.join(files)).replace("{modules}", modules)
    return command_script(command), shipped_parser(task.setup.parser)
