"""Test files in disguise: new names, changed tests, and what a run of right code settles."""

import ast
import random
from collections import Counter

import pytest

from selfplay.outcomes import TestOutcomes
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.disguise import (
    CHANGED_SHARE,
    LEAST_CHANGED,
    MOST_CHANGED,
    Disguise,
    disguise,
)
from selfplay.verdicts.renamable_tests import MOST_SOURCE_BYTES, split_id

PATH = "tests/test_sums.py"
OTHER_PATH = "tests/test_other.py"
SOURCE = '''"""Sums."""
import unittest


def add(a, b):
    return a + b


# Two and two.
def test_add():
    """Two and two."""
    assert add(2, 2) == 4  # four


def test_early():
    if add(1, 1) == 2:
        return
    raise AssertionError


class TestMore(unittest.TestCase):
    def test_difference(self):
        self.assertEqual(add(3, -1), 2)'''
OTHER = "from sums import add\n\n\ndef test_zero():\n    assert add(0, 0) == 0\n"
FIRST = f"{PATH}::test_add"
EARLY = f"{PATH}::test_early"
METHOD = f"{PATH}::TestMore::test_difference"
ZERO = f"{OTHER_PATH}::test_zero"


def tree(source: str = SOURCE, other: str = "") -> Tree:
    return Tree({PATH: FileEntry(source.encode()), OTHER_PATH: FileEntry(other.encode())})


def disguised(
    source: str = SOURCE,
    wanted: tuple[str, ...] = (FIRST,),
    others: tuple[str, ...] = (EARLY, METHOD),
    seed: int = 0,
    other: str = "",
) -> Disguise | None:
    files = (PATH, OTHER_PATH, "tests/absent.py")
    return disguise(tree(source, other), files, wanted, others, random.Random(seed))


def run(found: Disguise, add: str = "") -> TestOutcomes:
    """The outcomes of the tests, without a runner. `add` replaces the honest code under test."""
    results: dict[str, bool] = {}
    for path in (PATH, OTHER_PATH):
        names: dict[str, object] = {"add": lambda a, b: a + b}
        source = found.tree[path].content.decode("utf-8-sig")
        exec(source.replace("from sums import add", ""), names)
        exec(add, names)
        case = names.get("TestMore", object)
        calls = {name: value for name, value in names.items() if name.startswith("test_")}
        calls |= {f"TestMore::{name}": getattr(case(name), name) for name in dir(case) if "test_" in name}
        for name, function in calls.items():
            try:
                function()
                results[f"{path}::{name}"] = True
            except AssertionError:
                results[f"{path}::{name}"] = False
    passed = frozenset(name for name, has_passed in results.items() if has_passed)
    return TestOutcomes(passed, frozenset(results) - passed)


def many(count: int, line: str = "assert add({0}, 0) == {0}") -> tuple[str, list[str]]:
    names = [f"test_n{number:03}" for number in range(count)]
    body = "".join(f"def {name}():\n    {line.format(n)}\n" for n, name in enumerate(names))
    return body, [f"{PATH}::{name}" for name in names]


@pytest.mark.parametrize("seed", range(20))
def test_right_code_passes_under_new_names_and_fails_what_is_changed(seed):
    found = disguised(wanted=(FIRST, METHOD), others=(EARLY, ZERO), seed=seed, other=OTHER)
    outcomes = run(found)
    settled = found.settled(outcomes)
    assert not {FIRST, METHOD, EARLY, ZERO} & outcomes.ids
    assert settled.not_passed(outcomes, (FIRST, METHOD, EARLY, ZERO)) == () and not settled.absent
    assert settled.all_copies_failed(outcomes) and settled.must_fail
    assert found.paths == (OTHER_PATH, PATH)
    for wanted in (FIRST, METHOD, ZERO):
        assert any(name.startswith(f"{wanted}_") for name in settled.must_fail)


