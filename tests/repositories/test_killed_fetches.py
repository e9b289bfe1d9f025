"""A kill while a repository is fetched for the first time: the next start fetches it."""

from pathlib import Path

import pytest

from selfplay.repositories import git as selfplay_git
from selfplay.repositories.git import fetch_commit, init_bare, read_commit, run_git
from selfplay.repositories.specs import parse_spec
from selfplay.source.trees import FileEntry, Tree


class Killed(BaseException):
    pass


def killed_fetch(git_dir: Path, *arguments: str, **options: object) -> bytes:
    """`run_git`, but a fetch ends with a lock file, as a killed git leaves it."""
    if arguments[0] != "fetch":
        return run_git(git_dir, *arguments, **options)  # type: ignore[arg-type]
    (git_dir / "refs" / "selfplay").mkdir(parents=True)
    (git_dir / "refs" / "selfplay" / "HEAD.lock").touch()
    raise Killed


def test_a_killed_first_fetch_can_be_made_again(tmp_path, monkeypatch):
    source = tmp_path / "source"
    init_bare(source)
    tree = Tree({"module.py": FileEntry(b"answer = 42\n")})
    selfplay_git.commit_trees(source, [("first", tree)])
    spec = parse_spec(str(source))
    with monkeypatch.context() as patch:
        patch.setattr(selfplay_git, "run_git", killed_fetch)
        with pytest.raises(Killed):
            fetch_commit(spec, tmp_path / "cache", str(source), own_config=False)
    assert read_commit(*fetch_commit(spec, tmp_path / "cache", str(source), own_config=False)) == tree
