"""A suite: which files hold a repository's tests, and the script and parser that run them and read their log.

Reading the hints of a repository's line is the job of `test_hints`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from selfplay.repositories.import_failures import hints_to_extend
from selfplay.repositories.recording import printable, run_recorded
from selfplay.repositories.scripts import RECORDS_IDS, command_script, standard_parser, standard_script
from selfplay.repositories.test_failures import refused_options, with_cause
from selfplay.sandbox.base import WORKSPACE
from selfplay.source.path_policy import OTHER_CODE, is_other_code, is_protected_path

if TYPE_CHECKING:
    from selfplay.repositories.dependencies import Dependencies
    from selfplay.repositories.test_hints import PytestArguments, TestCommand
    from selfplay.repositories.trial import BuildJob, Trial
    from selfplay.source.trees import Tree

MAX_NOTE = 600  # characters
DOCUMENTS = (".rst", ".txt", ".md")  # they may hold doctests
COLLECT_OPTIONS = (
    "--collect-only -q -rsE --color=no --no-header --disable-warnings --rootdir=. "
    "--continue-on-collection-errors -p no:cacheprovider"
)


@dataclass(frozen=True)
class Suite:
    """The tests of a repository.

    command  runs them all; None if pytest runs them, with `options`
    notes    for people: which options and files do not run
    """

    files: tuple[str, ...]
    options: str = ""
    command: TestCommand | None = None
    notes: tuple[str, ...] = ()

    @property
    def script(self) -> str:
        """Runs the tests and prints the log that `parser` reads."""
        if self.command is not None:
            return command_script(self.command.command)
        return standard_script(self.files, self.options)

    @property
    def parser(self) -> str:
        """Reads the log from stdin and prints an outcome for each test id."""
        return standard_parser(self.options) if self.command is None else self.command.parser

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
        files = (
            path for path in self.files if any(name.startswith(f"{printable(path)}::") for name in test_ids)
        )
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


@dataclass(frozen=True)
class Collected:
    """What pytest collected.

    files          the files with tests
    only_doctests  code files whose only tests are doctests: a bug may change them, so they are no tests
    failed         how many files and folders pytest could not collect
    has_odd_ids    whether pytest's summary cannot carry some test id
    log            what pytest printed
    """

    files: tuple[str, ...]
    only_doctests: tuple[str, ...]
    failed: int
    has_odd_ids: bool
    log: str


def collect(trial: Trial, arguments: PytestArguments) -> tuple[Collected, PytestArguments]:
    """Let pytest collect the tests, and leave out options of the repository's own that pytest refuses.

    If there are no roots and pytest finds nothing, it tries the files whose names look like tests.
    """
    while True:
        found = _collect_below(trial, arguments.options, arguments.roots)
        remaining = arguments.without(refused_options(found.log))
        if remaining == arguments:
            break
        arguments = remaining
    if not found.files and not arguments.roots:
        likely = _likely_test_files(trial.job.checkout.tree)
        other = _collect_below(trial, arguments.options, likely) if likely else found
        found = other if other.files else found
    return found, arguments


def pytest_suite(
    job: BuildJob, collected: Collected, arguments: PytestArguments, dependencies: Dependencies
) -> Suite:
    """The suite of collected tests. Its script prints ids in full if pytest's summary cannot carry one.

    Raises EnvironmentBuildError, with the cause, if pytest found no test.
    """
    tree, log = job.checkout.tree, collected.log
    given = hints_to_extend(job.checkout.spec, dependencies)
    if not collected.files:
        reason = with_cause("no test was found", log, tree, given)
        if collected.only_doctests:
            reason = (
                f"its only tests are doctests in {len(collected.only_doctests)} files of its code, "
                "which a bug may change: the tests must be in files of their own"
            )
        raise job.error_of_run(reason, "collect", log)
    notes = []
    if arguments.left_out:
        notes.append(f"runs without the options {', '.join(map(' '.join, arguments.left_out))}")
    if collected.failed:
        notes.append(with_cause(f"{collected.failed} files or folders are left out", log, tree, given))
    notes = [printable(note[:MAX_NOTE]) for note in notes]
    for note in notes:
        job.report(note)
    recorder = f" {RECORDS_IDS}" if collected.has_odd_ids else ""
    return Suite(collected.files, f"{arguments.options}{recorder}", notes=tuple(notes))


def _collect_below(trial: Trial, options: str, roots: Sequence[str]) -> Collected:
    script = f"cd {WORKSPACE} && python -m pytest {COLLECT_OPTIONS} {options} {shlex.join(roots)}\n"
    log, record = run_recorded(trial, script, "collection_recorder.py", "collected.json", "collect")
    return read_collected(trial.job.checkout.tree, log, record)


def read_collected(tree: Tree, log: str, record: Any) -> Collected:
    """Read what the collection recorder wrote. The repository's code may have changed it, so it may have any
    form; parts of another form are left out.
    """
    parts = record if isinstance(record, dict) else {}
    listed, failed = parts.get("only_doctests"), parts.get("failed")
    files: list[str] = []
    doctests: list[str] = []
    for path, only_doctests in sorted(listed.items()) if isinstance(listed, dict) else ():
        if path not in tree or path.startswith("-") or not path.endswith((".py", *DOCUMENTS)):
            continue
        is_code = path.endswith(".py") and only_doctests is True and not is_protected_path(path, tree)
        (doctests if is_code else files).append(path)
    return Collected(
        tuple(files),
        tuple(doctests),
        len(failed) if isinstance(failed, list) else 0,
        parts.get("odd_ids") is True,
        log,
    )


def _likely_test_files(tree: Tree) -> list[str]:
    """Files that pytest's own patterns miss: tests.py, test.py, and modules below test/ or tests/."""
    return [
        path
        for path in sorted(tree)
        if re.search(r"(^|/)(tests?\.py|tests?/[A-Za-z]\w*\.py)$", path) and not path.endswith("/conftest.py")
    ]
