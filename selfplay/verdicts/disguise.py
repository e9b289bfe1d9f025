"""Test files in disguise: tests get random names, and some stand there with one literal changed.

A test stands as it is, with a change (`altered_tests`), or in both forms. The forms have names of one kind
and differ in nothing else, so only code that gives the right values tells which must pass. Which changes make
right code fail is decided by a run of the original's code on the same files (`Disguise.settled`). Running is
left to `second_grading`.

Invariant: all forms of a test differ at one and the same place, and each stands there equally often. So no
majority of the forms shows the right one.
"""

from __future__ import annotations

import ast
import io
import random
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from selfplay.outcomes import TestOutcomes
from selfplay.source.syntax import parse_module
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.altered_tests import Function, Source, Spot, find_spots, raised_exceptions

MOST_SOURCE_BYTES = 2 << 20  # of the test files that are disguised, those of fail-to-pass tests first
LEAST_CHANGED = 24  # cases that may stand there changed in a small suite: each failure takes some 10 ms
CHANGED_SHARE = 8  # in a larger one, it is one case of CHANGED_SHARE
MOST_CASES = 100  # cases of the one test that is copied although it has more than may be changed
MOST_CHANGED = 3  # changed forms of one test
# A decorator that generates examples, from a hash of the test's name and source: a copy gets other examples.
GENERATES_EXAMPLES = re.compile(r"\b(given|hypothesis|seed)\b")
BOM = b"\xef\xbb\xbf"
TestPath = tuple[str, ...]  # path, classes, function: the parts of a test id without its parameters


@dataclass(frozen=True)
class Disguise:
    """A tree whose test files hold renamed and changed tests.

    names      test id -> its id in this tree, for renamed tests
    must_fail  ids of changed tests: candidates before `settled`, after it those that right code fails
    honest     test id -> further ids in this tree of the same test
    paths      the changed test files
    absent     after `settled`: tests that right code does not pass in this tree, most since they are changed
    changed    functions of changed tests
    to_repair  the fail-to-pass tests
    other      the pass-to-pass tests
    """

    tree: Tree
    names: Mapping[str, str]
    must_fail: frozenset[str]
    honest: Mapping[str, frozenset[str]]
    paths: tuple[str, ...]
    changed: frozenset[TestPath]
    to_repair: frozenset[str]
    other: frozenset[str]
    absent: frozenset[str] = frozenset()

    def settled(self, original: TestOutcomes) -> Disguise:
        """The disguise as a run of the original's code on its files shows it.

        `must_fail` keeps the changed tests that failed. It is empty if no fail-to-pass test passed there: the
        disguise then decides nothing.
        """
        passed = {name for name in self.to_repair | self.other if self.same_tests(name) <= original.passed}
        failed = frozenset(name for name in original.failed if split_id(name) in self.changed)
        return replace(
            self,
            must_fail=failed if passed & self.to_repair else frozenset(),
            absent=(self.to_repair | self.other) - passed,
        )

    def same_tests(self, wanted: str) -> frozenset[str]:
        """The ids in this tree that must pass if the test `wanted` passes."""
        return self.honest.get(wanted, frozenset()) | {self.names.get(wanted, wanted)}

    def not_passed(self, outcomes: TestOutcomes, wanted: Collection[str]) -> tuple[str, ...]:
        """The `wanted` ids that do not pass under each of their ids here, sorted. Leaves out `absent`."""
        judged = frozenset(wanted) - self.absent
        return tuple(sorted(name for name in judged if not self.same_tests(name) <= outcomes.passed))

    def is_chance(self, outcomes: TestOutcomes, failed: Collection[str]) -> bool:
        """True if one of the `failed` tests also passed under one of its names.

        Its outcome then depends on chance and not on names.
        """
        return any(self.same_tests(name) & outcomes.passed for name in failed)

    def all_copies_failed(self, outcomes: TestOutcomes) -> bool:
        """True if each test that must fail was reported as failed."""
        return self.must_fail <= outcomes.failed


