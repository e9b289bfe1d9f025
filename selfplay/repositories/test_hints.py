"""The `test=` and `parser=` hints of a list's line, read without running anything."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.specs import RepositorySpec
from selfplay.runtime.resources import resource
from selfplay.source.path_policy import (
    is_runner_path,
    is_test_path,
)
from selfplay.source.trees import Tree

PARSERS = ("tap", "pass-fail")  # that parser= can name besides a file of the repository


# ---- how to run


@dataclass(frozen=True)
class _PytestArguments:
    """A `test` hint taken apart: what it adds to every run, and where it starts looking for tests."""

    options: str
    roots: tuple[str, ...] = ()


def read_test_hint(hint: str | None, tree: Tree) -> _PytestArguments:
    """`test="pytest OPTIONS PATHS"`; without a hint the repository's own default options are put aside, but for how it imports."""
    if hint is None:
        found = re.search(r"--import-mode[= ](prepend|append|importlib)", _configured_options(tree))
        return _PytestArguments("-o addopts=" + (f" --import-mode={found[1]}" if found else ""))
    words = shlex.split(hint)
    words = words[2:] if words[:2] in (["python", "-m"], ["python3", "-m"]) else words
    if not words or words[0] not in ("pytest", "py.test"):
        raise EnvironmentBuildError(
            f'test="{hint}": the command must be pytest with options and paths, as in test="pytest -k \'not slow\' tests", '
            "or the line must also say what reads its output, as in parser=tap"
        )
    folders = {str(parent) for path in tree for parent in PurePosixPath(path).parents}
    roots = tuple(word.rstrip("/") for word in words[1:] if word.rstrip("/") in folders or word in tree)
    return _PytestArguments(
        "-o addopts= " + shlex.join([word for word in words[1:] if word.rstrip("/") not in roots]), roots
    )


@dataclass(frozen=True)
class TestCommand:
    """How tests are run that pytest does not run. files: the tests, and what the command names."""

    __test__ = False  # pytest: a value, not a test class

    command: str
    parser: str
    files: tuple[str, ...]


def read_test_command(spec: RepositorySpec, tree: Tree) -> TestCommand | None:
    """The `test` and `parser` hints together; None without a parser: then pytest runs the tests. Raises EnvironmentBuildError."""
    if spec.parser is None or spec.test is None:
        return None
    own = PurePosixPath(spec.parser).as_posix()
    if spec.parser not in PARSERS and own not in tree:
        raise EnvironmentBuildError(
            f"parser={spec.parser}: choose one of {', '.join(PARSERS)}, or a file of the repository, which has none so called"
        )
    parser = shipped_parser(spec.parser) if spec.parser in PARSERS else tree.text(own)
    named = {PurePosixPath(word).as_posix() for word in re.split(r"[\s;|&()<>'\"=]+", spec.test)} | {own}
    files = tuple(
        path for path in sorted(tree) if (is_test_path(path) or path in named) and not is_runner_path(path)
    )
    if not files:
        raise EnvironmentBuildError(
            f'test="{spec.test}": no file of the repository is a test by its name (tests/…, test_*.c, *.test.js, …), '
            "and the command names none"
        )
    return TestCommand(spec.test, parser, files)


def shipped_parser(name: str) -> str:
    return (resource("data/parsers") / f"{name}.py").read_text(encoding="utf-8")


def _configured_options(tree: Tree) -> str:
    texts = [
        tree.text(path)
        for path in ("pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
        if path in tree
    ]
    return "\n".join(texts)
