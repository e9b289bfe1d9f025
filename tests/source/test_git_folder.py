"""The `.git` folder that is made without git: real git reads it as one that git made."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from selfplay.source.git_folder import git_archive
from selfplay.source.trees import FileEntry, Tree

WHO = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CEILING_DIRECTORIES": "/",
    **{f"GIT_{role}_NAME": "selfplay" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "selfplay@localhost" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_DATE": "2000-01-01T00:00:00Z" for role in ("AUTHOR", "COMMITTER")},
}
TREES = {
    "empty": Tree(),
    "plain": Tree({"a.py": FileEntry(b"x = 1\n"), "bin/run": FileEntry(b"#!/bin/sh\n", executable=True)}),
    "names": Tree(
        {
            # A folder sorts as if its name ended in a slash, so after `a.b` and before `a0`.
            "a/z": FileEntry(b"1"),
            "a.b": FileEntry(b"2"),
            "a0": FileEntry(b"3"),
            "git~1": FileEntry(b"4"),
            "with space/\u00fcn\u00efcode": FileEntry(b"5"),
            "\udcff\udcfe": FileEntry(b"no text"),
            "long/" + "n" * 200: FileEntry(b"6"),
            "empty": FileEntry(b""),
        }
    ),
    "large": Tree({f"d{n % 7}/f{n}": FileEntry(bytes(range(256)) * n) for n in range(300)}),
    "ignored": Tree(
        {
            ".gitignore": FileEntry(b"*.log\n"),
            "kept.log": FileEntry(b"x\r\n"),
            ".gitattributes": FileEntry(b"* text ident\n"),
        }
    ),
}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, env=WHO, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("name", TREES)
def test_git_reads_the_folder_as_its_own(name: str, tmp_path: Path) -> None:
    tree = TREES[name]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
        tree.write_to(folder)
    with tarfile.open(fileobj=io.BytesIO(git_archive(tree))) as archive:
        archive.extractall(ours, filter="data")
    git(theirs, "init", "-q", "-b", "main", ".")
    git(theirs, "config", "core.protectNTFS", "false")
    (theirs / ".git/info").mkdir(exist_ok=True)
    (theirs / ".git/info/attributes").write_bytes((ours / ".git/info/attributes").read_bytes())
    git(theirs, "add", "--all", "--force", ".")
    git(theirs, "commit", "-q", "--allow-empty", "-m", "The repository as it is")
    assert git(ours, "rev-parse", "HEAD") == git(theirs, "rev-parse", "HEAD")
    assert git(ours, "status", "--porcelain") == ""
    assert git(ours, "ls-files", "-s", "-z") == git(theirs, "ls-files", "-s", "-z")
    assert git(ours, "-c", "fsck.hasDotgit=ignore", "fsck", "--full", "--strict") == ""
    assert git(ours, "rev-list", "--all", "--count").strip() == "1"


def test_a_change_shows_as_a_difference_and_can_be_committed(tmp_path: Path) -> None:
    TREES["plain"].write_to(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(git_archive(TREES["plain"]))) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "a.py").write_text("x = 2\n")
    assert git(tmp_path, "status", "--porcelain") == " M a.py\n"
    assert "-x = 1\n+x = 2\n" in git(tmp_path, "diff")
    git(tmp_path, "commit", "-qam", "two")
    assert git(tmp_path, "status", "--porcelain") == ""


def test_equal_trees_give_equal_bytes() -> None:
    again = Tree({path: TREES["names"][path] for path in reversed(list(TREES["names"]))})
    assert git_archive(again) == git_archive(TREES["names"])
