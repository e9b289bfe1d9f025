"""Mutation operators: the small changes that can be made to one function's syntax tree.

Does not check that the changed function parses; `mutations` does. Invariant: a change stays within one line,
and that line is plain ASCII, because `ast` counts columns in UTF-8 bytes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfplay.teacher.functions import FunctionNode

COMPARISONS: Mapping[str, Sequence[str]] = {
    "==": ("!=",),
    "!=": ("==",),
    "<": ("<=", ">", ">="),
    "<=": ("<", ">="),
    ">": (">=", "<", "<="),
    ">=": (">", "<="),
    "is": ("is not",),
    "is not": ("is",),
    "in": ("not in",),
    "not in": ("in",),
}
ARITHMETIC: Mapping[str, Sequence[str]] = {
    "+": ("-",),
    "-": ("+",),
    "*": ("+", "/"),
    "/": ("*", "//"),
    "//": ("/", "*"),
    "%": ("//", "*"),
    "**": ("*",),
    "&": ("|",),
    "|": ("&",),
    "<<": (">>",),
    ">>": ("<<",),
}
# Names that are easily confused. Each is replaced by the other.
TWINS = (
    ("lower", "upper"),
    ("startswith", "endswith"),
    ("lstrip", "rstrip"),
    ("strip", "lstrip"),
    ("min", "max"),
    ("any", "all"),
    ("keys", "values"),
    ("values", "items"),
    ("append", "extend"),
    ("append", "remove"),
    ("first", "last"),
    ("start", "end"),
    ("start", "stop"),
    ("left", "right"),
    ("find", "rfind"),
    ("split", "rsplit"),
    ("index", "count"),
    ("partition", "rpartition"),
    ("isdigit", "isalpha"),
    ("list", "tuple"),
    ("int", "str"),
    ("int", "float"),
    ("union", "intersection"),
    ("floor", "ceil"),
    ("pop", "get"),
    ("add", "discard"),
    ("match", "search"),
    ("year", "month"),
    ("hours", "minutes"),
    ("minutes", "seconds"),
)
TWINS_OF: dict[str, list[str]] = {}
for _one, _other in TWINS:
    TWINS_OF.setdefault(_one, []).append(_other)
    TWINS_OF.setdefault(_other, []).append(_one)


@dataclass(frozen=True)
class Change:
    """New text for columns [start, end) of one line. Lines count from 1, columns from 0."""

    line: int
    start: int
    end: int
    text: str
    operator: str


def changes_of(function: FunctionNode, lines: Sequence[str]) -> list[Change]:
    """Every change that an operator can make to the function. `lines` are the lines of the whole file.

    Default values and the body are changed; the docstring and inner functions are not.
    """
    return _Changes(function, lines).found


class _Changes(ast.NodeVisitor):
    """Walks through one function and collects its changes in `found`."""

    def __init__(self, function: FunctionNode, lines: Sequence[str]) -> None:
        self.lines = lines
        self.found: list[Change] = []
        self.locals = sorted(
            {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            | {
                a.arg
                for a in ast.walk(function.args)
                if isinstance(a, ast.arg) and a.arg not in ("self", "cls")
            }
        )
        for default in (*function.args.defaults, *(d for d in function.args.kw_defaults if d is not None)):
            self.visit(default)
        body = function.body
        has_docstring = (
            isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        )
        for statement in body[1:] if has_docstring else body:
            self.visit(statement)

    def _text(self, node: ast.expr) -> str:
        return self.lines[node.lineno - 1][node.col_offset : node.end_col_offset]

    def _one_line(self, *nodes: ast.AST) -> bool:
        numbers = {line for n in nodes for line in (getattr(n, "lineno", 0), getattr(n, "end_lineno", 0))}
        return len(numbers) == 1 and self.lines[numbers.pop() - 1].isascii()

    def _change(self, node: ast.expr | ast.stmt, text: str, operator: str) -> None:
        if self._one_line(node) and node.end_col_offset is not None:
            self.found.append(Change(node.lineno, node.col_offset, node.end_col_offset, text, operator))

    def _between(
        self, left: ast.expr, right: ast.expr, choices: Mapping[str, Sequence[str]], operator: str
    ) -> None:
        """Replace the operator between two operands by each of its `choices`."""
        if not self._one_line(left, right) or left.end_col_offset is None:
            return
        gap = self.lines[left.lineno - 1][left.end_col_offset : right.col_offset]
        found = re.search(r"(?:is\s+not|not\s+in|is|in|and|or|[=!<>+\-*/%&|@]+)", gap)
        if found:
            for new in choices.get(found[0], ()):
                start = left.end_col_offset
                self.found.append(
                    Change(left.lineno, start + found.start(), start + found.end(), new, operator)
                )

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Leave out inner functions, classes and f-strings."""

    visit_AsyncFunctionDef = visit_ClassDef = visit_JoinedStr = visit_FunctionDef  # type: ignore[assignment]

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, right in zip([node.left, *node.comparators], node.comparators, strict=False):
            self._between(left, right, COMPARISONS, "comparison")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, {"and": ("or",), "or": ("and",)}, "and_or")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        is_text = isinstance(node.left, ast.Constant | ast.JoinedStr) and not isinstance(
            getattr(node.left, "value", 0), int | float
        )
        if not is_text:
            self._between(node.left, node.right, ARITHMETIC, "arithmetic")
        if (
            isinstance(node.op, ast.Sub | ast.Add | ast.Mod | ast.Div)
            and self._one_line(node)
            and not is_text
        ):
            left, right = self._text(node.left), self._text(node.right)
            plain = isinstance(node.left, ast.Name | ast.Attribute) and isinstance(
                node.right, ast.Name | ast.Attribute
            )
            if plain and left != right:
                gap = self.lines[node.lineno - 1][node.left.end_col_offset : node.right.col_offset]
                self._change(node, right + gap + left, "swap_operands")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not) and self._one_line(node):
            self._change(node, self._text(node.operand), "drop_not")
        elif isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            self._change(node, self._text(node.operand), "drop_minus")
            return
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if value is True or value is False:
            self._change(node, str(not value), "constant")
        elif isinstance(value, int) and self._one_line(node) and self._text(node).isdigit():
            for new in (value + 1, value - 1) if value > 0 else (1,):
                self._change(node, str(new), "constant")
        elif value is None:
            pass
        elif isinstance(value, str) and self._one_line(node) and 1 <= len(value) <= 10 and value.isalpha():
            text = self._text(node)
            if text[0] in "'\"" and text[1:-1] == value:
                self._change(node, text[0] + value.swapcase() + text[0], "string")

    def _condition(self, test: ast.expr) -> None:
        if self._one_line(test) and isinstance(test, ast.Name | ast.Attribute | ast.Call):
            self._change(test, "not " + self._text(test), "add_not")

    def visit_If(self, node: ast.If) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        # The condition stays: a negated one mostly makes an endless loop.
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        if self._one_line(node):
            body, other = self._text(node.body), self._text(node.orelse)
            line = self.lines[node.lineno - 1]
            middle = line[node.body.end_col_offset : node.orelse.col_offset]
            if body != other:
                self._change(node, other + middle + body, "swap_branches")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        plain = [a for a in node.args if isinstance(a, ast.Name | ast.Constant | ast.Attribute)]
        if len(plain) >= 2 and len(plain) == len(node.args) and self._one_line(*plain[:2]):
            first, second = plain[0], plain[1]
            if (
                self._text(first) != self._text(second)
                and first.end_col_offset is not None
                and second.end_col_offset is not None
            ):
                gap = self.lines[first.lineno - 1][first.end_col_offset : second.col_offset]
                text = self._text(second) + gap + self._text(first)
                self.found.append(
                    Change(first.lineno, first.col_offset, second.end_col_offset, text, "swap_arguments")
                )
        self.generic_visit(node)

    def _twin(self, name: str, line: int, start: int) -> None:
        if self.lines[line - 1].isascii():
            for twin in TWINS_OF.get(name, ()):
                self.found.append(Change(line, start, start + len(name), twin, "twin"))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.end_col_offset is not None and node.end_lineno is not None:
            start = node.end_col_offset - len(node.attr)
            if self.lines[node.end_lineno - 1][start : node.end_col_offset] == node.attr:
                self._twin(node.attr, node.end_lineno, start)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load) or not self._one_line(node):
            return
        self._twin(node.id, node.lineno, node.col_offset)
        if node.id in self.locals:
            for other in self.locals:
                if other != node.id:
                    self._change(node, other, "wrong_variable")

    def visit_Return(self, node: ast.Return) -> None:
        value = node.value
        if value is None or not self.lines[value.lineno - 1].isascii():
            return
        if not isinstance(value, ast.UnaryOp):
            # The change goes before the expression, so the expression may take several lines.
            self.found.append(
                Change(value.lineno, value.col_offset, value.col_offset, "not ", "negate_return")
            )
        if isinstance(value, ast.Name):
            self._change(value, "None", "return_none")
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._change(node, "continue", "break_continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._change(node, "break", "break_continue")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._between(node.target, node.value, {"+=": ("-=",), "-=": ("+=",), "*=": ("+=",)}, "arithmetic")
        self.visit(node.value)
