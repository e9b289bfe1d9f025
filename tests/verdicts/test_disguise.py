"""Test files in disguise: which tests are renamed, which are copied, and the result of each copy."""

import ast
import random

import pytest

from selfplay.outcomes import TestOutcomes
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.disguise import COIN_FLIPS, MOST_CASES, Disguise, compared_with_nothing, disguise

PATH = "tests/test_sums.py"
SOURCE = '''"""Sums."""
import unittest


def add(a, b):
    return a + b


def test_add():
    """Two and two."""
    assert add(2, 2) == 4


def test_early():
    if add(1, 1) == 2:
        return
    raise AssertionError


class TestMore(unittest.TestCase):
    def test_difference(self):
        self.assertEqual(add(3, -1), 2)
'''
FIRST = f"{PATH}::test_add"
EARLY = f"{PATH}::test_early"
METHOD = f"{PATH}::TestMore::test_difference"


def tree(source: str = SOURCE) -> Tree:
    return Tree({PATH: FileEntry(source.encode())})


def disguised(
    source: str = SOURCE,
    wanted: tuple[str, ...] = (FIRST,),
    others: tuple[str, ...] = (EARLY, METHOD),
    seed: int = 0,
) -> Disguise | None:
    return disguise(tree(source), (PATH, "tests/absent.py"), wanted, others, random.Random(seed))


def run(found: Disguise, add: str = "") -> dict[str, bool]:
    """Whether each test of the file passes, without a runner. `add` replaces the honest code under test."""
    names: dict[str, object] = {}
    exec(found.tree.text(PATH), names)
    exec(add, names)
    results = {}

    def call(name: str, function: object) -> None:
        try:
            function()
            results[f"{PATH}::{name}"] = True
        except AssertionError:
            results[f"{PATH}::{name}"] = False

    for name, value in list(names.items()):
        if name.startswith("test_"):
            call(name, value)
    case = names["TestMore"]
    for name in dir(case):
        if name.startswith("test_"):
            call(f"TestMore::{name}", getattr(case(name), name))
    return results


@pytest.mark.parametrize("seed", range(20))
def test_wanted_tests_pass_under_new_names_and_copies_pass_or_fail_as_they_must(seed):
    found = disguised(wanted=(FIRST, METHOD), others=(EARLY,), seed=seed)
    results = run(found)
    outcomes = TestOutcomes(
        frozenset(name for name, passed in results.items() if passed),
        frozenset(name for name, passed in results.items() if not passed),
    )
    assert FIRST not in results and METHOD not in results
    assert found.not_passed(outcomes, (FIRST, METHOD, EARLY)) == ()
    assert found.all_copies_failed(outcomes)
    assert len(found.must_fail) + sum(map(len, found.honest.values())) >= COIN_FLIPS
    for wanted in (FIRST, METHOD):
        assert any(name.startswith(f"{wanted}_") for name in found.must_fail)


def test_a_test_that_fails_fails_in_every_copy_from_the_same_line():
    found = disguised(others=(METHOD,))
    wrong = "def add(a, b):\n    return 5"
    assert not any(run(found, wrong).values())


def test_a_value_that_agrees_with_everything_does_not_pass_for_one_that_fails():
    found = disguised(others=())
    agree = "add = lambda a, b: type('A', (int,), {'__eq__': lambda s, o: True})(0)"
    results = run(found, agree)
    assert any(results[name] for name in found.must_fail), "the copy that compares with nothing passes"


def test_names_and_endings_differ_each_time():
    assert disguised(seed=1).names != disguised(seed=2).names


def test_parameters_do_not_change():
    source = "import pytest\n\n@pytest.mark.parametrize('n', [1, 2])\ndef test_n(n):\n    assert n == n\n"
    found = disguised(source, (f"{PATH}::test_n[1]",), (f"{PATH}::test_n[2]",))
    assert {name.partition("[")[2] for name in found.names.values()} == {"1]", "2]"}
    assert all(name.partition("::test_n_")[2] for name in found.must_fail)


@pytest.mark.parametrize(
    "source",
    {
        "named elsewhere": "def test_add():\n    pass\n\nALL = [test_add]\n",
        "named in a text": "ORDER = 'test_add first'\ndef test_add():\n    pass\n",
        "examples from a hash of its source": (
            "from hypothesis import given\n@given(1)\ndef test_add(n):\n    pass\n"
        ),
        "inherited": "class Base:\n    def test_add(self):\n        pass\n",
        "does not parse": "def test_add(:\n",
    }.items(),
    ids=lambda case: case[0],
)
def test_tests_that_cannot_be_renamed_are_not_changed(source):
    assert disguised(source[1], others=()) is None


def test_other_ids_than_pytests_are_left_alone():
    assert disguised(wanted=("test_add",), others=()) is None
    assert disguised(wanted=("tests/other.py::test_add",), others=()) is None


def test_a_test_with_many_cases_gets_few_copies():
    many = tuple(f"{FIRST}[{number}]" for number in range(MOST_CASES + 1))
    found = disguised(wanted=many, others=())
    assert len(found.must_fail) <= 2 * len(many) and not found.honest


def test_a_test_nested_deeper_than_can_be_written_is_left_alone():
    deep = "def test_add():\n    assert " + "-" * 900 + "1 == 1\n"
    assert disguised(deep, others=()) is None or ast.parse(disguised(deep, others=()).tree.text(PATH))


@pytest.mark.parametrize(
    ("source", "expected"),
    {
        "assert f(1) == 2": "assert f(1) == object()",
        "assert 2 == f(1)": "assert object() == f(1)",
        "assert f(1) == g(2)": "assert f(1) == object()",
        "x = f(1); assert x == 3": "assert x == object()",
        "self.assertEqual(f(1), 2)": "self.assertEqual(f(1), object())",
        "self.assertEqual(2, f(1))": "self.assertEqual(object(), f(1))",
        "assert f(1) != 2": None,
        "assert f(1)": None,
        "assert 1 == f(1) == 1": None,
        "if x:\n        assert f(1) == 2": None,
    }.items(),
)
def test_only_a_comparison_that_always_runs_is_compared_with_an_unequal_object(source, expected):
    function = ast.parse(f"def test(self):\n    {source}\n").body[0]
    found = compared_with_nothing(function)
    assert (found is None) == (expected is None)
    if expected:
        assert ast.unparse(found.body[-1]) == expected
