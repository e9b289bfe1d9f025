"""Test functions that can get another name: their files, their places, and the ids that pytest gives them.

A test is renamed in its file's text, so that all other text stays as it is. Invariant: no code in the test
files uses the name of a function that counts as renamable.
"""

from __future__ import annotations

import ast
import io
import random
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from selfplay.source.syntax import parse_module
from selfplay.source.trees import Tree
from selfplay.verdicts.altered_tests import Function, Source, Spot, find_spots, raised_exceptions

MOST_SOURCE_BYTES = 2 << 20  # of the test files that are read
# A decorator that generates examples, from a hash of the test's name and source: a copy gets other examples.
GENERATES_EXAMPLES = re.compile(r"\b(given|hypothesis|seed)\b")
BOM = b"\xef\xbb\xbf"
TestPath = tuple[str, ...]  # path, classes, function: the parts of a test id without its parameters
Edit = tuple[int, int, bytes]  # begin, end, and what stands there instead


def split_id(test_id: str) -> TestPath:
    return tuple(test_id.partition("[")[0].split("::"))


@dataclass(frozen=True)
class TestFile:
    """A test file. exceptions: that its tests expect."""

    __test__ = False  # pytest: a value, not a test class

    path: str
    module: ast.Module
    source: Source
    exceptions: tuple[str, ...]


@dataclass(eq=False)
class RenamableTest:
    """A test function that can be renamed.

    name_place  where its name stands in its file
    ids         of its cases, in each class that has it
    forms       the changes of each form; () is the test as it is
    """

    file: TestFile
    function: Function
    name_place: tuple[int, int]
    ids: Sequence[str]
    forms: list[tuple[Edit, ...]] = field(default_factory=lambda: [()])
    known_spots: tuple[Spot, ...] | None = None

    def changed(self, number: int, generator: random.Random) -> tuple[Edit, ...]:
        """Its changes in the changed form `number`, counted from 0. () if it has no such form.

        All changed forms are changed in the same places.
        """
        if self.known_spots is None:
            file = self.file
            self.known_spots = find_spots(file.source, self.function, file.exceptions, generator)
        if number >= min((len(spot.texts) for spot in self.known_spots), default=0):
            return ()
        return tuple((spot.start, spot.end, spot.texts[number]) for spot in self.known_spots)

    @property
    def block(self) -> tuple[int, int]:
        """The bytes of its whole lines, decorators included."""
        first = min(node.lineno for node in (self.function, *self.function.decorator_list))
        last = self.function.end_lineno or self.function.lineno
        return self.file.source.line_start(first), self.file.source.line_start(last + 1)


def read_test_files(tree: Tree, paths: Iterable[str]) -> list[TestFile]:
    """Those of the files that parse and whose places can be found, up to MOST_SOURCE_BYTES in all."""
    found = []
    left = MOST_SOURCE_BYTES
    for path in paths:
        content = tree[path].content.removeprefix(BOM)
        if path.endswith(".py") and len(content) <= left and _has_plain_lines(content):
            left -= len(content)
            module = parse_module(content)
            if module is not None:
                found.append(TestFile(path, module, Source(content), raised_exceptions(module)))
    return found


def _has_plain_lines(content: bytes) -> bool:
    """True if Python counts lines and columns as we do: UTF-8, and lines that end with a line feed."""
    try:
        coding = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
    except SyntaxError:
        return False
    is_plain = coding.startswith("utf-8") or content.isascii()
    return is_plain and content.count(b"\r") == content.count(b"\r\n")


def find_renamable(files: Sequence[TestFile], ids: Iterable[str]) -> list[RenamableTest]:
    """The test functions with an id that can be renamed."""
    found: dict[TestPath, tuple[TestFile, Function]] = {}
    for file in files:
        for path, function in _functions((file.path,), file.module.body):
            found[path] = file, function  # if names are equal, pytest finds the last one
    classes = _Classes(files)
    of_function: dict[TestPath, list[str]] = {}
    inherited: set[str] = set()
    for test_id in ids:
        path = split_id(test_id)
        if path not in found:
            inherited.add(path[-1])
            path = classes.definition(path) or ()
        of_function.setdefault(path, []).append(test_id)
    # Its own code may still be found under the old name by a class that nothing here names.
    unknown = {split_id(test_id)[-1] for test_id in of_function.pop((), ())}
    own_names = {file.path: _used_names(file.module) for file in files}
    all_names = set().union(*own_names.values())
    imported = {name for file in files for name in _imported_names(file.module)}
    tests = []
    for path, its in of_function.items():
        file, function = found[path]
        used = all_names if function.name in inherited else own_names[file.path]
        place = _name_place(file, function)
        is_generated = any(GENERATES_EXAMPLES.search(ast.unparse(d)) for d in function.decorator_list)
        if place and not is_generated and function.name not in used | imported | unknown:
            tests.append(RenamableTest(file, function, place, its))
    return tests


class _Classes:
    """Finds the class that an inherited test comes from, by the names of base classes."""

    def __init__(self, files: Sequence[TestFile]) -> None:
        self.by_name: dict[str, list[tuple[str, ast.ClassDef]]] = {}
        for file in files:
            for node in file.module.body:
                if isinstance(node, ast.ClassDef):
                    self.by_name.setdefault(node.name, []).append((file.path, node))

    def definition(self, test: TestPath) -> TestPath | None:
        """Where the function of a test is defined that its class inherits. None if it is not found."""
        return self._definition(test[0], test[1], test[2], ()) if len(test) == 3 else None

    def _definition(self, path: str, name: str, function: str, below: tuple[str, ...]) -> TestPath | None:
        known = self.by_name.get(name, [])
        here = [found for found in known if found[0] == path] or (known if len(known) == 1 else [])
        if not here or name in below:
            return None
        file, node = here[-1]
        if below and any(isinstance(part, Function) and part.name == function for part in node.body):
            return (file, name, function)
        bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        found = (self._definition(file, base, function, (*below, name)) for base in bases)
        return next((place for place in found if place), None)


def _name_place(file: TestFile, function: Function) -> tuple[int, int] | None:
    """Where the function's name stands in its file."""
    pattern = rb"(?:async\s+)?def\s+(%s)\b" % re.escape(function.name.encode())
    match = re.compile(pattern).match(file.source.content, file.source.start(function))
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
