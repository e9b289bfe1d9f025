"""The ranking of functions by the tests that call them, computed by hand."""

from selfplay.repositories.suspects import Suspect, failure_first, find_suspects
from selfplay.source.trees import FileEntry, Tree

MODULE = """\
def everywhere():
    pass

def broken():
    pass

class A:
    def method(self):
        pass
"""
TREE = Tree(
    {
        "pkg/a.py": FileEntry(MODULE.encode()),
        "pkg/b.py": FileEntry(b"def helper(): pass\n\ndef other(): pass\n"),
    }
)
EVERYWHERE, BROKEN, METHOD, HELPER = (
    ("pkg/a.py", "everywhere"),
    ("pkg/a.py", "broken"),
    ("pkg/a.py", "A.method"),
    ("pkg/b.py", "helper"),
)


def names(calls, failing, tree=TREE, limit=9):
    return [suspect.name for suspect in find_suspects(calls, failing, tree, limit)]


def test_functions_are_ranked_by_ochiai():
    calls = {
        "fails 1": (BROKEN, EVERYWHERE, HELPER),
        "fails 2": (BROKEN, EVERYWHERE),
        "passes 1": (EVERYWHERE, METHOD),
        "passes 2": (EVERYWHERE, BROKEN),
        "passes 3": (EVERYWHERE, METHOD),
    }
    # broken 2 / sqrt(2 * 3) = 0.82, helper 1 / sqrt(2 * 1) = 0.71, everywhere 2 / sqrt(2 * 5) = 0.63.
    # No failing test calls the method.
    assert find_suspects(calls, ["fails 1", "fails 2"], TREE, 9) == (
        Suspect("pkg/a.py", "broken", 4, 5),
        Suspect("pkg/b.py", "helper", 1, 1),
        Suspect("pkg/a.py", "everywhere", 1, 2),
    )


def test_equal_scores_go_by_path_and_line():
    assert names({"fails": (HELPER, METHOD, BROKEN, EVERYWHERE)}, ["fails"]) == [
        "everywhere",
        "broken",
        "A.method",
        "helper",
    ]


def test_scores_that_differ_only_by_rounding_are_ties():
    """3 / sqrt(3 * 9) and 1 / sqrt(3 * 1) are equal; as floating-point numbers they need not be."""
    failing = {"fails 1": (BROKEN, METHOD), "fails 2": (BROKEN,), "fails 3": (BROKEN,)}
    calls = failing | {f"passes {n}": (BROKEN,) for n in range(6)}
    assert names(calls, failing) == ["broken", "A.method"]


def test_no_more_than_the_limit_are_named():
    assert names({"fails": (HELPER, METHOD, BROKEN)}, ["fails"], limit=2) == ["broken", "A.method"]


def test_a_function_that_moved_is_found_by_its_name():
    moved = Tree(
        {
            "pkg/a.py": FileEntry(
                b"import os\n\n" + MODULE.encode().replace(b"class A:", b"class A:\n    x = 1\n")
            )
        }
    )
    assert find_suspects({"fails": (METHOD, BROKEN)}, ["fails"], moved, 9) == (
        Suspect("pkg/a.py", "broken", 6, 7),
        Suspect("pkg/a.py", "A.method", 12, 13),
    )


def test_the_lines_of_a_suspect_do_not_include_its_decorators():
    decorated = Tree({"pkg/a.py": FileEntry(b"@cached\ndef broken():\n    pass\n")})
    assert find_suspects({"fails": (BROKEN,)}, ["fails"], decorated, 9) == (
        Suspect("pkg/a.py", "broken", 2, 3),
    )


def test_both_halves_of_a_property_are_suspect():
    source = (
        b"class A:\n    @property\n    def method(self): pass\n"
        b"    @method.setter\n    def method(self, to): pass\n"
    )
    found = find_suspects({"fails": (METHOD,)}, ["fails"], Tree({"pkg/a.py": FileEntry(source)}), 9)
    assert [suspect.first_line for suspect in found] == [3, 5]


def test_functions_that_the_tree_lacks_are_left_out():
    there = Tree({"pkg/b.py": FileEntry(b"def other(): pass\n\ndef helper(): pass\n")})
    assert names({"fails": (BROKEN, HELPER, ("pkg/b.py", "gone"))}, ["fails"], there) == ["helper"]


def test_tests_named_by_another_parser_give_no_suspects():
    assert names({"tests/test_a.py::test": (BROKEN,)}, ["test (tests.test_a.Case)"]) == []


def test_failing_tests_without_a_record_count_for_nothing():
    calls = {"fails": (BROKEN, HELPER), "passes": (HELPER,)}
    assert names(calls, ["fails", "not recorded"]) == names(calls, ["fails"]) == ["broken", "helper"]


def test_the_suspect_at_the_end_of_the_traceback_is_first_and_the_others_keep_their_order() -> None:
    suspects = [Suspect("pkg/a.py", name, 1, 2) for name in ("one", "Class.two", "three")]
    failure = "tests/test_a.py:3: in test_three\n    three(1)\npkg/a.py:2: in two\n    raise"
    assert [s.name for s in failure_first(suspects, failure)] == ["Class.two", "one", "three"]
    assert failure_first(suspects, "E   assert 1 == 2") == tuple(suspects)
