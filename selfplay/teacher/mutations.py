"""Small mutations of a function's source, each one line, with the edit that undoes it."""

from __future__ import annotations

import ast
import math
import random
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfplay.source.syntax import parse_module

TOKEN = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True)
class Mutation:
    """One changed line. `search` occurs exactly once in line `line` (1-based) of `path`; putting `replace` there makes the bug."""

    path: str
    line: int
    search: str
    replace: str
    operator: str
    before: str  # the whole line, and
    after: str  # what becomes of it

    def apply(self, text: str) -> str:
        lines = text.split("\n")
        if lines[self.line - 1] != self.before:
            raise ValueError(
                f"{self.path}:{self.line} is {lines[self.line - 1]!r}, and the mutation was made for {self.before!r}"
            )
        lines[self.line - 1] = self.after
        return "\n".join(lines)


@dataclass(frozen=True)
class Function:
    """A function of a file. Lines are 1-based, decorators left out."""

    path: str
    name: str  # qualified
    first_line: int
    last_line: int

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]


# ---- the smallest edit of a line


def occurrences(text: str, search: str) -> int:
    """How often `search` stands in `text`, overlapping places counted, as the edit tool counts."""
    return sum(text.startswith(search, at) for at in range(len(text)))


def smallest_edit(before: str, after: str) -> tuple[str, str]:
    """(search, replace): the smallest run of tokens that turns line `before` into `after`, not blank at its ends and unique in `before`.

    Raises ValueError when the lines are equal.
    """
    if before == after:
        raise ValueError(f"nothing changes in {before!r}")
    old, new = TOKEN.findall(before), TOKEN.findall(after)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    tail = 0
    while tail < min(len(old), len(new)) - start and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    end = len(old) - tail
    grow_right = True
    while True:
        search = "".join(old[start:end])
        replace = "".join(new[start : len(new) - tail])
        if (
            search.strip()
            and search == search.strip()
            and replace == replace.strip()
            and occurrences(before, search) == 1
        ):
            return search, replace
        if start == 0 and end == len(old):
            return before, after
        if (grow_right and end < len(old)) or start == 0:
            end, tail = end + 1, tail - 1
        else:
            start -= 1
        # A blank is never the end of an edit, so growing through one is not a turn of its own.
        grow_right = (
            not grow_right if (old[start] if not grow_right else old[end - 1]).strip() else grow_right
        )


# ---- mutation operators

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
_TWINS: dict[str, list[str]] = {}
for _one, _other in TWINS:
    _TWINS.setdefault(_one, []).append(_other)
    _TWINS.setdefault(_other, []).append(_one)


@dataclass(frozen=True)
class _Change:
    """New text for columns [start, end) of one line (0-based columns of the source line)."""

    line: int
    start: int
    end: int
    text: str
    operator: str


