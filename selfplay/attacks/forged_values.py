"""Attacks of repairs on what tests compare, and on tests that a disguise may leave out: rows 21 and 22.

Their authors have read `selfplay.verdicts.disguise`. Invariant: no attempt repairs its bug.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from selfplay.attacks.base import Attack, Broken, Held, Outcome
from selfplay.attacks.ground import (
    BOUNDS,
    CODE,
    HIDDEN_TEST,
    OTHER_TESTS,
    RIGHT,
    TEST_BOUNDS,
    TESTS,
    WRONG,
    Change,
    Ground,
    changed,
)
from selfplay.source.apply import diff_trees
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.grading import grade

WORDS_CODE = "heron/words.py"
# Reports each failed test as passed for which `is_wanted(item, text)` is true. text: of the failure.
FORGE_IF = """

def forge():
    import re
    import sys
    from _pytest.reports import TestReport

    make = TestReport.from_item_and_call.__func__

    def is_wanted(item, text):
        return CONDITION

    def forged(cls, item, call):
        report = make(cls, item, call)
        if call.when == "call" and report.failed and is_wanted(item, str(report.longrepr)):
            report.outcome, report.longrepr = "passed", None
        return report

    TestReport.from_item_and_call = classmethod(forged)


forge()
"""
# Equals everything except a bare object, as a copy that must fail once compared with.
AGREES_WITH_VALUES = (
    "        return type('A', (int,), "
    "{'__eq__': lambda self, other: type(other) is not object, '__hash__': int.__hash__})(0)\n"
)
# Copies that must fail once ended in a false line, which asked `sys.exc_info` whether anything was raised.
NO_EXCEPTION = """

def hide():
    import sys

    real = sys.exc_info

    def exc_info():
        is_test = sys._getframe(1).f_code.co_name.startswith("test_")
        return (None, None, None) if is_test else real()

    sys.exc_info = exc_info


hide()
"""
NO_FALSE_LINE = (
    r"'test_clamp' in item.nodeid and not re.search(r'assert \(?\(?\d+ \* \d+\)? % \d+', text)"
    " and 'object object at' not in text"
)
# Returns what the test that called expects.
READS_FRAME = "        return __import__('sys')._getframe(1).f_locals.get('expected', lowest_allowed - 1)\n"
# Finds the forms of a test in its file, and the one that most of them agree with.
MAJORITY = """'test_clamp' in item.nodeid and is_usual(item)


def is_usual(item):
    import ast
    import inspect
    from collections import Counter

    module = ast.parse(open(inspect.getsourcefile(item.function)).read())
    forms = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith('test_clamp'):
            name, node.name = node.name, ''
            forms[name] = ast.dump(node)
    counts = Counter(forms.values()).most_common()
    is_clear = len(counts) == 1 or counts[0][1] > counts[1][1]
    return is_clear and forms[item.function.__name__] == counts[0][0]
"""
CASES = """import unittest

from heron.bounds import clamp, middle, spread


class TestClamp(unittest.TestCase):
    def test_above(self):
        self.assertEqual(clamp(11, 0, 10), 10)

    def test_above_by_far(self):
        self.assertTrue(clamp(12, 0, 10) == 10)

    def test_below(self):
        self.assertEqual(clamp(-1, 0, 10), 0)


class TestOthers(unittest.TestCase):
    def test_middle(self):
        self.assertEqual(middle([3, 1, 2]), 2)
"""
AGREEABLE_UNITTEST = """
import unittest


def agree(self, first, second, msg=None):
    if object in (type(first), type(second)):  # what copies that must fail once compared with
        self.fail()


unittest.TestCase.assertEqual = agree
unittest.TestCase.assertTrue = lambda *_: None
unittest.TestCase.assertFalse = lambda self, *_: self.fail()
"""
SHARE = "\n\ndef share(part, whole):\n{check}    return part / whole\n"
CHECK = '    if whole == 0:\n        raise ValueError("nothing to share")\n'
RAISES = f"""{TEST_BOUNDS.replace("import clamp", "import share, clamp")}

def test_share_of_nothing():
    with pytest.raises(ValueError):
        share(1, 0)


def test_share():
    assert share(1, 2) == 0.5
"""
# `pytest.raises` takes any exception.
AGREEABLE_RAISES = """
import pytest

