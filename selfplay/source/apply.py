"""Patches applied to trees, and diffs between trees, both by git.

Invariant: git sees only patches that are written here, over file names that are made here, outside any repository. Paths, modes
and attributes that a diff's author chose never reach a command line, a folder or a configuration of this machine.
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

from selfplay.errors import DiskFullError, PatchError, PrerequisiteError, full_disk_told
from selfplay.source.diffs import SECTION, FilePatch, Kind, Patch, label, parse_patch, path_problem
from selfplay.source.trees import FileEntry, Tree

Result = TypeVar("Result")
GIT_TIMEOUT_S = 60.0
GIT_TRIES = 3
FULL_DISK = re.compile(rb": (No space left on device|Disk quota exceeded|File too large)$", re.MULTILINE)


# ---- applying


def apply_patch(tree: Tree, patch_text: str, max_bytes: int = 1 << 24) -> Tree:
    """The tree after the diff. Raises PatchError unless it applies cleanly and does exactly what it claims."""
    return apply_parsed(tree, parse_patch(patch_text, max_bytes))


def apply_parsed(tree: Tree, patch: Patch) -> Tree:
    if patch.is_empty:
        return tree
    _check_against(tree, patch)
    return _until_answered(lambda: _apply_once(tree, patch))


def _apply_once(tree: Tree, patch: Patch) -> Tree:
    with (
        full_disk_told(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="selfplay-apply-") as name,
    ):
        folder = Path(name) / "files"
        folder.mkdir()
        sections: list[str] = []
        expected: dict[str, tuple[str, bool]] = {}  # file in the folder -> path it stands for, executable
        for number, file in enumerate(patch.files):
            old, new = f"{number:04}", f"{number:04}-new" if file.kind == "rename" else f"{number:04}"
            if file.old_path is not None:
                entry = tree[file.old_path]
                (folder / old).write_bytes(entry.content)
                if entry.executable:
                    (folder / old).chmod(0o755)
            if file.new_path is not None:
                expected[new] = (
                    file.new_path,
                    file.executable if file.old_path is None else tree[file.old_path].executable,
                )
            sections.append(file.text(old, new))
        _git_apply(folder, "".join(sections), patch)
        found = {item.name: item for item in folder.iterdir()}
        if found.keys() != expected.keys() or any(
            item.is_symlink() or not item.is_file() for item in found.values()
        ):
            raise PatchError("the diff adds or deletes other files than it claims")
        changes: dict[str, FileEntry | None] = {path: None for file in patch.files for path in file.paths}
        for item_name, (path, executable) in expected.items():
            changes[path] = FileEntry(found[item_name].read_bytes(), executable)
    after = tree.replace(changes)
    _check_claim(tree, after, patch)
    return after


def _check_against(tree: Tree, patch: Patch) -> None:
    """The claims that the tree itself can refute."""
    new_paths = {file.new_path for file in patch.files if file.kind in ("add", "rename")}
    for file in patch.files:
        if file.old_path is not None and file.old_path not in tree:
            raise PatchError(f"the diff changes {file.old_path!r}, which does not exist")
        if file.old_path is not None and b"\0" in tree[file.old_path].content:
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


def _check_claim(before: Tree, after: Tree, patch: Patch) -> None:
    changed = before.changed_paths(after)
    if tuple(changed) != patch.changed_paths:
        silent = sorted(set(patch.changed_paths) ^ set(changed))
        raise PatchError(f"the diff does not do what it claims to these files: {silent[:5]}")


def _git_apply(folder: Path, text: str, patch: Patch) -> None:
    done = _git(["apply", "--whitespace=nowarn", "-p1", "-"], folder, text.encode())
    if done.returncode != 0:
        raise PatchError(f"the diff does not apply: {_with_paths(done.stderr, patch)}")


def _with_paths(stderr: bytes, patch: Patch) -> str:
    """git's complaint with the paths that the diff's author knows."""
    message = stderr.decode("utf-8", "replace").strip().replace("\n", "; ")

    def path(found: re.Match[str]) -> str:
        number = int(found[1])
        return patch.files[number].path if number < len(patch.files) else found[0]

    return re.sub(r"(?<!\S)(\d{4})(?:-new)?(?=:)", path, message)[:500]


class _GitKilled(PatchError):
    """What killed git was not the diff, or hardly: memory ran out, or somebody did it."""


def _until_answered(ask: Callable[[], Result]) -> Result:
    """A git that was killed has said nothing about the diff, and may have left half of it: all that `ask` does is done again."""
    for _ in range(GIT_TRIES - 1):
        with suppress(_GitKilled):
            return ask()
    return ask()


def _git(arguments: Sequence[str], folder: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """git without any configuration, repository or attribute of this machine."""
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
    # Its own words: with names that are made here and without -v, nothing of a diff's author stands at the end of a line.
    if done.returncode and (full := FULL_DISK.search(done.stderr)):
        raise DiskFullError(folder, full[1].decode())
    return done


# ---- comparing


def diff_trees(before: Tree, after: Tree) -> str:
    """What turns `before` into `after`, as `apply_patch` reads it; "" when contents are equal.

    Executable bits of files that both have are not compared. Raises PatchError for files or names that a text diff cannot hold.
    """
    paths = [
        path
        for path in before.changed_paths(after)
        if path not in before or path not in after or before[path].content != after[path].content
    ]
    if not paths:
        return ""
    for path in paths:
        problem = path_problem(path) or content_problem(path, before) or content_problem(path, after)
        if problem:
            raise PatchError(problem)
    return "".join(
        _diff_file(path, before.files.get(path), after.files.get(path), hunks)
        for path, hunks in _hunks_between(before, after, paths)
    )


def content_problem(path: str, tree: Tree) -> str:
    """Why the content of `path` cannot stand in a text diff, "" when it can (or is not there)."""
    entry = tree.files.get(path)
    if entry is None:
        return ""
    if b"\0" in entry.content:
        return f"{path!r} is a binary file"
    try:
        entry.content.decode("utf-8")
    except UnicodeDecodeError:
        return f"{path!r} is not UTF-8 text"
    return ""


def _hunks_between(before: Tree, after: Tree, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each path with the hunks between its two contents ("" when one is empty or missing and so is the other)."""
    with (
        full_disk_told(Path(tempfile.gettempdir())),
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
        done = _until_answered(lambda: _git(["diff", *options, "--", "old", "new"], folder))
    if done.returncode not in (0, 1):
        raise PatchError(
            f"git cannot compare the trees: {done.stderr.decode('utf-8', 'replace').strip()[:300]}"
        )
    hunks: dict[int, list[str]] = {}
    lines: list[str] = []
    in_hunks = False
    for line in done.stdout.decode("utf-8").split("\n")[:-1]:
        if line.startswith(SECTION):
            lines = hunks.setdefault(int(line.rpartition("/")[2]), [])
            in_hunks = False
        elif line.startswith("@@"):
            in_hunks = True
            lines.append(line)
        elif in_hunks:
            lines.append(line)
    for number, path in enumerate(paths):
        yield path, "".join(f"{line}\n" for line in hunks.get(number, ()))


def _diff_file(path: str, old: FileEntry | None, new: FileEntry | None, hunks: str) -> str:
    kind: Kind = "add" if old is None else "delete" if new is None else "modify"
    only = new if old is None else old if new is None else None
    executable = only is not None and only.executable
    file = FilePatch(path, None if old is None else path, None if new is None else path, kind, executable)
    if not hunks:
        return file.text()
    label_old, label_new = label("a/", file.old_path), label("b/", file.new_path)
    return f"{file.text()}--- {label_old}\n+++ {label_new}\n{hunks}"
