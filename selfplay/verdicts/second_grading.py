"""The second grading of a passed repair: it finds passes by chance, bugs that know their judge, forgeries.

Two runs are made under one hash seed, with one disguise and with changes without meaning from one seed, in an
order by coin. The repaired code must pass again. The unrepaired bug (the control) must not pass: if it does,
the bug depends on chance, on the clock or on the phase, and it is void.

Tests are in disguise (`disguise`): they have new names and stand among copies, some of which cannot pass. A
wrong report on such a copy shows that the code under test controls the runner. A run of the original's code
shows which copies do fail for right code, and whether the tests suit a disguise at all. It holds no code of a
policy, so one run serves all attempts at a bug, and they share its disguise. Where no disguise fits, the
tests run as they are, and one test that cannot pass is added (a canary).

Script and parser are the house's (`house`). Limit: code that works out which copy must fail is not found out,
since it shares a process with the tests.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.checks import judge_repair
from selfplay.verdicts.confirmation import Confirmation, SecondGrading
from selfplay.verdicts.disguise import Disguise, disguise
from selfplay.verdicts.house import House, status_belies
from selfplay.verdicts.perturbation import SECOND_GRADING, noisy

if TYPE_CHECKING:
    import random

    from selfplay.repositories.environment import Environment
    from selfplay.verdicts.bug import States
    from selfplay.verdicts.test_runs import TestRun, TestRunner

DRAWS = 2  # of a disguise: a changed test that fails halfway may spoil the tests after it
FAILED_TESTS = 1  # pytest's exit status for tests that ran, and not all passed
# Further runs of the unrepaired bug, after an attempt that passed once and not again. They and the control
# find a bug that passes by chance with p = 0.26 in 1 - 0.74^5 = 78 % of cases.
CONTROL_REPEATS = 4
# For pytest and for unittest: a script may run either.
CANARY_TESTS = """

def {name}():
    raise AssertionError("this test cannot pass")


class Test_{name}(__import__("unittest").TestCase):
    def {name}(self):
        raise AssertionError("this test cannot pass")
