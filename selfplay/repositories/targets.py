"""Functions that tests really call: by test, and those that an injector can be pointed at, each with its cheapest test file.

Decides from a tree and a call record; running the suite under the recorder is left to environments.
Invariant: equal input gives equal targets in equal order.
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
from selfplay.source.path_policy import is_protected_path
from selfplay.source.syntax import parse_module
from selfplay.source.trees import Tree

HELD_OUT_SHARE = 0.25
MAX_TESTS = 50_000  # of a call record

Place = tuple[str, int, str]  # path, first line of the code, name: how a running function is known
Function = tuple[str, str]  # path, qualified name: how it is known in any version of its file
Calls = Mapping[str, tuple[Function, ...]]  # test id -> what it calls, sorted


def is_held_out(name: str) -> bool:
    """Whether functions of this qualified name ("Class.method") are for evaluation alone: no teacher, target or given bug touches them.

    A policy may still break one of its own accord: injectors are pointed at targets, and judged by what the tests say.

    A share of HELD_OUT_SHARE by the name's hash, so that it is the same function in every version of a package and on every machine.
    """
    return hashlib.sha256(name.encode()).digest()[0] < 256 * HELD_OUT_SHARE


@dataclass(frozen=True)
class Target:
    """A function or method. Lines count from 1, decorators are left out; `source` is what `grep -n -A` prints of it."""

    path: str
    name: str  # qualified: "Class.method"
    first_line: int
    last_line: int
    test_file: str
    source: str


@dataclass(frozen=True)
class Span:
    """Where a function stands in its file. Its code object starts at `code_line`, the first decorator's where there is one."""

    name: str
    code_line: int
    first_line: int
    last_line: int


@dataclass(frozen=True)
class FileCalls:
    """What one test file did: Python calls, seconds, and the functions called."""

    calls: int
    duration_s: float
    functions: frozenset[Place]


@dataclass(frozen=True)
class CallRecord:
    """What a run under the recorder did, by test file and by test id."""

    files: Mapping[str, FileCalls]
    tests: Mapping[str, frozenset[Place]]


def read_calls(record: object) -> CallRecord:
    """Read the recorder's JSON. It comes out of a sandbox: whatever is not of the expected form is left out."""
    parts = dict(_items(record))
    listed = parts.get("functions")
    functions = [_place(item) for item in listed] if isinstance(listed, list) else []
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
    tests: dict[str, frozenset[Place]] = {}
    for name, called in _items(parts.get("tests"))[:MAX_TESTS]:
        if isinstance(called, list) and len(name) <= MAX_ID_LENGTH:
            tests[name] = _chosen(functions, called)
    return CallRecord(files, tests)


def _items(value: object) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _place(item: object) -> Place | None:
    if isinstance(item, list) and len(item) == 3:
        path, line, name = item
        if isinstance(path, str) and isinstance(line, int) and isinstance(name, str):
            return path, line, name
    return None


def _chosen(functions: Sequence[Place | None], indices: list[Any]) -> frozenset[Place]:
    known = (functions[index] for index in indices if isinstance(index, int) and 0 <= index < len(functions))
    return frozenset(place for place in known if place is not None)


def find_calls(tree: Tree, tests: Mapping[str, frozenset[Place]]) -> dict[str, tuple[Function, ...]]:
    """What each test calls of the module-level functions and methods of non-test code; a test that calls none has an empty entry."""
    names = {_place_of(path, span): (path, span.name) for path, spans in _plain_code(tree) for span in spans}
    return {
        test: tuple(sorted({names[place] for place in places if place in names}))
        for test, places in tests.items()
    }


def pack_calls(calls: Calls) -> dict[str, Any]:
    """Calls as JSON that names each function once. `unpack_calls` gives them back."""
    functions = sorted({function for called in calls.values() for function in called})
    numbers = {function: number for number, function in enumerate(functions)}
    return {
        "functions": functions,
        "tests": {test: [numbers[function] for function in called] for test, called in calls.items()},
    }


def unpack_calls(packed: Mapping[str, Any]) -> dict[str, tuple[Function, ...]]:
    """Raises KeyError, TypeError, ValueError or IndexError when it was not packed so."""
    functions = [(path, name) for path, name in packed["functions"]]
    return {test: tuple(functions[number] for number in numbers) for test, numbers in packed["tests"].items()}


def find_targets(
    tree: Tree, calls: Mapping[str, FileCalls], test_files: Collection[str]
) -> tuple[Target, ...]:
    """Every module-level function and method of non-test code that one of `test_files` calls, by path and line."""
    callers: dict[Place, str] = {}
    for name in sorted(
        set(test_files) & calls.keys(), key=lambda n: (int(calls[n].duration_s), calls[n].calls, n)
    ):
        for place in calls[name].functions:
            callers.setdefault(place, name)
    targets = []
    for path, spans in _plain_code(tree):
        lines = tree.text(path).split("\n")
        for span in spans:
            test_file = callers.get(_place_of(path, span))
            if test_file:
                targets.append(
                    Target(
                        path, span.name, span.first_line, span.last_line, test_file, shown_source(lines, span)
                    )
                )
    return tuple(targets)


def _plain_code(tree: Tree) -> Iterator[tuple[str, list[Span]]]:
    """The files that are no tests and steer none, by path, with their functions."""
    for path in sorted(tree):
        if path.endswith(".py") and not is_protected_path(path, tree):
            yield path, function_spans(tree[path].content)


def _place_of(path: str, span: Span) -> Place:
    return path, span.code_line, span.name.rpartition(".")[2]


def function_spans(content: bytes) -> list[Span]:
    """Module-level functions and methods in file order, without special methods and nested functions; none if it does not parse."""
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
    """The span as `grep -n -A` shows it: the `def` line with a colon after its number, the others with a dash."""
    numbered = range(span.first_line, span.last_line + 1)
    return "\n".join(
        f"{number}{':' if number == span.first_line else '-'}{lines[number - 1]}" for number in numbered
    )


def usable_targets(
    targets: Sequence[Target], passing: Collection[str], max_lines: int, min_passing_tests: int
) -> list[Target]:
    """Targets of at most `max_lines` whose test file alone has enough passing tests for an artifact to be accepted, none held out."""
    return [
        t for t in fitting_targets(targets, passing, max_lines, min_passing_tests) if not is_held_out(t.name)
    ]


def fitting_targets(
    targets: Sequence[Target], passing: Collection[str], max_lines: int, min_passing_tests: int
) -> list[Target]:
    """As `usable_targets`, with those that are held out for evaluation."""
    tests = Counter(test_id.partition("::")[0] for test_id in passing)
    return [
        t
        for t in targets
        if t.last_line - t.first_line < max_lines and tests[t.test_file] >= min_passing_tests
    ]
