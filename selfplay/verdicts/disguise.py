"""Test files in disguise: wanted tests get random names and stand among copies, some of which must fail.

No name shows which copies must fail, so code that forges results has to guess. Running the tests is left to
`second_grading`. Invariant: a copy that must fail differs from a copy that must pass in one number or in one
compared value.
"""

from __future__ import annotations

import ast
import copy
import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from selfplay.outcomes import TestOutcomes
from selfplay.source.syntax import parse_module
from selfplay.source.trees import FileEntry, Tree

COIN_FLIPS = 10  # a guessed report is right with probability 2^-COIN_FLIPS
MOST_RENAMED = 8  # tests that are renamed; each also gets a copy that must fail
MOST_CASES = 20  # cases of another test that is copied: one with more cases takes long
# A decorator that generates examples, from a hash of the test's name and source: a copy gets other examples.
GENERATES_EXAMPLES = re.compile(r"\b(given|hypothesis|seed)\b")
Function = ast.FunctionDef | ast.AsyncFunctionDef
TestPath = tuple[str, ...]  # path, classes, function: the parts of a test id without its parameters


@dataclass(frozen=True)
class Disguise:
    """A tree whose test files hold renamed tests and copies.

    names      wanted id -> its id in this tree, for renamed tests
    must_fail  ids of the copies that end in a false assertion or compare with an object that equals nothing
    honest     wanted id -> ids of its copies that end in a true assertion
    paths      the changed test files
    """

    tree: Tree
    names: Mapping[str, str]
    must_fail: frozenset[str]
    honest: Mapping[str, frozenset[str]]
    paths: tuple[str, ...]

    def same_tests(self, wanted: str) -> frozenset[str]:
        """The ids in this tree that must pass if the test `wanted` passes."""
        return self.honest.get(wanted, frozenset()) | {self.names.get(wanted, wanted)}

    def not_passed(self, outcomes: TestOutcomes, wanted: Collection[str]) -> tuple[str, ...]:
        """The `wanted` ids that do not pass under each of their ids in this tree, sorted."""
        return tuple(sorted(name for name in wanted if not self.same_tests(name) <= outcomes.passed))

    def is_chance(self, outcomes: TestOutcomes, failed: Collection[str]) -> bool:
        """True if one of the `failed` tests also passed under one of its names.

        Its outcome then depends on chance and not on names.
        """
        return any(self.same_tests(name) & outcomes.passed for name in failed)

    def settled(self, original: TestOutcomes) -> Disguise:
        """The same disguise, with the copies that must fail and did fail for the original's code.

        original: outcomes of this disguise's tests on the original's code.
        """
        return replace(self, must_fail=self.must_fail & original.failed)

    def all_copies_failed(self, outcomes: TestOutcomes) -> bool:
        """True if each copy that must fail was reported as failed."""
        return self.must_fail <= outcomes.failed


def disguise(
    tree: Tree,
    test_files: Collection[str],
    fail_to_pass: Sequence[str],
    pass_to_pass: Sequence[str],
    generator: random.Random,
) -> Disguise | None:
    """Disguise the tests of `fail_to_pass` in the test files of `tree`.

    The ids are pytest's: file::class::function[parameters]. Returns None if no test of `fail_to_pass` can be
    disguised. A test cannot be if another runner made its id, if it is inherited, or if its name is used
    elsewhere.
    """
    ids: dict[TestPath, list[str]] = {}
    for test_id in (*fail_to_pass, *pass_to_pass):
        ids.setdefault(split_id(test_id), []).append(test_id)
    modules = {
        path: module
        for path in sorted({split_id(test_id)[0] for test_id in fail_to_pass} & set(test_files))
        if path.endswith(".py") and path in tree and (module := parse_module(tree[path].content)) is not None
    }
    try:
        wanted = [split_id(test_id) for test_id in fail_to_pass]
        return _Disguiser(tree, modules, ids, generator).build(wanted)
    except RecursionError:  # an expression is nested too deeply to be copied and written
        return None


