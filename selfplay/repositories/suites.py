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
from selfplay.repositories.recorders import COLLECTION, printable, read_record, run_with_plugin
from selfplay.repositories.scripts import RECORDS_IDS, command_script, standard_parser, standard_script
from selfplay.repositories.test_failures import ends_python, refused_options, with_cause
from selfplay.sandbox.base import WORKSPACE
from selfplay.source.path_policy import OTHER_CODE, is_other_code, is_protected_path

if TYPE_CHECKING:
    from selfplay.repositories.dependencies import Dependencies
    from selfplay.repositories.test_hints import PytestArguments, TestCommand
    from selfplay.repositories.trial import BuildJob, Trial
    from selfplay.source.trees import Tree

MAX_NOTE = 600  # characters
# Markers of plugins that are not installed, in a project that turns warnings into errors.
UNKNOWN_MARK = "PytestUnknownMarkWarning: Unknown pytest.mark."
IGNORE_UNKNOWN_MARKS = ("-W", "ignore::pytest.PytestUnknownMarkWarning")
SIGNAL = 128  # the exit status of a process that signal n ended is 128 + n
MAX_HARMFUL = 3  # files
IMPORTING = "importing.txt"  # of the collection recorder
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
    harmful        files left out, since they end Python when they are imported, or never end
    """

    files: tuple[str, ...]
    only_doctests: tuple[str, ...]
    failed: int
    has_odd_ids: bool
    log: str
    harmful: tuple[str, ...] = ()


def collect(trial: Trial, arguments: PytestArguments) -> tuple[Collected, PytestArguments]:
    """Let pytest collect the tests, and leave out options of the repository's own that pytest refuses.

    If there are no roots and pytest finds nothing, it tries the files whose names look like tests.
    """
    while True:
        found = _collect_below(trial, arguments.options, arguments.roots)
        remaining = arguments.without(refused_options(found.log))
        if UNKNOWN_MARK in found.log:
            remaining = remaining.with_own(IGNORE_UNKNOWN_MARKS)
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
        if collected.harmful:
            reason = f"no test was found. {_harmful_text(collected.harmful)}"
            reason += f". {_harmful_remedy(collected.harmful[0])}"
        raise job.error_of_run(reason, "collect", log)
    notes = []
    if arguments.left_out:
        notes.append(f"runs without the options {', '.join(map(' '.join, arguments.left_out))}")
    if collected.failed:
        notes.append(with_cause(f"{collected.failed} files or folders are left out", log, tree, given))
    if collected.harmful:
        notes.append(f"{_harmful_text(collected.harmful)}: left out")
    notes = [printable(note[:MAX_NOTE]) for note in notes]
    for note in notes:
        job.report(note)
    recorder = f" {RECORDS_IDS}" if collected.has_odd_ids else ""
    return Suite(collected.files, f"{arguments.options}{recorder}", notes=tuple(notes))


def _harmful_text(paths: Sequence[str]) -> str:
    return f"{', '.join(paths)} ends Python when it is imported, or its import does not end"


def _harmful_remedy(path: str) -> str:
    return (
        'Guard the call there (unittest.main(), sys.exit(), …) with if __name__ == "__main__", or let the '
        f'file run its own tests with the hint test="python {path} -v" parser=unittest'
    )


def _collect_below(trial: Trial, options: str, roots: Sequence[str]) -> Collected:
    """Collect the tests, without files that end Python when they are imported, or never end."""
    tree, timeout_s = trial.job.checkout.tree, trial.job.settings.test_timeout_s
    harmful: list[str] = []
    while True:
        words = [path for path in roots if path not in harmful] + [f"--ignore={path}" for path in harmful]
        call = f"python -m pytest {COLLECT_OPTIONS} {options} {shlex.join(words)}"
        script = f"cd {WORKSPACE} && {call}\n"
        result, files = run_with_plugin(trial, tree, script, COLLECTION, "collect", timeout_s)
        found = read_collected(tree, result.text, read_record(files, COLLECTION))
        importing = files.text(IMPORTING) if IMPORTING in files else ""
        is_ended = result.timed_out or result.exit_code >= SIGNAL or ends_python(result.text)
        is_known = importing in tree and importing not in harmful
        if not is_ended or not is_known or len(harmful) == MAX_HARMFUL or set(roots) == {importing}:
            break
        harmful.append(importing)
    if result.timed_out and not harmful:
        raise trial.too_long("collect", result.text, timeout_s)
    return replace(found, harmful=tuple(harmful))


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
