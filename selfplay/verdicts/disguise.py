"""Test files in disguise: tests get random names, and some stand there with one literal changed.

A test stands as it is, with a change (`altered_tests`), or in both forms. The forms have names of one kind
and differ in nothing else, so only code that gives the right values tells which must pass. Which changes make
right code fail is decided by a run of the original's code on the same files (`Disguise.settled`). Running is
left to `second_grading`.

Invariant: all forms of a test differ at one and the same place, and each stands there equally often. So no
majority of the forms shows the right one.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from selfplay.outcomes import TestOutcomes
from selfplay.source.path_policy import is_test_path
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.altered_tests import Source
from selfplay.verdicts.renamable_tests import (
    BOM,
    Edit,
    RenamableTest,
    TestFile,
    TestPath,
    find_renamable,
    read_test_files,
    split_id,
)

LEAST_CHANGED = 24  # cases that stand there changed in a small suite, at most: each failure takes some 10 ms
CHANGED_SHARE = 8  # in a larger one, about one case of CHANGED_SHARE does
MOST_CASES = 100  # cases of the one test that is copied although it has more than may be changed
MOST_CHANGED = 3  # changed forms of one test


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
    renamed. A test cannot be if another runner made its id, if its name is used elsewhere, if it is inherited
    from a class that is not found, or if its file does not fit into MOST_SOURCE_BYTES.
    """
    ids = tuple(dict.fromkeys((*fail_to_pass, *pass_to_pass)))
    wanted = frozenset(fail_to_pass)
    named = {split_id(test_id)[0]: test_id in wanted for test_id in (*pass_to_pass, *fail_to_pass)}
    paths = {path for path in tree if path in test_files or is_test_path(path)}
    try:
        # Files of tests to repair first, then of other tests, then those that may hold base classes.
        files = read_test_files(tree, sorted(paths, key=lambda path: (-named.get(path, -1), path)))
        tests = find_renamable(files, ids)
        if all(wanted.isdisjoint(test.ids) for test in tests):
            return None
        _choose_forms(tests, wanted, generator)
        return _write(tree, files, tests, (wanted, frozenset(pass_to_pass)), generator)
    except RecursionError:  # an expression is nested too deeply to be read
        return None


# ---- which forms a test has


def _choose_forms(tests: Sequence[RenamableTest], wanted: frozenset[str], generator: random.Random) -> None:
    """Give each test its forms. The number of cases that are changed is bounded.

    Fail-to-pass tests stand there as they are and changed, in up to MOST_CHANGED ways. If there is room, so
    do all others. If not, each test without a changed form stands there once, and a coin decides in which.
    """
    mixed = generator.sample(tests, len(tests))
    to_repair = [test for test in mixed if not wanted.isdisjoint(test.ids)]
    to_repair.sort(key=lambda test: len(test.ids))
    cases = sum(len(test.ids) for test in mixed)
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
    files: Sequence[TestFile],
    tests: Sequence[RenamableTest],
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
            its = {name: _renamed(name, new) for name in test.ids}
            if edits:
                changed.update(map(split_id, its.values()))
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


def _renamed(test_id: str, name: str) -> str:
    path = split_id(test_id)
    return "::".join((*path[:-1], name)) + test_id[len("::".join(path)) :]


def _form(test: RenamableTest, name: str, edits: Sequence[Edit]) -> bytes:
    """The source of a test under a new name, with these changes."""
    begin, end = test.block
    block = _edited(test.file.source.content, begin, end, [(*test.name_place, name.encode()), *edits])
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