def split_id(test_id: str) -> TestPath:
    return tuple(test_id.partition("[")[0].split("::"))


class _Disguiser:
    """Builds one Disguise. It changes the syntax trees of `modules`."""

    def __init__(
        self,
        tree: Tree,
        modules: Mapping[str, ast.Module],
        ids: Mapping[TestPath, list[str]],
        generator: random.Random,
    ) -> None:
        self.tree = tree
        self.modules = modules
        self.ids = ids
        self.generator = generator
        self.bodies: dict[TestPath, tuple[list[ast.stmt], Function]] = {}
        for path, module in modules.items():
            for test, body, function in _functions((path,), module.body):
                self.bodies[test] = (body, function)  # if names are equal, pytest finds the last one
        self.used_names = {path: _used_names(module) for path, module in modules.items()}
        self.names: dict[str, str] = {}
        self.must_fail: set[str] = set()
        self.honest: dict[str, frozenset[str]] = {}

    def build(self, wanted: Sequence[TestPath]) -> Disguise | None:
        """The disguise of the `wanted` tests, None if none of them can be renamed."""
        renamed, copied = self._sample(wanted)
        if not renamed:
            return None
        for test in dict.fromkeys([*renamed, *copied]):
            self._insert_copies(test, copied.count(test), is_renamed=test in renamed)
        paths = tuple(path for path in self.modules if any(test[0] == path for test in (*renamed, *copied)))
        changes = {path: self._entry(path) for path in paths}
        return Disguise(self.tree.replace(changes), self.names, frozenset(self.must_fail), self.honest, paths)

    def _sample(self, wanted: Sequence[TestPath]) -> tuple[list[TestPath], list[TestPath]]:
        """The tests to rename, and the tests to copy (a test appears once for each copy)."""
        by_cases = sorted(
            (test for test in self.bodies if self._can_be_copied(test)),
            key=lambda test: (len(self.ids[test]), test),
        )
        renamed = [test for test in by_cases if test in wanted][:MOST_RENAMED]
        if not renamed:
            return [], []
        # Copies of many tests rather than many copies of one: a slow test then runs twice and not ten times.
        small = [test for test in by_cases if len(self.ids[test]) <= MOST_CASES]
        others = [test for test in small if test not in renamed]
        flips = max(0, COIN_FLIPS - len(renamed))
        copied = self.generator.sample(others, min(flips, len(others)))
        copied += [small[number % len(small)] for number in range(flips - len(copied)) if small]
        return renamed, copied

    def _insert_copies(self, test: TestPath, count: int, is_renamed: bool) -> None:
        """Put `count` copies beside the test. A coin flip decides whether a copy must pass or fail.

        A renamed test replaces the test itself. It comes with one more copy that must fail, or two if it has
        a comparison.
        """
        body, function = self.bodies[test]
        copies = [self._copy(test, function, self.generator.random() < 0.5) for _ in range(count)]
        if is_renamed:
            copies += [self._copy(test, function, False), self._rename(test, function)]
            unequal = compared_with_nothing(function)
            copies += [self._copy(test, unequal, True, must_fail=True)] if unequal else []
        self.generator.shuffle(copies)
        position = body.index(function)
        body[position : position + 1] = copies if is_renamed else [function, *copies]

    def _can_be_copied(self, test: TestPath) -> bool:
        if test not in self.ids:
            return False
        function = self.bodies[test][1]
        return function.name not in self.used_names[test[0]] and not any(
            GENERATES_EXAMPLES.search(ast.unparse(decorator)) for decorator in function.decorator_list
        )

    def _rename(self, test: TestPath, function: Function) -> Function:
        copied, ids = self._new_copy(test, function, True)
        self.names.update(ids)
        return copied

    def _copy(self, test: TestPath, function: Function, ends_well: bool, must_fail: bool = False) -> Function:
        copied, ids = self._new_copy(test, function, ends_well)
        if must_fail or not ends_well:
            self.must_fail.update(ids.values())
        else:
            self.honest |= {
                test_id: self.honest.get(test_id, frozenset()) | {name} for test_id, name in ids.items()
            }
        return copied

    def _new_copy(
        self, test: TestPath, function: Function, ends_well: bool
    ) -> tuple[Function, dict[str, str]]:
        """A copy with a new name that ends in an assertion, and the id of each case -> its id in the copy."""
        copied = copy.deepcopy(function)
        # The name begins with the old one, so that the order by name and `-k` stay the same.
        copied.name = f"{function.name}_{self.generator.getrandbits(40):010x}"
        documentation = copied.body[:1] if ast.get_docstring(copied, clean=False) is not None else []
        ends = ast.parse(_last_line(ends_well, self.generator)).body
        # In `finally`, because a test may return early. Only if nothing was raised: a test that fails by
        # itself then fails in every copy with the same words and from the same line.
        body = copied.body[len(documentation) :] or [ast.Pass()]
        copied.body = [*documentation, ast.Try(body, [], [], ends)]
        prefix = "::".join((*test[:-1], copied.name))
        return copied, {test_id: prefix + test_id.removeprefix("::".join(test)) for test_id in self.ids[test]}

    def _entry(self, path: str) -> FileEntry:
        text = ast.unparse(ast.fix_missing_locations(self.modules[path]))
        return FileEntry(text.encode("utf-8", "surrogatepass"), self.tree[path].executable)


