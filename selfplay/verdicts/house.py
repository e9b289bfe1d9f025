"""The house's way to run a bug's tests: script and parser that no policy wrote, and the tests by their ids.

Grading uses nothing else, so an artifact's script and parser decide about no repair. Whether the house can
show a bug is checked when the bug is validated (`exit_status`).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.errors import SandboxUnavailable
from selfplay.repositories.scripts import is_standard_parser, standard_script
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.checks import Finding, broken_tests, fail, shown

if TYPE_CHECKING:
    from selfplay.repositories.environment import Environment
    from selfplay.verdicts.bug import BugState, States
    from selfplay.verdicts.test_runs import TestRun, TestRunner

REMEDY = (
    "If these tests never end with a status that says how they went, "
    "set validator.require_exit_status = false."
)


@dataclass(frozen=True)
class House:
    """How a bug's tests are run and read. The tests have the ids that `parser` gives them."""

    script: str
    parser: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]

    @property
    def wanted(self) -> tuple[str, ...]:
        return (*self.fail_to_pass, *self.pass_to_pass)

    @property
    def names_functions(self) -> bool:
        """True if ids are pytest's, so that they name functions in test files."""
        return is_standard_parser(self.parser)


def house_of(bug: BugState, environment: Environment, runner: TestRunner, states: States) -> House | None:
    """How the house runs the tests of an accepted bug.

    None if the house's run does not show the bug, though it did when the bug was accepted. If it need not
    (`validator.require_exit_status`), the artifact's own script and parser are used instead.

    If the artifact's script is not the house's, the house's tests are found by running original and buggy
    code. Both results are known from validation. Raises SandboxUnavailable.
    """
    artifact = bug.artifact
    own = House(artifact.test_script, artifact.test_parser, bug.fail_to_pass, bug.pass_to_pass)
    if is_house_made(artifact, environment):
        return own
    script = house_script(environment, artifact)
    original = runner.run(environment, states.original, script, environment.parser)
    buggy = runner.run(environment, states.buggy, script, environment.parser)
    # A buggy run without a result passes nothing: all tests are to be repaired then.
    broken = broken_tests(original.outcomes, buggy.outcomes)
    if original.error and runner.settings.require_exit_status:
        raise SandboxUnavailable(
            f"the original's tests ran when the bug was accepted, and do not now: {original.error}. "
            "Lower train.workers, or raise validator.script_timeout_s."
        )
    if not broken:
        return None if runner.settings.require_exit_status else own
    passing = original.outcomes.passed - broken
    return House(script, environment.parser, tuple(sorted(broken)), tuple(sorted(passing)))


def is_house_made(artifact: Artifact, environment: Environment) -> bool:
    """Whether selfplay or the environment's author wrote both the script and the parser."""
    parser = artifact.test_parser
    is_house_parser = parser == environment.parser or (
        is_standard_parser(parser) and is_standard_parser(environment.parser)
    )
    scripts = (environment.script, environment.script_for(artifact.test_files))
    return is_house_parser and artifact.test_script in scripts


def house_script(environment: Environment, artifact: Artifact) -> str:
    """The house's script for the artifact's test files. It runs no test that fails on the original code.

    So its exit status tells the original from a bug. A test command always runs all of its tests.
    """
    is_whole = artifact.test_script == environment.script
    files = environment.test_files if is_whole else artifact.test_files
    if environment.command:
        return environment.script_for(files)
    failing = environment.excluded_ids
    kept = [path for path in files if path not in failing] or list(files)
    options = [environment.options, *_deselected(environment, kept)]
    return standard_script(kept, " ".join(options)) if len(options) > 1 else environment.script_for(kept)


def _deselected(environment: Environment, files: Sequence[str]) -> list[str]:
    """The options that leave out the tests in `files` that fail on the original code.

    pytest leaves out each id that begins so; an id that would take a passing test along stays.
    """
    found = []
    for test_id in sorted(environment.excluded_ids):
        is_here = test_id.partition("::")[0] in files and "::" in test_id
        if is_here and not any(name.startswith(test_id) for name in environment.baseline.passed):
            found.append(f"--deselect={shlex.quote(test_id)}")
    return found


def status_belies(run: TestRun, house: House, environment: Environment, runner: TestRunner) -> str:
    """How the exit status contradicts a run that reports no failure; "" if it does not.

    The run of the original's code, which is known in most cases, shows what is normal.
    """
    if run.exit_code == 0:
        return ""
    normal = runner.run(environment, environment.tree, house.script, house.parser)
    if normal.error or normal.exit_code == run.exit_code:
        return ""
    return (
        f"every test was reported as passed, and the exit status is {run.exit_code}: "
        "the code forges its results"
    )


def judge_exit_status(original: TestRun, buggy: TestRun) -> Finding:
    """Whether the house's run tells the original from the bug: by its exit status and by its tests."""
    broken = broken_tests(original.outcomes, buggy.outcomes)
    evidence = {"original": original.exit_code, "buggy": buggy.exit_code, "broken": shown(broken)}
    who = "the house's script for test_files.txt"
    for state, run in (("the original code", original), ("the bug", buggy)):
        if run.error:
            return fail(f"{who}, with {state}: {run.error}", **evidence)
    if original.exit_code != 0:
        reason = f"{who} ends with status {original.exit_code} on the original code, not 0"
        return fail(f"{reason}. {REMEDY}", **evidence)
    if buggy.exit_code == 0:
        reason = f"{who} ends with status 0 with the bug too, so it does not notice the bug"
        return fail(f"{reason}. {REMEDY}", **evidence)
    if not broken:
        return fail(f"{who} fails with the bug, but no test that passed before fails or is gone", **evidence)
    return Finding(True, "", evidence)
