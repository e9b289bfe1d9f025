"""Applies patches to trees, and writes the diff between two trees.

Reading a diff is the job of `diffs`, applying a hunk that of `hunks`. Which paths may change is the job of
`path_policy`.

Invariant: a diff is applied in memory and never reaches git, a command line or a folder of this machine: its
author may be hostile. git only compares trees, under numbered file names, outside any repository and without
a configuration of this machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from selfplay.errors import PatchError, PrerequisiteError, TreeError, full_disk_reported
from selfplay.source.diff_names import label
from selfplay.source.diffs import SECTION, FilePatch, Kind, Patch, diff_text, parse_patch, path_problem
from selfplay.source.hunks import ADVICE, apply_hunks
from selfplay.source.trees import FileEntry, Tree

GIT_TIMEOUT_S = 60.0
GIT_TRIES = 3
# Of one file: git needs some 80 bytes of memory for each line, and half a minute for the worst 4 MiB.
MAX_COMPARED_BYTES = 4 << 20


# ---- applying


def apply_patch(tree: Tree, patch_text: str, max_bytes: int = 1 << 24) -> Tree:
    """Read a diff and apply it to `tree`.

    Raises PatchError if the diff has more than `max_bytes`, cannot be read, does not apply cleanly, or does
    something other than its headers claim.
    """
    return apply_parsed(tree, parse_patch(patch_text, max_bytes))


def apply_parsed(tree: Tree, patch: Patch) -> Tree:
    """Apply a diff that was read before. Raises PatchError as `apply_patch` does."""
    if patch.is_empty:
        return tree
    _check_against(tree, patch)
    try:
        after = tree.replace(_changes_of(tree, patch))
    except TreeError as error:
        raise PatchError(f"the diff cannot be applied: {error}. {ADVICE}") from error
    _check_changed_paths(tree, after, patch)
    return after


def _check_against(tree: Tree, patch: Patch) -> None:
    """Check the claims that the tree alone can refute. Raises PatchError."""
    for file in patch.files:
        if file.old_path is not None and file.old_path not in tree:
            raise PatchError(f"the diff changes {file.old_path!r}, which does not exist. {ADVICE}")
        if file.old_path is not None and content_problem(file.old_path, tree):
            raise PatchError(f"the diff changes {file.old_path!r}, which is a binary file. Leave it out.")
        if file.kind in ("add", "rename") and file.new_path in tree:
            raise PatchError(f"the diff adds {file.new_path!r}, which exists already. {ADVICE}")
        if (
            file.kind == "delete"
            and file.old_path is not None
            and tree[file.old_path].executable is not file.executable
        ):
            raise PatchError(f"the diff deletes {file.path!r} under another mode than it has. {ADVICE}")


def _changes_of(tree: Tree, patch: Patch) -> dict[str, FileEntry | None]:
    """Path -> new entry, None if deleted. Raises PatchError."""
    changes: dict[str, FileEntry | None] = {path: None for file in patch.files for path in file.paths}
    for file in patch.files:
        old = FileEntry(b"", file.executable) if file.old_path is None else tree[file.old_path]
        try:
            content = apply_hunks(old.content, file.hunks, file.path)
        except ValueError as error:
            raise PatchError(f"the diff does not apply: {error}") from error
        if file.new_path is not None:
            changes[file.new_path] = FileEntry(content, old.executable)
        elif content:
            raise PatchError(
                f"the diff does not apply: it deletes {file.path!r} but leaves lines of it. {ADVICE}"
            )
    return changes


def _check_changed_paths(before: Tree, after: Tree, patch: Patch) -> None:
    """Raise PatchError unless exactly the paths changed that the patch claims to change."""
    changed = before.changed_paths(after)
    if tuple(changed) != patch.changed_paths:
        silent = sorted(set(patch.changed_paths) ^ set(changed))
        raise PatchError(f"the diff does not do what it claims to these files: {silent[:5]}. {ADVICE}")


# ---- running git


class _GitKilled(PatchError):
    """SIGKILL ended git. The trees are hardly the cause: memory ran out, or somebody killed git."""


def _git_or_again(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run git, up to GIT_TRIES times while it is killed."""
    for _ in range(GIT_TRIES - 1):
        with suppress(_GitKilled):
            return _git(arguments, folder)
    return _git(arguments, folder)


