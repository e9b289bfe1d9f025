"""Reads the hints `test=` and `parser=` of a repository's line. Runs nothing.

Without a parser, pytest runs the tests. With one, the command of `test=` runs them, and the parser reads its
output.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from selfplay import parts
from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.dependencies import UNWANTED, Dependencies
from selfplay.repositories.pytest_configuration import (
    Configuration,
    find_configuration,
    other_configurations,
)
from selfplay.repositories.pytest_options import (
    RUNS_NO_TEST,
    Option,
    matching_paths,
    plugins_of,
    sort_options,
    split_words,
    without_options,
)
from selfplay.runtime.resources import resource
from selfplay.source.path_policy import is_protected_path, is_runner_path, is_test_path

if TYPE_CHECKING:
    from selfplay.repositories.specs import RepositorySpec
    from selfplay.source.trees import Tree

# Parsers that selfplay brings along, files of data/parsers. All of them are part of an environment's key.
PARSERS = parts.names_of("parser")


# ---- tests that pytest runs


@dataclass(frozen=True)
class PytestArguments:
    """How pytest is called: the hint, and the repository's own default options.

    fixed         settings that a run overrides, before all options
    own           options of the repository's configuration
    given         options of the hint
    roots         folders and files where the tests are; () for what the configuration says
    left_out      options of both that no run gets
    requirements  plugins that these options and the configuration need
    """

    own: tuple[Option, ...] = ()
    given: tuple[Option, ...] = ()
    roots: tuple[str, ...] = ()
    fixed: tuple[Option, ...] = (("-o", "addopts="),)
    left_out: tuple[Option, ...] = ()
    requirements: tuple[str, ...] = ()

    @property
    def options(self) -> str:
        """The options of every run, as a shell reads them."""
        return shlex.join(word for option in (*self.fixed, *self.own, *self.given) for word in option)

    def missing_in(self, dependencies: Dependencies) -> tuple[str, ...]:
        """The requirements of plugins that the repository's own dependencies do not name."""
        known = {
            canonicalize_name(Requirement(text).name) for text in (*dependencies.runtime, *dependencies.test)
        }
        return tuple(
            text for text in self.requirements if canonicalize_name(Requirement(text).name) not in known
        )

    def without(self, refused: Collection[str]) -> PytestArguments:
        """Without the repository's own options that pytest refuses. The hint's stay: a user wants them."""
        own = without_options(self.own, refused)
        gone = tuple(option for option in self.own if option not in own)
        return replace(self, own=own, left_out=(*self.left_out, *gone))

    def with_own(self, option: Option) -> PytestArguments:
        """With one more option, once."""
        return self if option in self.own else replace(self, own=(*self.own, option))


def read_pytest_hint(hint: str | None, tree: Tree) -> PytestArguments:
    """Read `test="pytest OPTIONS PATHS"` and the repository's own options, which stay as far as they choose
    or configure tests.

    Raises EnvironmentBuildError for another command, and for words that no run can use.
    """
    paths = {str(parent) for path in tree for parent in PurePosixPath(path).parents} | set(tree)
    given = split_words(_hint_words(hint), paths)
    hinted = sort_options(given.options)
    if hint is not None:
        _refuse_unusable(hint, given.options, hinted.configuration, tree)
    roots = _roots(given.arguments, tree, paths, f'test="{hint}"')
    configuration = find_configuration(tree, roots, hinted.configuration)
    if "addopts" in hinted.ini:
        configuration = configuration.with_setting("addopts", hinted.ini["addopts"])
    default = split_words(configuration.words("addopts"), paths)
    own = sort_options(default.options)
    needed = plugins_of((*own.kept, *hinted.kept), configuration.settings)
    return PytestArguments(
        own=_of_every_run(own.kept),
        given=without_options(hinted.kept, {"--pyargs"}),
        roots=roots or _known_roots(default.arguments, paths),
        fixed=_fixed(tree, configuration, hinted.configuration),
        left_out=(*own.left_out, *hinted.left_out),
        requirements=_usable((*configuration.words("required_plugins"), *needed)),
    )


