"""Functions that tests really call: those of each test, and those that an injector can be pointed at.

Works on a tree and a record of calls. Making the record is the job of `recording`.

Invariant: equal input gives equal targets in equal order. The record comes out of a sandbox, so each part of
it that has another form than expected is left out.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfplay.outcomes import MAX_ID_LENGTH
from selfplay.source.apply import change_problem
from selfplay.source.path_policy import is_protected_path
from selfplay.source.syntax import parse_module
from selfplay.source.trees import Tree

HELD_OUT_SHARE = 0.25
MAX_TESTS = 50_000  # of a record

CodeLocation = tuple[str, int, str]  # path, first line of the code, name: identifies a running function
Function = tuple[str, str]  # path, qualified name: identifies a function in every version of its file
Calls = Mapping[str, tuple[Function, ...]]  # test id -> the functions that it calls, sorted


# ---- functions of a file


@dataclass(frozen=True)
class Span:
    """The lines of a function. code_line: of its code object, which starts at the first decorator."""

    name: str
    code_line: int
    first_line: int
    last_line: int


def function_spans(content: bytes) -> list[Span]:
    """Module-level functions and methods in file order, without special methods and nested functions.

    None of them if the file does not parse.
    """
    module = parse_module(content)
    if module is None:
        return []
    return sorted(_spans(module.body, ""), key=lambda span: span.first_line)


def _spans(body: list[ast.stmt], prefix: str) -> Iterator[Span]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _spans(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not (node.name.startswith("__") and node.name.endswith("__")):
                code_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                yield Span(prefix + node.name, code_line, node.lineno, node.end_lineno or node.lineno)
        elif isinstance(node, ast.If):
            yield from _spans([*node.body, *node.orelse], prefix)
        elif isinstance(node, ast.Try):
            handled = [statement for handler in node.handlers for statement in handler.body]
            yield from _spans([*node.body, *handled, *node.orelse, *node.finalbody], prefix)


def shown_source(lines: list[str], span: Span) -> str:
    """The function as `grep -n -A` prints it: a colon after its first line's number, else a dash."""
    numbered = range(span.first_line, span.last_line + 1)
    return "\n".join(
        f"{number}{':' if number == span.first_line else '-'}{lines[number - 1]}" for number in numbered
    )


def touched_functions_of(functions: Collection[Function], before: Tree, after: Tree) -> list[str]:
    """Which of these functions `after` changes or lacks: "path: qualified name".

    Their names are plain: each function of the file that has it, in whichever class, counts.
    """
    names: dict[str, set[str]] = {}
    for path, name in functions:
        names.setdefault(path, set()).add(name)
    touched = []
    for path in sorted(names):
        if before.files.get(path) != after.files.get(path):
            old, new = _texts(before, path), _texts(after, path)
            touched += [
                f"{path}: {name}"
                for name in sorted(old)
                if name.rpartition(".")[2] in names[path] and new.get(name) != old[name]
            ]
    return touched


def _texts(tree: Tree, path: str) -> dict[str, list[str]]:
    """The lines of each function of a file, by its qualified name."""
    if path not in tree:
        return {}
    lines = tree.text(path).split("\n")
    spans = function_spans(tree[path].content)
    return {span.name: lines[span.first_line - 1 : span.last_line] for span in spans}


# ---- the record of a run


@dataclass(frozen=True)
class FileCalls:
    """What one test file did. calls: how many calls of Python functions; functions: which ones it called."""

    calls: int
    duration_s: float
    functions: frozenset[CodeLocation]


@dataclass(frozen=True)
class CallRecord:
    """What a run under the recorder called, by test file and by test id."""

    files: Mapping[str, FileCalls]
    tests: Mapping[str, frozenset[CodeLocation]]


def read_calls(record: object) -> CallRecord:
    """Read the recorder's JSON and leave out all parts of another form."""
    parts = dict(_items(record))
    listed = parts.get("functions")
    functions = [_location(item) for item in listed] if isinstance(listed, list) else []
    files: dict[str, FileCalls] = {}
    for name, entry in _items(parts.get("files")):
        fields = dict(_items(entry))
        calls, duration_s, called = (fields.get(key) for key in ("calls", "duration_s", "functions"))
        if (
            isinstance(calls, int)
            and isinstance(duration_s, float)
            and math.isfinite(duration_s)
            and isinstance(called, list)
        ):
            files[name] = FileCalls(calls, duration_s, _chosen(functions, called))
    tests: dict[str, frozenset[CodeLocation]] = {}
    for name, called in _items(parts.get("tests"))[:MAX_TESTS]:
        if isinstance(called, list) and len(name) <= MAX_ID_LENGTH:
            tests[name] = _chosen(functions, called)
    return CallRecord(files, tests)