def _git(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run git in `folder` without any configuration, repository or attribute of this machine.

    Raises PatchError after GIT_TIMEOUT_S or if git is killed, and PrerequisiteError.
    """
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent),
        "GIT_TERMINAL_PROMPT": "0",
    }
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=variables,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise PrerequisiteError(
            "git not found on PATH. Install it (for example: apt-get install git)."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise PatchError(f"git did not compare the trees within {GIT_TIMEOUT_S:.0f} s") from error
    if done.returncode == -signal.SIGKILL:
        raise _GitKilled(f"git was killed {GIT_TRIES} times while it compared two trees")
    return done


# ---- comparing


def diff_trees(before: Tree, after: Tree) -> str:
    """Write the diff from `before` to `after`, as `apply_patch` reads it; "" if contents are equal.

    Ignores the executable bits of files that both trees have. Raises PatchError for files or names that a
    text diff cannot hold.
    """
    return "".join(diff_sections(before, after).values())


def diff_sections(before: Tree, after: Tree) -> dict[str, str]:
    """The parts of `diff_trees`: each path whose content differs, with its section, by path."""
    paths = [
        path
        for path in before.changed_paths(after)
        if path not in before or path not in after or before[path].content != after[path].content
    ]
    if not paths:
        return {}
    for path in paths:
        problem = path_problem(path) or content_problem(path, before) or content_problem(path, after)
        if problem:
            raise PatchError(problem)
    return {
        path: _diff_file(path, before.files.get(path), after.files.get(path), hunks)
        for path, hunks in _hunks_between(before, after, paths)
    }


def content_problem(path: str, tree: Tree) -> str:
    """Why a text diff cannot hold the content of `path`; "" if it can, or if the tree has no such file.

    Text has no NUL byte. Its encoding does not matter: diffs carry bytes.
    """
    entry = tree.files.get(path)
    if entry is None:
        return ""
    return f"{path!r} is a binary file" if b"\0" in entry.content else ""


def change_problem(path: str, tree: Tree) -> str:
    """Why neither a bug nor a repair can change `path` in `tree`: its name, bytes or size; "" if they can."""
    size = len(tree[path].content) if path in tree else 0
    too_large = f"{path!r} has {size} bytes; at most {MAX_COMPARED_BYTES} are compared"
    return (
        path_problem(path) or content_problem(path, tree) or (too_large if size > MAX_COMPARED_BYTES else "")
    )


def _hunks_between(before: Tree, after: Tree, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each path with the hunks between its two contents, "" if there are none.

    There are none between a missing and an empty file.
    """
    with (
        full_disk_reported(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="selfplay-diff-") as name,
    ):
        folder = Path(name)
        for side, tree in (("old", before), ("new", after)):
            (folder / side).mkdir()
            for number, path in enumerate(paths):
                entry = tree.files.get(path)
                (folder / side / f"{number:06}").write_bytes(entry.content if entry else b"")
        options = [
            "--no-index",
            "--text",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--no-renames",
            "--unified=3",
            "--diff-algorithm=myers",
        ]
        done = _git_or_again(["diff", *options, "--", "old", "new"], folder)
    if done.returncode not in (0, 1):
        raise PatchError(
            f"git cannot compare the trees: {done.stderr.decode('utf-8', 'replace').strip()[:300]}"
        )
    hunks = _hunks_by_number(diff_text(done.stdout))
    for number, path in enumerate(paths):
        yield path, "".join(f"{line}\n" for line in hunks.get(number, ()))


def _hunks_by_number(diff: str) -> dict[int, list[str]]:
    """The hunk lines of each section of git's output, by the number that is the file's name."""
    hunks: dict[int, list[str]] = {}
    lines: list[str] = []
    in_hunks = False
    for line in diff.split("\n")[:-1]:
        if line.startswith(SECTION):
            lines = hunks.setdefault(int(line.rpartition("/")[2]), [])
            in_hunks = False
        elif line.startswith("@@"):
            in_hunks = True
            lines.append(line)
        elif in_hunks:
            lines.append(line)
    return hunks


def _diff_file(path: str, old: FileEntry | None, new: FileEntry | None, hunks: str) -> str:
    kind: Kind = "add" if old is None else "delete" if new is None else "modify"
    only = new if old is None else old if new is None else None
    executable = only is not None and only.executable
    file = FilePatch(path, None if old is None else path, None if new is None else path, kind, executable)
    if not hunks:
        return file.text()
    label_old, label_new = label("a/", file.old_path), label("b/", file.new_path)
    return f"{file.text()}--- {label_old}\n+++ {label_new}\n{hunks}"