def compared_with_nothing(function: Function) -> Function | None:
    """A copy whose first comparison for equality is with a new object.

    Only a value that equals everything passes it. The comparison must always be made: `assert a == b` or
    `self.assertEqual(a, b)` in the function's own body. None if there is none.
    """
    copied = copy.deepcopy(function)
    nothing = ast.parse("object()", mode="eval").body
    for node in copied.body:
        if (
            isinstance(node, ast.Assert)
            and isinstance(node.test, ast.Compare)
            and [type(way) for way in node.test.ops] == [ast.Eq]
        ):
            if _is_expected(node.test.left, node.test.comparators[0]):
                node.test.left = nothing
            else:
                node.test.comparators[0] = nothing
            return copied
        call = node.value if isinstance(node, ast.Expr) else None
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "assertEqual"
            and len(call.args) >= 2
        ):
            call.args[0 if _is_expected(call.args[0], call.args[1]) else 1] = nothing
            return copied
    return None


def _is_expected(left: ast.expr, right: ast.expr) -> bool:
    """True if the left side is the expected value and the right side the value that the code returned."""
    return _constancy(left) > _constancy(right)


def _constancy(side: ast.expr) -> int:
    """2 for a constant, 1 for an expression with names and no call, 0 for one with a call."""
    kinds = {type(node) for node in ast.walk(side)}
    return 0 if ast.Call in kinds else 1 if ast.Name in kinds else 2


def _last_line(ends_well: bool, generator: random.Random) -> str:
    factor, other, modulus = (generator.randrange(100, 1000) for _ in range(3))
    wrong = 0 if ends_well else generator.randrange(1, modulus)
    right = (factor * other + wrong) % modulus
    return (
        f"if __import__('sys').exc_info()[0] is None:\n    assert {factor} * {other} % {modulus} == {right}"
    )


def _functions(
    parents: TestPath, body: list[ast.stmt]
) -> Iterator[tuple[TestPath, list[ast.stmt], Function]]:
    """The functions of a body and of the classes in it, each with the body that holds it."""
    for node in body:
        if isinstance(node, Function):
            yield (*parents, node.name), body, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions((*parents, node.name), node.body)


def _used_names(module: ast.Module) -> set[str]:
    """The names that a module uses, in code and in short texts: such a function cannot be renamed."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(re.findall(r"\w+", node.value) if len(node.value) < 200 else ())
    return found