def test_forms_of_a_test_differ_in_one_literal_and_stand_there_equally_often():
    found = disguised(others=())
    module = ast.parse(found.tree.text(PATH))
    forms = [node for node in module.body if isinstance(node, ast.FunctionDef) and "test_add" in node.name]
    values = Counter(node.body[-1].test.comparators[0].value for node in forms)
    assert len(values) == 1 + MOST_CHANGED and 4 in values
    assert len(set(values.values())) == 1, values
    shapes = {
        ast.dump(node).replace(node.name, "").replace(str(node.body[-1].test.comparators[0].value), "")
        for node in forms
    }
    assert len({shape.replace("2", "") for shape in shapes}) == 1


def test_the_rest_of_a_file_stays_as_it_is():
    text = disguised().tree.text(PATH)
    assert text.startswith(SOURCE.partition("def test_add")[0])
    assert "# four\n" in text and '"""Two and two."""' in text


@pytest.mark.parametrize(
    "forged",
    [
        "add = lambda a, b: type('A', (int,), {'__eq__': lambda s, o: type(o) is not object})(0)",
        "add = lambda a, b: 0\nif 'TestMore' in globals(): TestMore.assertEqual = lambda *_: None",
    ],
)
def test_values_and_assertions_that_agree_with_everything_pass_what_must_fail(forged):
    found = disguised(wanted=(METHOD,), others=())
    settled = found.settled(run(found))
    outcomes = run(found, forged)
    assert settled.not_passed(outcomes, (METHOD,)) == () and settled.must_fail & outcomes.passed


def test_names_and_changes_differ_each_time():
    assert disguised(seed=1).names != disguised(seed=2).names
    assert len({disguised(seed=seed).tree.digest for seed in range(9)}) == 9


def test_a_change_that_right_code_passes_is_no_test_that_must_fail():
    source = "def test_add():\n    if False:\n        assert add(1, 1) == 2\n"
    found = disguised(source, others=())
    assert found.must_fail and not found.settled(run(found)).must_fail


def test_a_test_that_right_code_does_not_pass_in_disguise_is_not_asked_for():
    source = SOURCE + "\n\ndef test_name():\n    assert 'test_' + 'name' in globals()\n"
    name = f"{PATH}::test_name"
    found = disguised(source, others=(EARLY, METHOD, name))
    outcomes = run(found)
    settled = found.settled(outcomes)
    assert settled.absent == {name} and settled.must_fail
    assert settled.not_passed(outcomes, (FIRST, name)) == ()
    found = disguised(source, wanted=(name,), others=(FIRST,))
    assert not found.settled(run(found)).must_fail, "no test to repair is judged, so nothing is decided"


def test_cases_keep_their_parameters_and_the_ids_of_what_must_fail_come_from_the_run():
    cases = "@pytest.mark.parametrize('n,m', [(1, 1), (2, 2)])"
    source = f"import pytest\n\n{cases}\ndef test_n(n, m):\n    assert f(n) == m\n"
    found = disguised(source, (f"{PATH}::test_n[1-1]",), (f"{PATH}::test_n[2-2]",))
    assert {name.partition("[")[2] for name in found.names.values()} == {"1-1]", "2-2]"}
    passed = frozenset(found.names.values()).union(*found.honest.values())
    failed = "::".join(next(iter(found.changed))) + "[1-7]"
    settled = found.settled(TestOutcomes(passed, frozenset({failed})))
    assert settled.must_fail == {failed} and not settled.absent


def test_in_a_large_suite_each_other_test_stands_there_once_and_some_are_changed():
    body, ids = many(400)
    found = disguised(body, (ids[0],), tuple(ids[1:]))
    functions = Counter(split_id(name)[-1].rpartition("_")[0] for name in run(found).ids)
    assert functions.pop("test_n000") > 1 and set(functions.values()) == {1}
    settled = found.settled(run(found))
    assert LEAST_CHANGED // 4 <= len(settled.must_fail) <= 2 * 400 // CHANGED_SHARE
    assert {name for name in ids if name in settled.absent} == {
        name for name in ids[1:] if found.names[name] in settled.must_fail
    }
    assert settled.not_passed(run(found), ids) == ()