def disguise(
    tree: Tree,
    test_files: Collection[str],
    fail_to_pass: Sequence[str],
    pass_to_pass: Sequence[str],
    generator: random.Random,
) -> Disguise | None:
    """Disguise the tests in the test files of `tree`. `Disguise.settled` must follow.

    The ids are pytest's: file::class::function[parameters]. Returns None if no test of `fail_to_pass` can be
    renamed. A test cannot be if another runner made its id, if it is inherited, if its name is used
    elsewhere, or if its file does not fit into MOST_SOURCE_BYTES.
    """
    ids: dict[TestPath, list[str]] = {}
    for test_id in dict.fromkeys((*fail_to_pass, *pass_to_pass)):
        ids.setdefault(split_id(test_id), []).append(test_id)
    wanted = {split_id(test_id) for test_id in fail_to_pass}
    paths = sorted({test[0] for test in ids} & set(test_files) & set(tree))
    try:
        files = list(_read(tree, sorted(paths, key=lambda path: path not in {test[0] for test in wanted})))
        tests = _renamable(files, ids)
        if not any(test.path in wanted for test in tests):
            return None
        _choose_forms(tests, wanted, generator)
        return _write(tree, files, tests, (frozenset(fail_to_pass), frozenset(pass_to_pass)), generator)
    except RecursionError:  # an expression is nested too deeply to be read
        return None


def split_id(test_id: str) -> TestPath:
    return tuple(test_id.partition("[")[0].split("::"))


# ---- which tests can be renamed


@dataclass(frozen=True)
class _File:
    path: str
    module: ast.Module
    source: Source
    exceptions: tuple[str, ...]


Edit = tuple[int, int, bytes]  # begin, end, and what stands there instead


@dataclass
class _Test:
    """A test function that can be renamed.

    ids    of its cases
    forms  the changes of each form; () is the test as it is
    """

    path: TestPath
    file: _File
    function: Function
    ids: Sequence[str]
    forms: list[tuple[Edit, ...]] = field(default_factory=lambda: [()])
    known_spots: tuple[Spot, ...] | None = None

    def spots(self, generator: random.Random) -> tuple[Spot, ...]:
        """Where it can be changed. All forms that are changed are changed in each of these places."""
        if self.known_spots is None:
            file = self.file
            self.known_spots = find_spots(file.source, self.function, file.exceptions, generator)
        return self.known_spots

    def changed(self, number: int, generator: random.Random) -> tuple[Edit, ...]:
        """Its changes in the changed form `number`, counted from 0. () if it has no such form."""
        spots = self.spots(generator)
        if number >= min((len(spot.texts) for spot in spots), default=0):
            return ()
        return tuple((spot.start, spot.end, spot.texts[number]) for spot in spots)

    @property
    def block(self) -> tuple[int, int]:
        """The bytes of its whole lines, decorators included."""
        first = min(node.lineno for node in (self.function, *self.function.decorator_list))
        last = self.function.end_lineno or self.function.lineno
        return self.file.source.line_start(first), self.file.source.line_start(last + 1)


def _read(tree: Tree, paths: Iterable[str]) -> Iterator[_File]:
    left = MOST_SOURCE_BYTES
    for path in paths:
        content = tree[path].content.removeprefix(BOM)
        left -= len(content)
        if path.endswith(".py") and left >= 0 and _has_plain_lines(content):
            module = parse_module(content)
            if module is not None:
                yield _File(path, module, Source(content), raised_exceptions(module))


def _has_plain_lines(content: bytes) -> bool:
    """True if Python counts lines and columns as we do: UTF-8, and lines that end with a line feed."""
    try:
        coding = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
    except SyntaxError:
        return False
    is_plain = coding.startswith("utf-8") or content.isascii()
    return is_plain and content.count(b"\r") == content.count(b"\r\n")


def _renamable(files: Sequence[_File], ids: Mapping[TestPath, list[str]]) -> list[_Test]:
    found: dict[TestPath, _Test] = {}
    own_names = {file.path: _used_names(file.module) for file in files}
    imported = {name for file in files for name in _imported_names(file.module)}
    for file in files:
        for path, function in _functions((file.path,), file.module.body):
            # If names are equal, pytest finds the last one.
            found[path] = _Test(path, file, function, ids.get(path, ()))
    # A test without a function of its own is inherited.
    inherited = {path[-1] for path in ids if path not in found}
    return [
        test
        for test in found.values()
        if test.ids
        and test.function.name not in own_names[test.file.path] | imported | inherited
        and _name_place(test) is not None
        and not any(GENERATES_EXAMPLES.search(ast.unparse(node)) for node in test.function.decorator_list)
    ]


def _name_place(test: _Test) -> tuple[int, int] | None:
    """Where the function's name stands in its file."""
    start = test.file.source.start(test.function)
    pattern = rb"(?:async\s+)?def\s+(%s)\b" % re.escape(test.function.name.encode())
    match = re.compile(pattern).match(test.file.source.content, start)
    return match.span(1) if match else None


