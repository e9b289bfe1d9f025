"""The second grading of a passed repair: it finds passes by chance and code that forges results.

The second run has another hash seed, and changes without meaning in the touched files: chance gets a second
random draw. It uses no known results. Its tests are in disguise (`disguise`): they have new names and stand
among copies, some of which cannot pass. If the disguise decides nothing, one test that cannot pass is added
(a canary). A wrong report on such a test shows that the code under test controls the runner.

Limit: code that works out which copy must fail is not found out, since it shares a process with the tests.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.repositories.scripts import is_standard_parser, standard_parser
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.checks import judge_repair
from selfplay.verdicts.confirmation import Confirmation, SecondGrading
from selfplay.verdicts.disguise import Disguise, disguise
from selfplay.verdicts.perturbation import perturb
from selfplay.verdicts.test_runs import TestRun, TestRunner

if TYPE_CHECKING:
    from selfplay.repositories.environment import Environment
    from selfplay.verdicts.bug import BugState

CONFIRMATION_SEED = 7919  # far from the seeds that validation uses
FAILED_TESTS = 1  # pytest's exit status for tests that ran, and not all passed
# For pytest and for unittest: a script may run either.
CANARY = """

def {name}():
    raise AssertionError("this test cannot pass")


class Test_{name}(__import__("unittest").TestCase):
    def {name}(self):
        raise AssertionError("this test cannot pass")
