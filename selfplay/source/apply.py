"""Applies patches to trees and writes the diff between two trees. git does both, in a temporary folder.

Reading a diff is the job of `diffs`. Which paths may change is the job of `path_policy`.

Invariant: git sees only patches that this package wrote, over numbered file names, outside any repository.
The author of a diff may be hostile: the paths, modes and attributes of the diff never reach a command line, a
folder or a git configuration of this machine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

from selfplay.errors import DiskFullError, PatchError, PrerequisiteError, full_disk_reported
from selfplay.source.diffs import (
    SECTION,
    FilePatch,
    Kind,
    Patch,
    diff_bytes,
    diff_text,
    label,
    parse_patch,
    path_problem,
)
from selfplay.source.trees import FileEntry, Tree

GIT_TIMEOUT_S = 60.0
GIT_TRIES = 3
# Of one file: git needs some 80 bytes of memory for each line, and half a minute for the worst 4 MiB.
MAX_COMPARED_BYTES = 4 << 20
# The last words of git when it could not write a file.
FULL_DISK = re.compile(rb": (No space left on device|Disk quota exceeded|File too large)$", re.MULTILINE)

Result = TypeVar("Result")


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
    after = tree.replace(_retry_if_killed(lambda: _changes_of(tree, patch)))
    _check_changed_paths(tree, after, patch)
    return after


def _check_against(tree: Tree, patch: Patch) -> None:
    """Check the claims that the tree alone can refute, before git runs. Raises PatchError."""
    new_paths = {file.new_path for file in patch.files if file.kind in ("add", "rename")}
    for file in patch.files:
        if file.old_path is not None and file.old_path not in tree:
            raise PatchError(f"the diff changes {file.old_path!r}, which does not exist")
        if file.old_path is not None and content_problem(file.old_path, tree):
            raise PatchError(f"the diff changes {file.old_path!r}, which is a binary file")
        if file.kind in ("add", "rename") and file.new_path in tree:
            raise PatchError(f"the diff adds {file.new_path!r}, which exists already")
        if (
            file.kind == "delete"
            and file.old_path is not None
            and tree[file.old_path].executable is not file.executable
        ):
            raise PatchError(f"the diff deletes {file.path!r} under another mode than it has")
    gone = {file.old_path for file in patch.files if file.kind in ("delete", "rename")}
    if new_paths:
        files = (tree.keys() - gone) | new_paths
        for path in new_paths:
            assert path is not None
            parents = {str(parent) for parent in PurePosixPath(path).parents}
            if parents & files or any(str(other).startswith(f"{path}/") for other in files):
                raise PatchError(f"the diff adds {path!r}, but a file and a folder cannot have one name")


def _changes_of(tree: Tree, patch: Patch) -> dict[str, FileEntry | None]:
    """Let git apply the patch to copies of the files that it names.

    Returns path -> new entry, None if deleted.
    """
    with (
        full_disk_reported(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="selfplay-apply-") as name,
    ):
        folder = Path(name) / "files"
        folder.mkdir()
        text, expected = _write_old_files(folder, tree, patch)
        _git_apply(folder, text, patch)
        found = {item.name: item for item in folder.iterdir()}
        if found.keys() != expected.keys() or any(
            item.is_symlink() or not item.is_file() for item in found.values()
        ):
            raise PatchError("the diff adds or deletes other files than it claims")
        changes: dict[str, FileEntry | None] = {path: None for file in patch.files for path in file.paths}
        for item_name, (path, executable) in expected.items():
            changes[path] = FileEntry(found[item_name].read_bytes(), executable)
    return changes


def _write_old_files(folder: Path, tree: Tree, patch: Patch) -> tuple[str, dict[str, tuple[str, bool]]]:
    """Write the patch's old files into `folder` under numbers.

    Returns the patch over these names, and the files that git must leave: name -> (path, executable).
    """
    sections: list[str] = []
    expected: dict[str, tuple[str, bool]] = {}
    for number, file in enumerate(patch.files):
        old, new = f"{number:04}", f"{number:04}-new" if file.kind == "rename" else f"{number:04}"
        if file.old_path is not None:
            entry = tree[file.old_path]
            (folder / old).write_bytes(entry.content)
            if entry.executable:
                (folder / old).chmod(0o755)
        if file.new_path is not None:
            executable = file.executable if file.old_path is None else tree[file.old_path].executable
            expected[new] = (file.new_path, executable)
        sections.append(file.text(old, new))
    return "".join(sections), expected


def _check_changed_paths(before: Tree, after: Tree, patch: Patch) -> None:
    """Raise PatchError unless exactly the paths changed that the patch claims to change."""
    changed = before.changed_paths(after)
    if tuple(changed) != patch.changed_paths:
        silent = sorted(set(patch.changed_paths) ^ set(changed))
        raise PatchError(f"the diff does not do what it claims to these files: {silent[:5]}")


def _git_apply(folder: Path, text: str, patch: Patch) -> None:
    done = _git(["apply", "--whitespace=nowarn", "-p1", "-"], folder, diff_bytes(text))
    if done.returncode != 0:
        raise PatchError(f"the diff does not apply: {_with_paths(done.stderr, patch)}")


def _with_paths(stderr: bytes, patch: Patch) -> str:
    """git's error message with our numbered file names replaced by the paths of the diff."""
    message = stderr.decode("utf-8", "replace").strip().replace("\n", "; ")

    def path(found: re.Match[str]) -> str:
        number = int(found[1])
        return patch.files[number].path if number < len(patch.files) else found[0]

    return re.sub(r"(?<!\S)(\d{4})(?:-new)?(?=:)", path, message)[:500]


# ---- running git


class _GitKilled(PatchError):
    """SIGKILL ended git. The diff is hardly the cause: memory ran out, or somebody killed git."""


def _retry_if_killed(run: Callable[[], Result]) -> Result:
    """Call `run`, up to GIT_TRIES times while git is killed in it.

    A killed git says nothing about the diff and may leave half of its work, so `run` must start anew.
    """
    for _ in range(GIT_TRIES - 1):
        with suppress(_GitKilled):
            return run()
    return run()


def _git(arguments: Sequence[str], folder: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run git in `folder` without any configuration, repository or attribute of this machine.

    Raises PatchError after GIT_TIMEOUT_S or if git is killed, DiskFullError, and PrerequisiteError.
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
            input=stdin,
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
        raise PatchError(f"git did not work the diff out within {GIT_TIMEOUT_S:.0f} s") from error
    if done.returncode == -signal.SIGKILL:
        raise _GitKilled(f"git was killed {GIT_TRIES} times while it worked the diff out")
    # Only git itself writes the end of a line here: file names are our numbers, and -v is not set.
    if done.returncode and (full := FULL_DISK.search(done.stderr)):
        raise DiskFullError(folder, full[1].decode())
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
        done = _retry_if_killed(lambda: _git(["diff", *options, "--", "old", "new"], folder))
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
