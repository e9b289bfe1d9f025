"""Controls of the attacks in `attacks.forged_values`: each removes one defence from the real code."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Collection, Sequence

import pytest

from selfplay.attacks import Ground
from selfplay.source.trees import Tree
from selfplay.verdicts import disguise as disguises
from selfplay.verdicts.altered_tests import Source, Spot
from selfplay.verdicts.disguise import Disguise, disguise
from selfplay.verdicts.renamable_tests import RenamableTest, find_renamable, split_id

Control = Callable[[pytest.MonkeyPatch, Ground], Ground | None]


def believe_all_copies(patch: pytest.MonkeyPatch, _: Ground) -> None:
    """What must fail may pass."""
    patch.setattr("selfplay.verdicts.disguise.Disguise.all_copies_failed", lambda *_: True)


def compare_with_an_object(patch: pytest.MonkeyPatch, _: Ground) -> None:
    """A changed test compares with an object that equals nothing, which code can see."""

    def spot(source: Source, node: ast.Constant, generator: random.Random) -> Spot:
        return Spot(source.start(node), source.end(node), (b"object()",))

    patch.setattr("selfplay.verdicts.altered_tests._of_literal", spot)


def show_the_right_form_more_often(patch: pytest.MonkeyPatch, _: Ground) -> None:
    choose = disguises._choose_forms

    def choose_more(tests: Sequence[RenamableTest], wanted: frozenset[str], generator: random.Random) -> None:
        choose(tests, wanted, generator)
        for test in tests:
            test.forms += [(), ()]

    patch.setattr("selfplay.verdicts.disguise._choose_forms", choose_more)


def rename_eight_tests(patch: pytest.MonkeyPatch, _: Ground) -> None:
    patch.setattr("selfplay.verdicts.disguise.find_renamable", lambda *given: find_renamable(*given)[:8])


def disguise_one_file(patch: pytest.MonkeyPatch, _: Ground) -> None:
    """Disguise only the files of the tests to repair."""

    def in_one_file(
        tree: Tree,
        files: Collection[str],
        wanted: Sequence[str],
        others: Sequence[str],
        generator: random.Random,
    ) -> Disguise | None:
        paths = {split_id(name)[0] for name in wanted}
        beside = [name for name in others if split_id(name)[0] in paths]
        return disguise(tree, files, wanted, beside, generator)

    patch.setattr("selfplay.verdicts.second_grading.disguise", in_one_file)


CONTROLS: dict[str, Control] = {
    "agree-with-values": compare_with_an_object,
    "no-exception": believe_all_copies,
    "read-frame": believe_all_copies,
    "majority": show_the_right_form_more_often,
    "patch-unittest": believe_all_copies,
    "patch-raises": believe_all_copies,
    "many-tests": rename_eight_tests,
    "other-file": disguise_one_file,
}