def test_the_number_of_changed_cases_is_bounded_when_a_bug_breaks_everything():
    body, ids = many(300)
    outcomes = run(disguised(body, tuple(ids), ()))
    assert len(outcomes.failed) <= 2 * max(LEAST_CHANGED, 300 // CHANGED_SHARE)
    assert len(outcomes.ids) <= 300 + max(LEAST_CHANGED, 300 // CHANGED_SHARE)


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
        "odd lines": "x = 1\rdef test_add():\n    pass\n",
        "another encoding": "# coding: latin-1\nx = 'é'\ndef test_add():\n    pass\n",
        "too large": f"def test_add():\n    pass\n#{'x' * MOST_SOURCE_BYTES}",
    }.items(),
    ids=lambda case: case[0],
)
def test_tests_that_cannot_be_renamed_are_not_changed(source):
    assert disguised(source[1], others=()) is None


def test_a_test_that_another_file_imports_keeps_its_name():
    assert disguised(others=(ZERO,), other=f"from tests.test_sums import test_add\n{OTHER}") is None


BASE = "class Mixin:\n    def test_add(self):\n        assert add(2, 2) == 4\n"
INHERITED = (f"{PATH}::TestA::test_add", f"{PATH}::TestB::test_add")


@pytest.mark.parametrize("is_imported", [False, True])
def test_an_inherited_test_is_renamed_where_it_is_defined_and_in_each_class(is_imported):
    classes = "class TestA(base.Mixin):\n    pass\n\nclass TestB(TestA):\n    pass\n"
    source = f"import base\n{classes}" if is_imported else f"{BASE}\n{classes.replace('base.', '')}"
    found = disguised(source, INHERITED[:1], INHERITED[1:], other=BASE if is_imported else "")
    assert found.paths == (OTHER_PATH if is_imported else PATH,)
    new = {found.names[name].rpartition("::") for name in INHERITED}
    assert {prefix for prefix, _, _ in new} == {f"{PATH}::TestA", f"{PATH}::TestB"}
    assert len({name for _, _, name in new}) == 1
    assert len({path[:2] for path in found.changed}) == 2


def test_an_inherited_test_whose_definition_is_not_found_keeps_its_name():
    source = "from elsewhere import Mixin\nclass TestA(Mixin):\n    pass\n" + SOURCE
    name = f"{PATH}::TestA::test_early"
    found = disguised(source, (FIRST,), (EARLY, name))
    assert name not in found.names and EARLY not in found.names and FIRST in found.names


def test_a_byte_order_mark_and_windows_lines_are_kept():
    source = "\ufeff" + SOURCE.replace("\n", "\r\n")
    found = disguised(source)
    content = found.tree[PATH].content
    assert content.startswith("\ufeff".encode()) and content.count(b"\n") == content.count(b"\r\n") + 2
    assert found.settled(run(found)).must_fail


def test_other_ids_than_pytests_are_left_alone():
    assert disguised(wanted=("test_add",), others=()) is None
    assert disguised(wanted=("tests/absent.py::test_add",), others=()) is None


def test_a_test_with_more_cases_than_may_be_added_is_copied_if_it_is_the_only_one():
    ids = tuple(f"{FIRST}[{number}]" for number in range(LEAST_CHANGED + 6))
    found = disguised(wanted=ids, others=())
    assert len(found.must_fail) == len(ids) and len(found.changed) == 1


def test_a_test_nested_deeper_than_can_be_read_is_left_alone():
    deep = "def test_add():\n    assert " + "-" * 900 + "1 == 1\n"
    assert disguised(deep, others=()) is None or ast.parse(disguised(deep, others=()).tree.text(PATH))
