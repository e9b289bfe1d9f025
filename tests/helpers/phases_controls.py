"""The controls of the attacks on the phases of judging: each removes one defence from the real code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from selfplay.attacks import Ground
from selfplay.attacks.ground import CODE
from selfplay.repositories.environment import Environment
from selfplay.sandbox.base import Sandbox
from selfplay.source.trees import Tree
from selfplay.verdicts.bug import BugState
from selfplay.verdicts.checks import Finding
from selfplay.verdicts.house import House
from selfplay.verdicts.perturbation import noisy
from selfplay.verdicts.second_grading import SecondGrader, void
from selfplay.verdicts.test_runs import ScriptRun, TestRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    Control = Callable[[pytest.MonkeyPatch, Ground], None]


def no_control_run(patch: pytest.MonkeyPatch, _: Ground) -> None:
    """Ask only whether the repaired code passes again."""
    patch.setattr(SecondGrader, "_shows_no_bug", lambda *_: False)


def seeds_by_phase(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    """The seeds of earlier versions: 0 for first runs, 1, 2, … for repeats, 7919 for the second grading."""

    def known(
        self: TestRunner, environment: Environment, tree: Tree, script: str, number: int
    ) -> tuple[ScriptRun, bool]:
        return self._run_script(environment, tree, script, number), True

    patch.setattr(TestRunner, "_known_script", known)
    patch.setattr(SecondGrader, "_hash_seed", lambda _: 7919)
    no_control_run(patch, ground)


def void_if_not_repeated(patch: pytest.MonkeyPatch, _: Ground) -> None:
    patch.setattr(SecondGrader, "_not_repeated", lambda self, cause, failed: void(cause))


def no_exit_status(patch: pytest.MonkeyPatch, _: Ground) -> None:
    read = TestRunner._script_log

    def no_status(self: TestRunner, box: Sandbox) -> tuple[bytes, int, str]:
        log, _, error = read(self, box)
        return log, 0, error

    patch.setattr(TestRunner, "_script_log", no_status)


def own_script_and_parser(patch: pytest.MonkeyPatch, ground: Ground) -> None:
    """Grade with the artifact's own script and parser, and take no notice of the exit status."""

    def own(bug: BugState, *_: object) -> House:
        artifact = bug.artifact
        return House(artifact.test_script, artifact.test_parser, bug.fail_to_pass, bug.pass_to_pass)

    patch.setattr("selfplay.verdicts.grading.house_of", own)
    no_exit_status(patch, ground)
    no_control_run(patch, ground)


def first_runs_changed(patch: pytest.MonkeyPatch, _: Ground) -> None:
    """Change the first runs of a validation too: then none shows what a solver sees."""
    known = TestRunner._known_script

    def changed(
        self: TestRunner, environment: Environment, tree: Tree, script: str, number: int
    ) -> tuple[ScriptRun, bool]:
        if number == 0:
            tree = noisy(environment.tree, tree, [CODE], self.secret, tree.digest)
        return known(self, environment, tree, script, number)

    patch.setattr(TestRunner, "_known_script", changed)


CONTROLS: dict[str, Control] = {
    "phase-seed": seeds_by_phase,
    "phase-disguise": no_control_run,
    "time-bomb": no_control_run,
    "phase-workspace": first_runs_changed,
    "void-at-will": void_if_not_repeated,
    "script-heals": own_script_and_parser,
    "parser-lies": own_script_and_parser,
    "script-own-tests": lambda patch, _: patch.setattr(
        "selfplay.verdicts.validator.judge_exit_status", lambda *_: Finding(True)
    ),
}