class _Operators(ast.NodeVisitor):
    """Collects every change that some operator can make to one function's body. Only places on one line, of plain ASCII lines."""

    def __init__(self, lines: Sequence[str], function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.lines = lines
        self.changes: list[_Change] = []
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
        if (
            isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            body = body[1:]  # a docstring is no place for a bug
        for statement in body:
            self.visit(statement)

    def _text(self, node: ast.expr) -> str:
        return self.lines[node.lineno - 1][node.col_offset : node.end_col_offset]

    def _one_line(self, *nodes: ast.AST) -> bool:
        places = {line for n in nodes for line in (getattr(n, "lineno", 0), getattr(n, "end_lineno", 0))}
        return len(places) == 1 and self.lines[places.pop() - 1].isascii()

    def _change(self, node: ast.expr | ast.stmt, text: str, operator: str) -> None:
        if self._one_line(node) and node.end_col_offset is not None:
            self.changes.append(_Change(node.lineno, node.col_offset, node.end_col_offset, text, operator))

    def _between(
        self, left: ast.expr, right: ast.expr, choices: Mapping[str, Sequence[str]], operator: str
    ) -> None:
        """Replace the operator that stands between two operands."""
        if not self._one_line(left, right) or left.end_col_offset is None:
            return
        gap = self.lines[left.lineno - 1][left.end_col_offset : right.col_offset]
        found = re.search(r"(?:is\s+not|not\s+in|is|in|and|or|[=!<>+\-*/%&|@]+)", gap)
        if found:
            for new in choices.get(found[0], ()):
                start = left.end_col_offset
                self.changes.append(
                    _Change(left.lineno, start + found.start(), start + found.end(), new, operator)
                )

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """An inner function is left to itself."""

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
        self.generic_visit(node)  # a negated loop condition mostly means a loop without end

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
                self.changes.append(
                    _Change(first.lineno, first.col_offset, second.end_col_offset, text, "swap_arguments")
                )
        self.generic_visit(node)

    def _twin(self, name: str, line: int, start: int) -> None:
        if self.lines[line - 1].isascii():
            for twin in _TWINS.get(name, ()):
                self.changes.append(_Change(line, start, start + len(name), twin, "twin"))

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
            # Fits every expression, also one of several lines: the change stands before it.
            self.changes.append(
                _Change(value.lineno, value.col_offset, value.col_offset, "not ", "negate_return")
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


# How often an operator's changes are drawn. Much-repeated kinds would else drown the rest.
WEIGHTS: Mapping[str, float] = {
    "comparison": 3.0,
    "and_or": 3.0,
    "arithmetic": 2.5,
    "drop_not": 3.0,
    "add_not": 2.5,
    "drop_minus": 2.0,
    "constant": 2.0,
    "string": 0.4,
    "swap_operands": 2.0,
    "swap_arguments": 1.2,
    "swap_branches": 2.0,
    "twin": 1.5,
    "wrong_variable": 0.35,
    "negate_return": 2.0,
    "return_none": 0.7,
    "break_continue": 1.0,
}


# Which of a line's changes is the plainest: most often noticed by tests, and most easily told from what a person would write.
PLAINEST = (
    "drop_not",
    "comparison",
    "and_or",
    "arithmetic",
    "drop_minus",
    "add_not",
    "negate_return",
    "swap_branches",
    "constant",
    "twin",
    "swap_operands",
    "return_none",
    "swap_arguments",
    "break_continue",
    "wrong_variable",
    "string",
)


def functions_of(path: str, text: str, max_lines: int = 25) -> list[Function]:
    """Module-level functions and methods of a Python file, by line. A file that does not parse has none."""
    return [function for function, _ in _parsed_functions(path, text, max_lines)]


def _parsed_functions(
    path: str, text: str, max_lines: int
) -> list[tuple[Function, ast.FunctionDef | ast.AsyncFunctionDef]]:
    module = parse_module(text)
    if module is None:
        return []
    found: list[tuple[Function, ast.FunctionDef | ast.AsyncFunctionDef]] = []

    def collect(body: Sequence[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                last = node.end_lineno or node.lineno
                if last - node.lineno + 1 <= max_lines:
                    found.append((Function(path, prefix + node.name, node.lineno, last), node))
            elif isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")

    collect(module.body, "")
    return sorted(found, key=lambda item: item[0].first_line)


def mutations_of_file(path: str, text: str, max_lines: int = 25) -> list[tuple[Function, list[Mutation]]]:
    """Every function of at most `max_lines` lines with all mutations that leave it a program; functions without any are left out."""
    lines = text.split("\n")
    found = []
    for function, node in _parsed_functions(path, text, max_lines):
        mutations = list(_mutations(path, lines, node))
        if mutations:
            found.append((function, mutations))
    return found


def _mutations(
    path: str, lines: Sequence[str], node: ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[Mutation]:
    seen = set()
    for change in _Operators(lines, node).changes:
        before = lines[change.line - 1]
        after = before[: change.start] + change.text + before[change.end :]
        if before == after or (change.line, after) in seen or len(before) > 120:
            continue
        seen.add((change.line, after))
        body = list(lines[node.lineno - 1 : node.end_lineno])
        body[change.line - node.lineno] = after
        if parse_module(textwrap.dedent("\n".join(body))) is None:
            continue
        search, replace = smallest_edit(before, after)
        yield Mutation(path, change.line, search, replace, change.operator, before, after)


def choose_mutation(mutations: Sequence[Mutation], generator: random.Random) -> Mutation:
    """A line at random first, then one of its mutations by its operator's weight, so that bugs spread over a function."""
    by_line: dict[int, list[Mutation]] = {}
    for mutation in mutations:
        by_line.setdefault(mutation.line, []).append(mutation)
    weights = {line: max(WEIGHTS[m.operator] for m in group) for line, group in by_line.items()}
    line = generator.choices(list(weights), list(weights.values()))[0]
    group = by_line[line]
    per_operator = {m.operator: sum(o.operator == m.operator for o in group) for m in group}
    return generator.choices(group, [WEIGHTS[m.operator] / per_operator[m.operator] for m in group])[0]


def plainest_mutation(mutations: Sequence[Mutation], generator: random.Random) -> Mutation:
    """A line at random, short ones more often, and of it always the same mutation: little to choose is little to get wrong."""
    by_line: dict[int, list[Mutation]] = {}
    for mutation in mutations:
        by_line.setdefault(mutation.line, []).append(mutation)
    best = [min(group, key=lambda m: PLAINEST.index(m.operator)) for group in by_line.values()]
    weights = [WEIGHTS[m.operator] * math.exp(-len(m.before.strip()) / 30) for m in best]
    return generator.choices(best, weights)[0]


def statement_at(text: str, line: int) -> tuple[int, int]:
    """(first, last) line of the innermost statement that `line` belongs to."""
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