def _items(value: object) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _location(item: object) -> CodeLocation | None:
    if isinstance(item, list) and len(item) == 3:
        path, line, name = item
        if isinstance(path, str) and isinstance(line, int) and isinstance(name, str):
            return path, line, name
    return None


def _chosen(functions: Sequence[CodeLocation | None], indices: list[Any]) -> frozenset[CodeLocation]:
    """The functions at these indices of the record's list."""
    known = (functions[index] for index in indices if isinstance(index, int) and 0 <= index < len(functions))
    return frozenset(location for location in known if location is not None)


# ---- calls of tests


def find_calls(tree: Tree, tests: Mapping[str, frozenset[CodeLocation]]) -> dict[str, tuple[Function, ...]]:
    """For each test, the module-level functions and methods of non-test code that it calls, possibly none."""
    names = {
        _location_of(path, span): (path, span.name) for path, spans in _plain_code(tree) for span in spans
    }
    return {
        test: tuple(sorted({names[location] for location in locations if location in names}))
        for test, locations in tests.items()
    }


def _plain_code(tree: Tree) -> Iterator[tuple[str, list[Span]]]:
    """Yield each Python file that is no test and controls no test run, with its functions."""
    for path in sorted(tree):
        if path.endswith(".py") and not is_protected_path(path, tree):
            yield path, function_spans(tree[path].content)


def _location_of(path: str, span: Span) -> CodeLocation:
    return path, span.code_line, span.name.rpartition(".")[2]


def pack_calls(calls: Calls) -> dict[str, Any]:
    """Calls as JSON that names each function once. `unpack_calls` reads it."""
    functions = sorted({function for called in calls.values() for function in called})
    indices = {function: index for index, function in enumerate(functions)}
    return {
        "functions": functions,
        "tests": {test: [indices[function] for function in called] for test, called in calls.items()},
    }


def unpack_calls(packed: Mapping[str, Any]) -> dict[str, tuple[Function, ...]]:
    """Read what `pack_calls` wrote.

    Raises KeyError, TypeError, ValueError or IndexError for anything else.
    """
    functions = [(path, name) for path, name in packed["functions"]]
    return {test: tuple(functions[index] for index in indices) for test, indices in packed["tests"].items()}


# ---- targets of injectors


@dataclass(frozen=True)
class Target:
    """A function or method that an injector can be pointed at.

    name: qualified, "Class.method". Lines count from 1, without decorators. test_file: the cheapest one that
    calls it. source: the function as `grep -n -A` prints it.
    """

    path: str
    name: str
    first_line: int
    last_line: int
    test_file: str
    source: str


def find_targets(
    tree: Tree, calls: Mapping[str, FileCalls], test_files: Collection[str]
) -> tuple[Target, ...]:
    """Every module-level function and method of non-test code that a test file calls, by path and line.

    Leaves out code and tests in files that neither a bug nor a repair can change.
    calls: by test file. test_files: the only files whose calls count.
    """
    callers: dict[CodeLocation, str] = {}
    for name in sorted(
        set(test_files) & calls.keys(), key=lambda n: (int(calls[n].duration_s), calls[n].calls, n)
    ):
        for location in () if change_problem(name, tree) else calls[name].functions:
            callers.setdefault(location, name)
    targets = []
    for path, spans in _plain_code(tree):
        if change_problem(path, tree):
            continue
        lines = tree.text(path).split("\n")
        for span in spans:
            test_file = callers.get(_location_of(path, span))
            if test_file:
                targets.append(
                    Target(
                        path, span.name, span.first_line, span.last_line, test_file, shown_source(lines, span)
                    )
                )
    return tuple(targets)


def usable_targets(
    targets: Sequence[Target], passing: Collection[str], max_lines: int, min_passing_tests: int
) -> list[Target]:
    """The targets that training may use: as `fitting_targets`, without those held out for evaluation."""
    return [
        t for t in fitting_targets(targets, passing, max_lines, min_passing_tests) if not is_held_out(t.name)
    ]


def fitting_targets(
    targets: Sequence[Target], passing: Collection[str], max_lines: int, min_passing_tests: int
) -> list[Target]:
    """Targets of at most `max_lines` whose test file alone has enough passing tests for an accepted artifact.

    passing: ids of all tests that pass on the original.
    """
    tests = Counter(test_id.partition("::")[0] for test_id in passing)
    return [
        t
        for t in targets
        if t.last_line - t.first_line < max_lines and tests[t.test_file] >= min_passing_tests
    ]


def is_held_out(name: str) -> bool:
    """Whether functions with this qualified name ("Class.method") serve evaluation only.

    No teacher, target or given bug touches them. A policy may still break one: an injector may change code
    beside its target. A hash of the name chooses a share of HELD_OUT_SHARE, so the choice is the same in
    every version of a package and on every machine.
    """
    return hashlib.sha256(name.encode()).digest()[0] < 256 * HELD_OUT_SHARE