def _hint_words(hint: str | None) -> list[str]:
    """The words after `pytest`."""
    if hint is None:
        return []
    try:
        words = shlex.split(hint)
    except ValueError as error:
        raise EnvironmentBuildError(f'test="{hint}": {error}') from error
    if len(words) > 2 and re.fullmatch(r"python(3(\.\d+)?)?", words[0]) and words[1] == "-m":
        words = words[2:]
    if not words or words[0] not in ("pytest", "py.test"):
        raise EnvironmentBuildError(
            f'test="{hint}": the command must be pytest with options and paths, '
            "as in test=\"pytest -k 'not slow' tests\", "
            "or the line must also say what reads its output, as in parser=tap"
        )
    return words[1:]


def _refuse_unusable(hint: str, options: Sequence[Option], configuration: str, tree: Tree) -> None:
    """Raise EnvironmentBuildError for options that run no test, and for a configuration that is no file."""
    useless = [option[0] for option in options if option[0] in RUNS_NO_TEST]
    if useless:
        raise EnvironmentBuildError(f'test="{hint}": {useless[0]} runs no test; leave it out')
    if configuration and configuration not in tree:
        raise EnvironmentBuildError(f'test="{hint}": the repository has no file {configuration}')
    if configuration and not is_protected_path(configuration):
        raise EnvironmentBuildError(
            f'test="{hint}": a repair could change {configuration}, which has none of pytest\'s own names. '
            "Name it pytest.ini, or put it below tests/"
        )


def _roots(arguments: Sequence[str], tree: Tree, paths: Collection[str], where: str) -> tuple[str, ...]:
    """The files and folders that arguments name: paths, patterns of a shell, or modules (`--pyargs`)."""
    roots: list[str] = []
    for word in arguments:
        if "::" in word:
            raise EnvironmentBuildError(
                f"{where}: {word} is one test; name its file, and choose tests with -k, -m or --deselect"
            )
        found = matching_paths(word, paths) or _module_paths(word, paths)
        if not found:
            raise EnvironmentBuildError(f"{where}: the repository has no file or folder {word}")
        roots += found
    return () if "." in roots else tuple(dict.fromkeys(roots))


def _known_roots(arguments: Sequence[str], paths: Collection[str]) -> tuple[str, ...]:
    """The files and folders that a configuration's default arguments name. Other words name nothing here."""
    named = [word for word in arguments if "::" not in word]
    roots = [path for word in named for path in (matching_paths(word, paths) or _module_paths(word, paths))]
    return () if "." in roots else tuple(dict.fromkeys(roots))


def _module_paths(word: str, paths: Collection[str]) -> tuple[str, ...]:
    """The folder or file of a module's name, at the top or in src, lib or python."""
    stem = word.replace(".", "/")
    names = [f"{root}{stem}{end}" for root in ("", "src/", "lib/", "python/") for end in ("", ".py")]
    return tuple(name for name in names if name in paths)[:1]


def _fixed(tree: Tree, configuration: Configuration, named: str) -> tuple[Option, ...]:
    """The settings that a run overrides.

    The file is named where pytest would take another one for some of the test files.
    """
    fixed: list[Option] = [("-o", "addopts=")]
    if named or (configuration.path and other_configurations(tree, configuration.path)):
        fixed.append(("-c", configuration.path))
    if configuration.words("required_plugins"):
        fixed.append(("-o", "required_plugins="))
    if configuration.is_true("strict_config") or configuration.is_true("strict"):
        # The plugins of some settings are not installed, and the cache is off.
        fixed.append(("-o", "strict_config=false"))
    return tuple(fixed)


def _of_every_run(options: Iterable[Option]) -> tuple[Option, ...]:
    """Without `--pyargs`, since runs name files, and without a profile of hypothesis: `build` adds the one
    that gives the same examples in every run.
    """
    return without_options(options, {"--hypothesis-profile", "--pyargs"})


def _usable(requirements: Iterable[str]) -> tuple[str, ...]:
    """The requirements of plugins to install, each name once; no URLs, and none that disturb runs."""
    chosen: dict[str, str] = {}
    for text in requirements:
        with contextlib.suppress(InvalidRequirement):
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if name not in UNWANTED and not requirement.url:
                chosen.setdefault(name, text)
    return tuple(chosen.values())


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