"""


def _forged(reason: str) -> SecondGrading:
    return SecondGrading(Confirmation.FORGED, reason)


def void(reason: str) -> SecondGrading:
    return SecondGrading(Confirmation.NOT_CONFIRMED, f"the bug is void: {reason}")


@dataclass(frozen=True)
class SecondGrader:
    """Grades a passed attempt once more.

    states      the trees of the bug
    house       how its tests are run
    final       the tree that passed: the attempt's code with the original's tests
    touched     code files that the bug or the attempt changed
    test_files  of the artifact and of the environment
    """

    environment: Environment
    runner: TestRunner
    states: States
    house: House
    final: Tree
    touched: Sequence[str]
    test_files: Sequence[str] = field(default=())

    def grade(self) -> SecondGrading:
        """The second grading. Attempts at a bug that end in one tree are one piece of evidence, and share it.

        Raises SandboxUnavailable.
        """
        return self.runner.confirm(self.environment, self._parts, self._grade)

    @property
    def _parts(self) -> tuple[str, ...]:
        house, trees = self.house, (self.final, self.states.buggy)
        digests = (tree.digest for tree in trees)
        return (*digests, house.script, house.parser, *house.fail_to_pass, "", *house.pass_to_pass)

    @cached_property
    def _generator(self) -> random.Random:
        return self.runner.secret.generator("second grading", self.environment.key, *self._parts)

    @cached_property
    def _numbers(self) -> Iterator[int]:
        """The number of each draw of changes without meaning."""
        return itertools.count()

    def _grade(self) -> SecondGrading:
        return self._in_disguise() or self._undisguised()

    # ---- runs

    def _noisy(self, *trees: Tree) -> list[Tree]:
        """The trees with changes without meaning, all of them from one new seed."""
        parts = (SECOND_GRADING, self.final.digest, str(next(self._numbers)))
        original, secret = self.states.original, self.runner.secret
        return [noisy(original, tree, self.touched, secret, *parts) for tree in trees]

    def _run_both(self, repaired: Tree, buggy: Tree) -> tuple[TestRun, TestRun]:
        """A new run of the repaired and of the unrepaired code, under one hash seed, in an order by coin."""
        hash_seed = self._hash_seed()
        if self._generator.random() < 0.5:
            control = self._run(buggy, hash_seed, may_repeat=False)
            return self._run(repaired, hash_seed), control
        return self._run(repaired, hash_seed), self._run(buggy, hash_seed, may_repeat=False)

    def _hash_seed(self) -> int:
        return self.runner.secret.hash_seed(f"{self._generator.getrandbits(128):x}")

    def _run(self, tree: Tree, hash_seed: int, may_repeat: bool = True) -> TestRun:
        """A new run, and another one if there was an error: a slow machine may be the cause."""
        house = self.house
        run = self.runner.run(self.environment, tree, house.script, house.parser, hash_seed=hash_seed)
        return self._run(tree, hash_seed, may_repeat=False) if run.error and may_repeat else run

    def _missing(self, run: TestRun) -> tuple[str, ...]:
        """The wanted tests that do not pass."""
        return judge_repair(run.outcomes, self.house.fail_to_pass, self.house.pass_to_pass)

    def _shows_no_bug(self, run: TestRun, disguised: Disguise | None = None) -> bool:
        """Whether a run of the unrepaired bug passes all tests that the bug breaks.

        disguised: what the tests run in; None for their own names.
        """
        broken = self.house.fail_to_pass
        if disguised is not None:
            return not disguised.not_passed(run.outcomes, broken)
        return not judge_repair(run.outcomes, broken, ())

    def _not_repeated(self, cause: str, failed: Sequence[str]) -> SecondGrading:
        """The attempt passed once and not again. Runs of the unrepaired bug decide whether it is void."""
        for _ in range(CONTROL_REPEATS):
            [control] = self._noisy(self.states.buggy)
            if self._shows_no_bug(self._run(control, self._hash_seed(), may_repeat=False)):
                return void("without a repair, the tests that it breaks pass in some runs")
        reason = f"passed once and not again: {cause}"
        return SecondGrading(Confirmation.NOT_REPEATED, reason, tuple(failed))

    # ---- tests in disguise

    def _in_disguise(self) -> SecondGrading | None:
        """The grading by disguised tests.

        None if they decide nothing: they cannot be disguised, or the original's code fails them too.
        """
        disguised = self._fitting_disguise()
        if disguised is None:
            return None
        repaired, buggy = (
            tree.restore(disguised.tree, disguised.paths)
            for tree in self._noisy(self.final, self.states.buggy)
        )
        run, control = self._run_both(repaired, buggy)
        if self._shows_no_bug(control, disguised):
            return void("without a repair, the disguised tests that it breaks pass")
        return self._judge_disguised(disguised, run)

    def _fitting_disguise(self) -> Disguise | None:
        """The bug's disguise, settled by a run of the original's code; None if there is none that fits."""
        house, environment, runner = self.house, self.environment, self.runner
        script, broken, original = house.script, house.fail_to_pass, self.states.original
        if not house.names_functions or not runner.suits_disguise(environment, script, broken):
            return None
        parts = (environment.key, self.states.buggy.digest, script, *broken)
        for draw in range(DRAWS):
            generator = runner.secret.generator("disguise", *parts, str(draw))
            disguised = disguise(original, self.test_files, broken, house.pass_to_pass, generator)
            if disguised is None:
                return None
            run = runner.run(environment, disguised.tree, script, house.parser)
            if run.error:
                return None
            settled = disguised.settled(run.outcomes)
            is_honest = settled.must_fail and run.exit_code == FAILED_TESTS
            if is_honest and not settled.not_passed(run.outcomes, house.wanted):
                return settled
        runner.refuse_disguise(environment, script, broken)
        return None

    def _judge_disguised(self, disguised: Disguise, run: TestRun) -> SecondGrading:
        """What the run of the repaired code says, when the original's code passes the same tests."""
        failed = disguised.not_passed(run.outcomes, self.house.wanted)
        is_honest = disguised.all_copies_failed(run.outcomes) and run.exit_code == FAILED_TESTS
        if is_honest and not failed:
            return SecondGrading(Confirmation.CONFIRMED)
        if disguised.must_fail & run.outcomes.passed:
            return _forged(
                "a copy of a test that cannot pass was reported as passed: the code forges its results"
            )
        if not is_honest:
            missing_copies = "copies of tests are missing from the results"
            problem = run.error or f"{missing_copies}, or the exit status {run.exit_code} belies them"
            return _forged(f"{problem}: the code forges or suppresses results")
        [again] = self._noisy(self.final)
        plain = self._run(again, self._hash_seed())
        missing = self._missing(plain)
        if plain.error or missing or disguised.is_chance(run.outcomes, failed):
            cause = missing or failed
            return self._not_repeated(plain.error or ", ".join(cause[:5]), cause)
        names = ", ".join(failed[:5])
        return _forged(
            f"passes under its own name and under no other, so the code forges its result: {names}"
        )

    # ---- without a disguise

    def _undisguised(self) -> SecondGrading:
        """The grading by the tests as they are, a test that cannot pass, and the exit status."""
        name = f"test_canary_{self._generator.getrandbits(64):016x}"
        repaired, buggy = self._noisy(self.final, self.states.buggy)
        with_canary = self._with_canary(repaired, name)
        has_canary = with_canary != repaired
        run, control = self._run_both(with_canary, self._with_canary(buggy, name))
        if self._shows_no_bug(control):
            return void("without a repair, the tests that it breaks pass")
        if has_canary and (problem := self._suppression(run, name)):
            return _forged(problem)
        missing = self._missing(run)
        if has_canary and (run.error or missing):  # a script that stops at a failure stopped at the canary
            has_canary, run = False, self._run(repaired, self._hash_seed())
            missing = self._missing(run)
        if run.error or missing:
            return self._not_repeated(run.error or ", ".join(missing[:5]), missing)
        if not has_canary and (problem := status_belies(run, self.house, self.environment, self.runner)):
            return _forged(problem)
        return SecondGrading(Confirmation.UNDISGUISED)

    def _with_canary(self, tree: Tree, name: str) -> Tree:
        return add_canary(tree, self.test_files, self.house.fail_to_pass, name)

    def _suppression(self, run: TestRun, name: str) -> str:
        """How the code hides the failure of the canary `name`, "" if it does not.

        A run of the original's code shows what is normal: some scripts never run an added test, and some do
        not pass on the exit status.
        """
        if any(name in test_id for test_id in run.outcomes.passed):
            return "a test that cannot pass was reported as passed: the code forges its results"
        is_reported = _reports(run, name)
        if is_reported and run.exit_code != 0:
            return ""
        trusted = self._run(self._with_canary(self.states.original, name), self._hash_seed())
        if not _reports(trusted, name) or (is_reported and trusted.exit_code == 0):
            return ""
        how = "was reported, and the exit status is 0" if is_reported else "is missing from the results"
        return f"a test that must fail {how}: the code forges or suppresses results"


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
        {path: FileEntry(entry.content + CANARY_TESTS.format(name=name).encode(), entry.executable)}
    )
