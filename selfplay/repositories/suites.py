"""A suite: which files hold a repository's tests, and the script and parser that run them and read their log.

Reading the hints of a repository's line is the job of `test_hints`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selfplay.repositories.scripts import command_script, standard_parser, standard_script
from selfplay.sandbox.base import WORKSPACE
from selfplay.source.path_policy import OTHER_CODE, is_other_code, is_protected_path

if TYPE_CHECKING:
    from selfplay.repositories.test_hints import TestCommand
    from selfplay.repositories.trial import Trial
    from selfplay.source.trees import Tree

COLLECT_OPTIONS = (
    "--collect-only -q --color=no --no-header --disable-warnings --rootdir=. "
    "--continue-on-collection-errors -p no:cacheprovider"
)


@dataclass(frozen=True)
class Suite:
    """The tests of a repository. command: runs them all; None if pytest runs them, with `options`."""

    files: tuple[str, ...]
    options: str = ""
    command: TestCommand | None = None

    @property
    def script(self) -> str:
        """Runs the tests and prints the log that `parser` reads."""
        if self.command is not None:
            return command_script(self.command.command)
        return standard_script(self.files, self.options)

    @property
    def parser(self) -> str:
        """Reads the log from stdin and prints an outcome for each test id."""
        return standard_parser() if self.command is None else self.command.parser

    @property
    def code_suffixes(self) -> tuple[str, ...]:
        """The suffixes of the files that the tests can be tests of."""
        return (".py",) if self.command is None else (".py", *OTHER_CODE)

    def narrowed_to(self, test_ids: Collection[str]) -> Suite:
        """The suite of the files that hold these tests.

        The same suite if a command runs it: its ids name no files.
        """
        if self.command is not None:
            return self
        files = (path for path in self.files if any(name.startswith(f"{path}::") for name in test_ids))
        return replace(self, files=tuple(files))

    def code_files(self, tree: Tree) -> list[str]:
        """The files of code under test, sorted.

        If a command runs the tests and no file is known as code: all files.
        """
        paths = [path for path in sorted(tree) if not is_protected_path(path, tree)]
        if self.command is None:
            return [path for path in paths if path.endswith(".py")]
        paths = [path for path in paths if path not in self.files]
        return [path for path in paths if path.endswith(".py") or is_other_code(path)] or paths


def collect(trial: Trial, options: str, roots: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Let pytest collect the tests below `roots`, or in the whole workspace. Returns their files and the log.

    If there are no roots and pytest finds nothing, it tries the files whose names look like tests.
    """
    tree, log = trial.job.checkout.tree, ""
    for names in (roots, _likely_test_files(tree)):
        script = f"cd {WORKSPACE} && python -m pytest {COLLECT_OPTIONS} {options} {shlex.join(names)}\n"
        log = trial.run(tree, script, "collect").text
        found = {line.partition("::")[0] for line in log.splitlines() if "::" in line}
        files = [path for path in found if path in tree and path.endswith(".py") and not path.startswith("-")]
        if files or roots:
            return tuple(sorted(files)), log
    return (), log


def _likely_test_files(tree: Tree) -> list[str]:
    """Files that pytest's own patterns miss: tests.py, test.py, and modules below test/ or tests/."""
    return [
        path
        for path in sorted(tree)
        if re.search(r"(^|/)(tests?\.py|tests?/[A-Za-z]\w*\.py)$", path) and not path.endswith("/conftest.py")
    ]
