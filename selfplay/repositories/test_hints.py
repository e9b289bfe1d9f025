"""Reads the hints `test=` and `parser=` of a repository's line. Runs nothing.

Without a parser, pytest runs the tests. With one, the command of `test=` runs them, and the parser reads its
output.
"""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from selfplay import parts
from selfplay.errors import EnvironmentBuildError
from selfplay.runtime.resources import resource
from selfplay.source.path_policy import is_runner_path, is_test_path

if TYPE_CHECKING:
    from selfplay.repositories.specs import RepositorySpec
    from selfplay.source.trees import Tree

# Parsers that selfplay brings along, files of data/parsers. All of them are part of an environment's key.
PARSERS = parts.names_of("parser")
PYTEST_CONFIGURATION = ("pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")


# ---- tests that pytest runs


@dataclass(frozen=True)
class PytestArguments:
    """A `test` hint in parts. options: of every run; roots: folders and files where the tests are."""

    options: str
    roots: tuple[str, ...] = ()


def read_pytest_hint(hint: str | None, tree: Tree) -> PytestArguments:
    """Read `test="pytest OPTIONS PATHS"`. Raises EnvironmentBuildError for another command.

    The repository's own default options are switched off. Without a hint its import mode stays.
    """
    if hint is None:
        found = re.search(r"--import-mode[= ](prepend|append|importlib)", _configured_options(tree))
        return PytestArguments("-o addopts=" + (f" --import-mode={found[1]}" if found else ""))
    words = shlex.split(hint)
    words = words[2:] if words[:2] in (["python", "-m"], ["python3", "-m"]) else words
    if not words or words[0] not in ("pytest", "py.test"):
        raise EnvironmentBuildError(
            f'test="{hint}": the command must be pytest with options and paths, '
            "as in test=\"pytest -k 'not slow' tests\", "
            "or the line must also say what reads its output, as in parser=tap"
        )
    folders = {str(parent) for path in tree for parent in PurePosixPath(path).parents}
    roots = tuple(word.rstrip("/") for word in words[1:] if word.rstrip("/") in folders or word in tree)
    options = shlex.join([word for word in words[1:] if word.rstrip("/") not in roots])
    return PytestArguments(f"-o addopts= {options}", roots)


def _configured_options(tree: Tree) -> str:
    return "\n".join(tree.text(path) for path in PYTEST_CONFIGURATION if path in tree)


# ---- tests that a command of the repository runs


@dataclass(frozen=True)
class TestCommand:
    """A command that runs all tests.

    parser: the text of a Python program. files: the tests, and the files that the command names.
    """

    __test__ = False  # pytest: a value, not a test class

    command: str
    parser: str
    files: tuple[str, ...]


def read_test_command(spec: RepositorySpec, tree: Tree) -> TestCommand | None:
    """Read the hints `test` and `parser`. None without a parser.

    Raises EnvironmentBuildError if there is no such parser, or if no file is a test.
    """
    if spec.parser is None or spec.test is None:
        return None
    own = PurePosixPath(spec.parser).as_posix()
    if spec.parser in PARSERS:
        parser = shipped_parser(spec.parser)
    elif parts.is_own(spec.parser):
        parser = parser_program(spec.parser)
    elif own in tree:
        parser = tree.text(own)
    else:
        raise EnvironmentBuildError(
            f"parser={spec.parser}: choose one of {', '.join(PARSERS)}, or a file of the repository; "
            "it has no such file"
        )
    named = {PurePosixPath(word).as_posix() for word in re.split(r"[\s;|&()<>'\"=]+", spec.test)} | {own}
    files = tuple(
        path for path in sorted(tree) if (is_test_path(path) or path in named) and not is_runner_path(path)
    )
    if not files:
        raise EnvironmentBuildError(
            f'test="{spec.test}": no file of the repository is a test by its name '
            "(tests/…, test_*.c, *.test.js, …), and the command names none"
        )
    return TestCommand(spec.test, parser, files)


def parser_program(name: str) -> str:
    """The program around a parser of one's own, `package.module:function`: log text -> test id -> outcome.

    The program holds the text of the function's module. It runs in a sandbox, so this module may import the
    standard library only. Raises PartError if the function cannot be loaded.
    """
    function = parts.load("parser", name)
    with parts.blamed("parser", name):
        source = inspect.getsource(sys.modules[function.__module__])
    return (
        "import json, sys\n"
        f"module = {{'__name__': 'parser'}}\nexec(compile({source!r}, 'parser', 'exec'), module)\n"
        "log = sys.stdin.buffer.read().decode('utf-8', 'replace')\n"
        f"json.dump(module[{function.__name__!r}](log), sys.stdout)\n"
    )


def shipped_parser(name: str) -> str:
    """The text of one of PARSERS."""
    return (resource("data/parsers") / f"{name}.py").read_text(encoding="utf-8")
