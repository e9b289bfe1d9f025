"""Functions that an injector can be pointed at, each with the cheapest test file that really calls it.

Decides from a tree and a call record; running the suite under the recorder is left to environments.
Invariant: equal input gives equal targets in equal order.
"""

from __future__ import annotations

import ast
import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfplay.patches import is_protected_path
from selfplay.trees import Tree

HELD_OUT_SHARE = 0.25


def is_held_out(name: str) -> bool:
    """Whether functions of this qualified name ("Class.method") are for evaluation alone: no teacher, target or bug touches them.

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
    """What one test file did: Python calls, seconds, and the functions called as (path, first line of the code, name)."""

    calls: int
    duration_s: float
    functions: frozenset[tuple[str, int, str]]


def read_calls(record: object) -> dict[str, FileCalls]:
    """Read the recorder's JSON. It comes out of a sandbox: whatever is not of the expected form is left out."""
    found: dict[str, FileCalls] = {}
    for name, entry in record.items() if isinstance(record, dict) else ():
        if not isinstance(name, str) or not isinstance(entry, dict):
            continue
        calls, duration_s, functions = (entry.get(key) for key in ("calls", "duration_s", "functions"))
        if (
            not isinstance(calls, int)
            or not isinstance(duration_s, float)
            or not math.isfinite(duration_s)
            or not isinstance(functions, list)
        ):
            continue
        found[name] = FileCalls(calls, duration_s, frozenset(place for item in functions if (place := _place(item))))
    return found


def _place(item: Any) -> tuple[str, int, str] | None:
    if isinstance(item, list) and len(item) == 3:
        path, line, name = item
        if isinstance(path, str) and isinstance(line, int) and isinstance(name, str):
            return path, line, name
    return None


def find_targets(tree: Tree, calls: Mapping[str, FileCalls], test_files: Collection[str]) -> tuple[Target, ...]:
    """Every module-level function and method of non-test code that one of `test_files` calls, by path and line."""
    callers: dict[tuple[str, int, str], str] = {}
    for name in sorted(set(test_files) & calls.keys(), key=lambda n: (int(calls[n].duration_s), calls[n].calls, n)):
        for place in calls[name].functions:
            callers.setdefault(place, name)
    targets = []
    for path in sorted(tree):
        if not path.endswith(".py") or is_protected_path(path, tree):
            continue
        lines = tree.text(path).split("\n")
        for span in function_spans(tree[path].content):
            test_file = callers.get((path, span.code_line, span.name.rpartition(".")[2]))
            if test_file:
                targets.append(Target(path, span.name, span.first_line, span.last_line, test_file, shown_source(lines, span)))
    return tuple(targets)


def function_spans(content: bytes) -> list[Span]:
    """Module-level functions and methods in file order, without special methods and nested functions; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
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
    return "\n".join(f"{number}{':' if number == span.first_line else '-'}{lines[number - 1]}" for number in numbered)


def usable_targets(targets: Sequence[Target], passing: Collection[str], max_lines: int, min_passing_tests: int) -> list[Target]:
    """Targets of at most `max_lines` whose test file alone has enough passing tests for an artifact to be accepted, none held out."""
    return [t for t in fitting_targets(targets, passing, max_lines, min_passing_tests) if not is_held_out(t.name)]


def fitting_targets(targets: Sequence[Target], passing: Collection[str], max_lines: int, min_passing_tests: int) -> list[Target]:
    """As `usable_targets`, with those that are held out for evaluation."""
    tests = Counter(test_id.partition("::")[0] for test_id in passing)
    return [t for t in targets if t.last_line - t.first_line < max_lines and tests[t.test_file] >= min_passing_tests]