"""


def _forged(reason: str) -> SecondGrading:
    """The code forges results, so the attempt failed and there is no pass to confirm."""
    return SecondGrading(Confirmation.NOT_NEEDED, reason)


def _not_repeated(cause: str, failed: tuple[str, ...]) -> SecondGrading:
    return SecondGrading(Confirmation.NOT_CONFIRMED, f"passed once and not again: {cause}", failed)


@dataclass(frozen=True)
class _DisguisedRun:
    """A run of disguised tests.

    is_honest   each copy that must fail was reported as failed, and pytest's exit status says so too
    not_passed  wanted tests that did not pass under each of their names
    """

    run: TestRun
    is_honest: bool
    not_passed: tuple[str, ...]


@dataclass(frozen=True)
class SecondGrader:
    """Grades a passed attempt once more.

    final       the tree that passed: the attempt's code with the original's tests
    touched     code files that the bug or the attempt changed
    test_files  of the artifact and of the environment
    """

    bug: BugState
    environment: Environment
    runner: TestRunner
    final: Tree
    touched: Sequence[str]
    test_files: Sequence[str]

    def grade(self) -> SecondGrading:
        """The second grading. Attempts that end in one tree are one piece of evidence, so they share it.

        Raises SandboxUnavailable.
        """
        artifact = self.bug.artifact
        wanted = (*self.bug.fail_to_pass, "", *self.bug.pass_to_pass)
        return self.runner.confirm(
            self.environment, self.final, artifact.test_script, artifact.test_parser, wanted, self._grade
        )

    @property
    def _has_standard_parser(self) -> bool:
        return is_standard_parser(self.bug.artifact.test_parser)

    @property
    def _pytest_parser(self) -> str:
        """The parser of pytest's log: the artifact's if it is a standard one, else the environment's."""
        own = self.bug.artifact.test_parser
        return own if is_standard_parser(own) else standard_parser(self.environment.options)

    def _grade(self) -> SecondGrading:
        again = perturb(self.final, self.touched, CONFIRMATION_SEED)
        found = self._in_disguise(again)
        if found is not None and (
            found.confirmation is not Confirmation.CONFIRMED or self._has_standard_parser
        ):
            return found
        # The standard parser read the disguised run. An artifact's own parser reads a run with a canary.
        return self._beside_a_canary(again)

    def _run(self, tree: Tree) -> tuple[TestRun, tuple[str, ...]]:
        """A fresh run with the artifact's parser, and the tests that do not pass."""
        artifact = self.bug.artifact
        run = self.runner.run(
            self.environment, tree, artifact.test_script, artifact.test_parser, CONFIRMATION_SEED, fresh=True
        )
        return run, judge_repair(run.outcomes, self.bug.fail_to_pass, self.bug.pass_to_pass)

    # ---- tests in disguise

    def _in_disguise(self, again: Tree) -> SecondGrading | None:
        """The grading by disguised tests.

        None if they decide nothing: they cannot be disguised, or the original's code fails them too.
        """
        script, fail_to_pass = self.bug.artifact.test_script, self.bug.fail_to_pass
        if not self.runner.suits_disguise(self.environment, script, fail_to_pass):
            return None
        to_repair, others = self._pytest_ids()
        disguised = disguise(again, self.test_files, to_repair, others, secrets.SystemRandom())
        if disguised is None:
            return None
        wanted = (*to_repair, *others)
        original = self.environment.tree.restore(disguised.tree, disguised.paths)
        control = self._run_tests(original)
        disguised = disguised.settled(control.outcomes)
        if not disguised.must_fail or control.exit_code != FAILED_TESTS:
            self.runner.refuse_disguise(self.environment, script, fail_to_pass)
            return None
        second = self._run_disguised(disguised, wanted)
        if second.run.error:  # a slow machine may be the cause
            second = self._run_disguised(disguised, wanted)
        if second.is_honest and not second.not_passed:
            return SecondGrading(Confirmation.CONFIRMED)
        return self._judge_disguised(again, disguised, second)

    def _pytest_ids(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tests to repair and the others, by pytest's ids.

        An artifact's own parser may use other ids. Then the tests are read from pytest's log, and matched by
        the names of their functions.
        """
        if self._has_standard_parser:
            return self.bug.fail_to_pass, self.bug.pass_to_pass
        script = self.bug.artifact.test_script
        run = self.runner.run(self.environment, self.final, script, self._pytest_parser, 0)
        seen = run.outcomes.passed & self.environment.baseline.passed
        functions = {short_name(test_id) for test_id in self.bug.fail_to_pass}
        to_repair = tuple(sorted(test_id for test_id in seen if short_name(test_id) in functions))
        return to_repair, tuple(sorted(seen.difference(to_repair)))

    def _run_tests(self, tree: Tree) -> TestRun:
        """A fresh run that the parser of pytest's log reads."""
        script = self.bug.artifact.test_script
        return self.runner.run(
            self.environment, tree, script, self._pytest_parser, CONFIRMATION_SEED, fresh=True
        )

    def _run_disguised(self, disguised: Disguise, wanted: Sequence[str]) -> _DisguisedRun:
        run = self._run_tests(disguised.tree)
        is_honest = disguised.all_copies_failed(run.outcomes) and run.exit_code == FAILED_TESTS
        return _DisguisedRun(run, is_honest, disguised.not_passed(run.outcomes, wanted))

    def _judge_disguised(self, again: Tree, disguised: Disguise, second: _DisguisedRun) -> SecondGrading:
        """Why a disguised run is not a pass, when the original's code passes the same tests."""
        run, failed = second.run, second.not_passed
        if disguised.must_fail & run.outcomes.passed:
            return _forged(
                "a copy of a test that cannot pass was reported as passed: the code forges its results"
            )
        if not second.is_honest:
            missing_copies = "copies of tests are missing from the results"
            problem = run.error or f"{missing_copies}, or the exit status {run.exit_code} belies them"
            return _forged(f"{problem}: the code forges or suppresses results")
        plain, missing = self._run(again)
        if plain.error or missing or disguised.is_chance(run.outcomes, failed):
            return _not_repeated(plain.error or ", ".join(missing[:5] or failed[:5]), missing or failed)
        names = ", ".join(failed[:5])
        return _forged(
            f"passes under its own name and under no other, so the code forges its result: {names}"
        )

    # ---- a canary

    def _beside_a_canary(self, again: Tree) -> SecondGrading:
        """The grading by the wanted tests and one test that cannot pass."""
        name = f"test_canary_{secrets.token_hex(8)}"
        tree = add_canary(again, self.test_files, self.bug.fail_to_pass, name)
        run, failed = self._run(tree)
        if run.error:  # a slow machine may be the cause
            run, failed = self._run(tree)
        if any(name in test_id for test_id in run.outcomes.passed):
            return _forged("a test that cannot pass was reported as passed: the code forges its results")
        if problem := self._suppression(run, name):
            return _forged(f"a test that must fail {problem}: the code forges or suppresses results")
        if run.error or failed:  # a script that stops at the first failure stopped at the canary
            run, failed = self._run(again)
        if run.error or failed:
            return _not_repeated(run.error or ", ".join(failed[:5]), failed)
        return SecondGrading(Confirmation.CONFIRMED)

    def _suppression(self, run: TestRun, name: str) -> str:
        """How the code hides the failure of the canary `name`, "" if it does not.

        A run of the original's code shows what is normal: some scripts never run an added test, and some do
        not pass on the exit status.
        """
        is_reported = _reports(run, name)
        if is_reported and run.exit_code != 0:
            return ""
        original = add_canary(self.environment.tree, self.test_files, self.bug.fail_to_pass, name)
        trusted, _ = self._run(original)
        if not _reports(trusted, name) or (is_reported and trusted.exit_code == 0):
            return ""
        return "was reported, and the exit status is 0" if is_reported else "is missing from the results"


def short_name(test_id: str) -> str:
    """The function that a test id names last, whichever form the id has."""
    return re.split(r"::|\.", test_id.partition("[")[0])[-1]


def _reports(run: TestRun, name: str) -> bool:
    """Whether a test called `name` is reported as failed."""
    return any(name in test_id for test_id in run.outcomes.failed)


def add_canary(tree: Tree, test_files: Sequence[str], fail_to_pass: Sequence[str], name: str) -> Tree:
    """Add a failing test called `name` to the test file that `fail_to_pass` most likely names.

    The ids come from the injector's parser, so they need not begin with a path. Without Python tests the tree
    stays as it is.
    """
    functions = {short_name(test_id) for test_id in fail_to_pass}

    def likelihood(path: str) -> tuple[bool, bool]:
        is_named = any(test_id.startswith(path) for test_id in fail_to_pass)
        return is_named, any(f"def {function}(" in tree.text(path) for function in functions)

    paths = [path for path in sorted(set(test_files)) if path.endswith(".py") and path in tree]
    if not paths:
        return tree
    path = max(paths, key=likelihood)
    entry = tree[path]
    return tree.replace(
        {path: FileEntry(entry.content + CANARY.format(name=name).encode(), entry.executable)}
    )
