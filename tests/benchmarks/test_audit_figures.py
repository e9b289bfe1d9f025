"""The pure functions of benchmarks/audit.py and benchmarks/independent_judge.py."""

import pytest

from benchmarks.audit import broken_statement, chance_expression, in_turn, wilson, with_condition
from benchmarks.independent_judge import rule, statuses
from selfplay.source.trees import FileEntry, Tree

SOURCE = '''def sign(value):
    """Doc."""
    if value > 0:
        return 1
    elif value < 0:
        return -1
    return 0
'''


def tree(text):
    return Tree({"m.py": FileEntry(text.encode())})


def test_the_interval_is_wilsons():
    """The figures of R: prop.test(45, 50, correct = FALSE)."""
    assert wilson(45, 50) == pytest.approx((0.7864, 0.9565), abs=1e-4)
    assert wilson(0, 50) == pytest.approx((0.0, 0.0713), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("old", "new"), [("return -1", "return 1"), ("value > 0", "value >= 0"), ("value < 0", "value <= 0")]
)
@pytest.mark.parametrize("passes", [True, False])
def test_chance_decides_between_the_right_statement_and_the_broken_one(old, new, passes):
    broken = SOURCE.replace(old, new)
    statement = broken_statement(tree(SOURCE), tree(broken))
    text = with_condition(tree(SOURCE), statement, chance_expression("0", float(passes), 0)).text("m.py")
    found, wanted = {}, {}
    exec(compile(text, "m", "exec"), found)
    exec(compile(SOURCE if passes else broken, "m", "exec"), wanted)
    assert [found["sign"](value) for value in (-1, 0, 1)] == [wanted["sign"](value) for value in (-1, 0, 1)]


def test_a_broken_header_of_a_function_cannot_be_a_branch():
    assert broken_statement(tree(SOURCE), tree(SOURCE.replace("sign(value)", "sign(value=1)"))) is None


def test_groups_take_turns():
    assert in_turn([[1, 2, 3], [4], [5, 6]]) == [1, 4, 5, 2, 6, 3]


def test_the_independent_rule_counts_tests_that_both_logs_know():
    buggy = statuses(
        "t.py::a FAILED   [ 25%]\nt.py::b PASSED [ 50%]\nt.py::c FAILED\nt.py::gone PASSED\nnoise\n"
    )
    original = statuses("t.py::a PASSED [ 25%]\nt.py::b PASSED [ 50%]\nt.py::c FAILED\nt.py::new PASSED\n")
    assert rule(buggy, original) == (1, 1)
