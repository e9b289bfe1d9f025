"""Functions and statements of a Python file, found by parsing. Runs none of the code."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.source.syntax import parse_module

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """A function of a file. Lines count from 1; decorators are not part of it."""

    path: str
    name: str  # qualified: "Class.method"
    first_line: int
    last_line: int

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]


def functions_of(path: str, text: str, max_lines: int = 25) -> list[Function]:
    """Module-level functions and methods of at most `max_lines` lines, in the order of the file.

    A file that does not parse has none.
    """
    return [function for function, _ in parsed_functions(path, text, max_lines)]


def parsed_functions(path: str, text: str, max_lines: int) -> list[tuple[Function, FunctionNode]]:
    """As `functions_of`, each function with its syntax tree."""
    module = parse_module(text)
    if module is None:
        return []
    found: list[tuple[Function, FunctionNode]] = []

    def collect(body: Sequence[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, FunctionNode):
                last = node.end_lineno or node.lineno
                if last - node.lineno + 1 <= max_lines:
                    found.append((Function(path, prefix + node.name, node.lineno, last), node))
            elif isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")

    collect(module.body, "")
    return sorted(found, key=lambda item: item[0].first_line)


def statement_at(text: str, line: int) -> tuple[int, int]:
    """(first, last) line of the innermost simple statement that covers `line`; (line, line) without one.

    Lines count from 1.
    """
    module = parse_module(text)
    if module is None:
        return line, line
    spans = [
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(module)
        if isinstance(node, ast.stmt)
        and not hasattr(node, "body")
        and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    return min(spans, key=lambda span: span[1] - span[0], default=(line, line))