def _functions(parents: TestPath, body: list[ast.stmt]) -> Iterator[tuple[TestPath, Function]]:
    """The functions of a body and of the classes in it."""
    for node in body:
        if isinstance(node, Function):
            yield (*parents, node.name), node
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


def _imported_names(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


# ---- which forms a test has


def _choose_forms(tests: Sequence[_Test], wanted: Collection[TestPath], generator: random.Random) -> None:
    """Give each test its forms. The number of cases that are changed is bounded.

    Fail-to-pass tests stand there as they are and changed, in up to MOST_CHANGED ways. If there is room, so
    do all others. If not, each test without a changed form stands there once, and a coin decides in which.
    """
    mixed = list(tests)
    generator.shuffle(mixed)
    to_repair = sorted((test for test in mixed if test.path in wanted), key=lambda test: len(test.ids))
    cases = sum(len(test.ids) for test in tests)
    room = left = max(LEAST_CHANGED, cases // CHANGED_SHARE)
    for number in range(MOST_CHANGED):
        for test in to_repair:
            form = test.changed(number, generator)
            is_first = test is to_repair[0] and number == 0 and len(test.ids) <= MOST_CASES
            fits = left - len(test.ids) >= (room // 2 if number else 0)
            if form and len(test.forms) == 1 + number and (fits or is_first):
                left -= len(test.ids)
                test.forms.append(form)
    single = [test for test in mixed if len(test.forms) == 1]
    most = sum(len(test.ids) for test in single)
    if most <= max(left, 0):
        for test in single:
            test.forms += [form] if (form := test.changed(0, generator)) else []
        left -= most
        for test in to_repair:  # a test that passes by chance then shows itself
            if len(test.forms) > 1 and len(test.forms) * len(test.ids) <= left:
                left -= len(test.forms) * len(test.ids)
                test.forms *= 2
        return
    share = min(0.5, max(left, room // 4) / most)
    for test in single:
        if generator.random() < 2 * share:
            test.forms = [tuple(edit for edit in test.changed(0, generator) if generator.random() < 0.5)]


# ---- writing


def _write(
    tree: Tree,
    files: Sequence[_File],
    tests: Sequence[_Test],
    ids: tuple[frozenset[str], frozenset[str]],
    generator: random.Random,
) -> Disguise:
    names: dict[str, str] = {}
    must_fail: set[str] = set()
    honest: dict[str, frozenset[str]] = {}
    changed: set[TestPath] = set()
    blocks: dict[str, list[tuple[tuple[int, int], bytes]]] = {file.path: [] for file in files}
    for test in tests:
        block = b""
        generator.shuffle(test.forms)
        for edits in test.forms:
            # The name begins with the old one, so that the order by name and `-k` stay the same.
            new = f"{test.function.name}_{generator.getrandbits(40):010x}"
            block += _form(test, new, edits)
            path = (*test.path[:-1], new)
            its = {name: "::".join(path) + name.removeprefix("::".join(test.path)) for name in test.ids}
            if edits:
                changed.add(path)
                must_fail.update(its.values())
            if not edits or len(test.forms) == 1:
                for name, other in its.items():
                    if name in names:
                        honest[name] = honest.get(name, frozenset()) | {other}
                    else:
                        names[name] = other
        blocks[test.file.path].append((test.block, block))
    changes: dict[str, FileEntry | None] = {
        file.path: _entry(tree[file.path], file.source, blocks[file.path])
        for file in files
        if blocks[file.path]
    }
    written = tree.replace(changes)
    return Disguise(
        written, names, frozenset(must_fail), honest, tuple(sorted(changes)), frozenset(changed), *ids
    )


def _form(test: _Test, name: str, edits: Sequence[Edit]) -> bytes:
    """The source of a test under a new name, with these changes."""
    place = _name_place(test)
    assert place is not None
    begin, end = test.block
    block = _edited(test.file.source.content, begin, end, [(*place, name.encode()), *edits])
    return block if block.endswith(b"\n") else block + b"\n"


def _edited(content: bytes, begin: int, end: int, edits: Iterable[Edit]) -> bytes:
    parts = []
    for first, last, text in sorted(edits):
        parts += [content[begin:first], text]
        begin = last
    return b"".join([*parts, content[begin:end]])


def _entry(entry: FileEntry, source: Source, blocks: Sequence[tuple[tuple[int, int], bytes]]) -> FileEntry:
    edits = [(begin, end, block) for (begin, end), block in blocks]
    content = _edited(source.content, 0, len(source.content), edits)
    mark = BOM if entry.content.startswith(BOM) else b""
    return FileEntry(mark + content, entry.executable)