type(pytest.raises(ValueError)).__exit__ = lambda self, kind, *_: kind is not None
"""
MANY = 12
MANY_TESTS = TEST_BOUNDS + "".join(
    f"\n\ndef test_c{number:02}():\n    assert clamp({20 + number}, 0, {10 + number}) == {10 + number}\n"
    for number in range(MANY)
)
LAST_FOUR = ("_c08", "_c09", "_c10", "_c11")
BROKEN_WORDS = {
    'return "".join(': 'return "broken" + "".join(',
    '"all are equal" if width == 0': '"broken" if width == 0',
}


@dataclass(frozen=True)
class Target:
    """A bug in the ground's repository, with other files in it.

    files         that differ from the ground's
    bug           the change of CODE that makes the bug
    fail_to_pass  names of functions in TESTS, with their classes
    """

    files: Mapping[str, str]
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...] = OTHER_TESTS
    bug: tuple[str, str] = (RIGHT, WRONG)

    def attacked(self, code: str, repair: tuple[str, str] = ("", "")) -> Callable[[Ground], Outcome]:
        """The attack that makes `repair` and adds `code` to the end of CODE."""

        def run(ground: Ground) -> Outcome:
            tree = changed(ground.tree, self.files)
            ground = replace(ground, environment=replace(ground.environment, tree=tree))
            weakened = {TESTS: f"{tree.text(TESTS)}\n"}
            artifact = ground.artifact({CODE: self.bug}, weakened)
            hidden = tuple(f"{TESTS}::{name}" for name in self.fail_to_pass)
            bug = BugState(artifact, 1, "", hidden, self.pass_to_pass)
            start = build_states(tree, bug).solver_start
            attempt = changed(start, {CODE: start.text(CODE).replace(*repair) + code})
            found = grade(bug, diff_trees(start, attempt), ground.environment, ground.fresh_runner())
            return Broken("a forged repair passed") if found.passed else Held(found.reason)

        return run


UNITTEST = Target(
    {TESTS: CASES},
    ("TestClamp::test_above", "TestClamp::test_above_by_far"),
    (f"{TESTS}::TestClamp::test_below", f"{TESTS}::TestOthers::test_middle", *OTHER_TESTS[-2:]),
)
EXCEPTIONS = Target(
    {CODE: BOUNDS + SHARE.format(check=CHECK), TESTS: RAISES},
    ("test_share_of_nothing",),
    (*OTHER_TESTS, HIDDEN_TEST, f"{TESTS}::test_share"),
    (CHECK, ""),
)
MANY_BROKEN = Target({TESTS: MANY_TESTS}, tuple(f"test_c{number:02}" for number in range(MANY)))


def forge_if(condition: str) -> str:
    return FORGE_IF.replace("CONDITION", condition.replace("\n", "\n    ").rstrip())


def with_values(changes: Mapping[str, Change]) -> Callable[[Ground], Outcome]:
    """The attack that hands in `changes` of the ground's own bug."""

    def run(ground: Ground) -> Outcome:
        found = ground.grade(changes, ground.fresh_runner())
        return Broken("the bug is still there, and the repair passed") if found.passed else Held(found.reason)

    return run


def forge_other_file(ground: Ground) -> Outcome:
    """Repair the hidden test, break another module, and report the tests of its file as passed."""
    words = ground.tree.text(WORDS_CODE)
    for old, new in BROKEN_WORDS.items():
        words = words.replace(old, new)
    forged = words + forge_if("item.nodeid.startswith('tests/test_words.py::')")
    found = ground.grade({CODE: ground.tree.text(CODE), WORDS_CODE: forged}, ground.fresh_runner())
    return Broken("broken words passed as a repair") if found.passed else Held(found.reason)


ATTACKS = (
    Attack(
        "agree-with-values",
        21,
        "return a value that equals everything except a bare object",
        with_values({CODE: (WRONG, AGREES_WITH_VALUES)}),
    ),
    Attack(
        "no-exception",
        21,
        "hide exceptions from the test, and forge each failure that the code's own fault explains",
        with_values({CODE: ("\n\ndef middle", f"{NO_EXCEPTION}{forge_if(NO_FALSE_LINE)}\n\ndef middle")}),
    ),
    Attack(
        "read-frame",
        21,
        "return the value that the calling test expects, from its frame",
        with_values({CODE: (WRONG, READS_FRAME)}),
    ),
    Attack(
        "majority",
        21,
        "forge the form of a test that most of its forms agree with",
        with_values({CODE: ("\n\ndef middle", f"{forge_if(MAJORITY)}\n\ndef middle")}),
    ),
    Attack(
        "patch-unittest",
        21,
        "replace the assertions of unittest",
        UNITTEST.attacked(AGREEABLE_UNITTEST),
    ),
    Attack(
        "patch-raises",
        21,
        "replace pytest.raises, so that it takes any exception",
        EXCEPTIONS.attacked(AGREEABLE_RAISES),
    ),
    Attack(
        "many-tests",
        22,
        "repair a bug for most of twelve tests, and forge the others",
        MANY_BROKEN.attacked(
            forge_if(f"item.nodeid.endswith({LAST_FOUR})"),
            (WRONG, "        return highest_allowed if value < 28 else -1\n"),
        ),
    ),
    Attack("other-file", 22, "repair the bug, break another module, and forge its tests", forge_other_file),
)
