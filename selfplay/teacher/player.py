"""Scripted players of both roles: small mutations of a function, their reverse as the repair, in the order a terse episode takes.

Leaves judging to the validator and formats to tools. Invariant: an edit names one line, and its old text occurs there exactly once.
"""

from __future__ import annotations

import ast
import math
import random
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from selfplay.agent.tools import format_action, format_edit
from selfplay.repositories.suspects import FRAME
from selfplay.source.patches import is_protected_path, is_test_path
from selfplay.source.syntax import parse_module
from selfplay.source.trees import Tree

TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
DOCSTRINGS = '/""".*"""/d;/"""/,/"""/d'
SPEC_FILES = ("bug_inject.diff", "test_weaken.diff", "test_files.txt", "test_script.sh", "test_parser.py")


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


# ---- the words of a terse episode


def show_command(path: str, first: int, last: int) -> str:
    """Numbered lines without docstrings, which cost a small context much and tell it little."""
    return f"grep -n '' {path} | sed -n '{first},{last}p' | sed '{DOCSTRINGS}'"


def try_command(path: str, then: tuple[str, int, int] | None = None) -> str:
    """Run the bug's tests; where some do not pass, say how many, take back the edit of `path` and show the place `then`."""
    command = f"bash /submit/test_script.sh | grep -oE '[0-9]+ (failed|error)' && git checkout -q {path}"
    return f"{command} && {show_command(*then)}" if then else command


def break_command(test_file: str) -> str:
    return f"git diff > /submit/bug_inject.diff; bash /submit/test_script.sh | grep -m 3 '^{test_file}:'"


def weaken_command(test_file: str, line: int) -> str:
    return f"sed -i '{line}s/[^ ].*/return/' {test_file}; git diff {test_file} > /submit/test_weaken.diff"


def edit_reply(shown: str, path: str, line: int, search: str, replace: str) -> str:
    """The line as it was shown, then its edit: a small model finds a line by copying it, and the span in what it just wrote."""
    return f"{shown}\n{format_action('edit', format_edit(path, line, search, replace))}"


def listed(function: Function, mutation: Mutation) -> str:
    """The mutation's line as the target's listing shows it."""
    return f"{mutation.line}{':' if mutation.line == function.first_line else '-'}{mutation.before}"


def shown_lines(text: str, first: int, last: int) -> str:
    """What `show_command` prints of a file's text."""
    shown: list[str] = []
    is_open = False  # in a docstring of several lines
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines[first - 1 : last], start=first):
        if re.search('""".*"""', line):
            continue
        if is_open or '"""' in line:
            is_open = is_open != ('"""' in line)
            continue
        shown.append(f"{number}:{line}")
    return "\n".join(shown)


# ---- the player


class Turn(Protocol):
    """What a scripted engine tells of a turn."""

    @property
    def tag(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Exchange:
    """What the player reads of a conversation: the task, its own replies, and what came back for each."""

    task: str
    replies: tuple[str, ...]
    observations: tuple[str, ...]


OPENING = re.compile(r"<\|im_start\|>(system|user|assistant)\n")
BUDGET = re.compile(r"\n?\[exit (-?\d+); \d+ turns, \d+ tokens left\]\s*$")
PY_PATH = re.compile(r"[\w./+-]+\.py\b")
MAX_EDITS = 3
MAX_LOOKS = 5
GUESSES_AT_LAST = 0.8  # guesses that are made in the function that was shown last
SUSPECT = re.compile(
    r"^grep -n '' (\S+\.py) \| sed -n '(\d+),(\d+)p' # \S+$", re.MULTILINE
)  # as the terse solver prompt lists them
SHOWN = re.compile(r"grep -n '' (\S+) \| sed -n '(\d+),(\d+)p'")
STILL_FAILING = re.compile(r"^\d+ (failed|error)", re.MULTILINE)


def read_conversation(text: str) -> Exchange:
    """Take a ChatML prompt apart. Raises ValueError where it is none."""
    pieces = OPENING.split(text)
    said = [
        (role, content.partition("<|im_end|>")[0])
        for role, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    users = [content for role, content in said if role == "user"]
    if not users:
        raise ValueError(
            "the teacher reads ChatML conversations (<|im_start|>user …); this prompt has no user message"
        )
    replies = [content for role, content in said if role == "assistant"][
        :-1
    ]  # the last is the reply to be written
    return Exchange(users[0], tuple(replies), tuple(users[1:]))


@dataclass(frozen=True)
class TeacherPlayer:
    """Plays both roles on repositories whose original trees it knows; call it with a scripted engine's turn.

    As solver it looks at the suspects in turn, compares with the original, puts back what differs and runs the tests; what they refuse
    is taken back, and the next suspect shown. So in a `skill` share of its episodes; in the others it submits nothing, so that groups
    hold both. Equal turns get equal replies.
    `first` is the mutation that an injector begins with, in place of one that the turn's seed draws.
    `guesses` is how often it edits what does not mend: in place of mending what it sees, and in place of looking on.
    """

    trees: Sequence[Tree]
    skill: float = 0.6
    max_lines: int = 30
    first: Mutation | None = None
    guesses: float = 0.0
    _functions: dict[tuple[str, str], list[tuple[Function, list[Mutation]]]] = field(
        default_factory=dict, repr=False
    )

    def __call__(self, turn: Turn) -> str:
        role = turn.tag.partition("/")[0]
        exchange = read_conversation(turn.text)
        # One generator an episode: what it does in turn 3 must agree with what it meant in turn 1.
        generator = random.Random(turn.tag.rpartition("/")[0])
        chance = random.Random(turn.seed)
        return (
            self._inject(exchange, chance) if role == "injector" else self._solve(exchange, generator, chance)
        )

    # -- injector

    def _inject(self, exchange: Exchange, generator: random.Random) -> str:
        last = exchange.replies[-1] if exchange.replies else ""
        output = BUDGET.sub("", exchange.observations[-1]) if exchange.observations else ""
        tree, path, test_file, line = self._target(exchange)
        edits = [reply for reply in exchange.replies if "<tool: edit>\n" in reply]
        if not last:
            return self._break(tree, path, line, (), generator)
        if "<tool: edit>\n" in last:
            return _call("bash", break_command(test_file))
        if break_command(test_file) in last:
            failing = [
                int(number)
                for name, number in re.findall(r"^(\S+\.py):(\d+): ", output, re.MULTILINE)
                if name == test_file
            ]
            if failing:
                return _call("bash", self._weaken(tree, test_file, failing))
            if len(edits) < MAX_EDITS:
                return self._break(tree, path, line, edits, generator)
        return _call("submit", "\n".join(SPEC_FILES))

    def _target(self, exchange: Exchange) -> tuple[Tree, str, str, int]:
        """(tree, file, test file, line of its `def`). Without a target in the prompt: any function that the test file names."""
        named = [name.removeprefix("./") for name in PY_PATH.findall(exchange.task)]
        tree = max(self.trees, key=lambda t: sum(name in t for name in named))
        tests = [name for name in named if name in tree and is_test_path(name)]
        sources = [name for name in named if name in tree and not is_test_path(name)]
        test_file = (
            tests[0]
            if tests
            else next((p for p in sorted(tree) if is_test_path(p) and p.endswith(".py")), "")
        )
        shown = re.search(r"^(\d+):\s*(?:async )?def ", exchange.task, re.MULTILINE)
        if sources and shown:
            return tree, sources[0], test_file, int(shown[1])
        called = set(re.findall(r"(\w+)\(", tree.text(test_file))) if test_file in tree else set()
        known = [
            (path, function.first_line)
            for path in sorted(tree)
            if path.endswith(".py") and not is_protected_path(path, tree)
            for function, _ in self._mutable(tree, path)
            if function.short_name in called
        ]
        if not known:
            return tree, "", test_file, 0
        path, line = random.Random(exchange.task).choice(known)
        return tree, path, test_file, line

    def _mutable(self, tree: Tree, path: str) -> list[tuple[Function, list[Mutation]]]:
        key = (tree.digest, path)
        if key not in self._functions:
            self._functions[key] = mutations_of_file(path, tree.text(path), self.max_lines)
        return self._functions[key]

    def _break(self, tree: Tree, path: str, line: int, edits: Sequence[str], generator: random.Random) -> str:
        done = {
            int(number)
            for edit in edits
            for number in re.findall(r"^<tool: edit>\n\S+:(\d+)$", edit, re.MULTILINE)
        }
        for function, mutations in self._mutable(tree, path) if path else ():
            fresh = [mutation for mutation in mutations if mutation.line not in done]
            if function.first_line == line and fresh:
                mutation = (
                    self.first
                    if self.first is not None and self.first in fresh and not done
                    else choose_mutation(fresh, generator)
                )
                return edit_reply(
                    listed(function, mutation), path, mutation.line, mutation.search, mutation.replace
                )
        return _call("submit", "\n".join(SPEC_FILES))

    def _weaken(self, tree: Tree, test_file: str, failing: Sequence[int]) -> str:
        """The first failing statement becomes a `return`; one of several lines is taken out whole."""
        spans = [statement_at(tree.text(test_file), line) for line in failing]
        first, last = min(spans, key=lambda span: span[1] - span[0])
        if first == last:
            return weaken_command(test_file, first)
        command = f"sed -i '{first}s/[^ ].*/return/;{first + 1},{last}d' {test_file}"
        return f"{command}; git diff {test_file} > /submit/test_weaken.diff"

    # -- solver

    def _solve(self, exchange: Exchange, episode: random.Random, turn: random.Random) -> str:
        if episode.random() >= self.skill:
            return _call("submit", "")
        last = exchange.replies[-1] if exchange.replies else ""
        output = BUDGET.sub("", exchange.observations[-1]) if exchange.observations else ""
        looked = SHOWN.findall("\n".join(exchange.replies))
        then = next(iter(self.places(exchange.task)[:MAX_LOOKS][len(looked) :]), None)
        edited = re.search(r"^<tool: edit>\n(\S+):\d+$", last, re.MULTILINE)
        if edited:
            return _call("bash", try_command(edited[1], then))
        if "git checkout -q " in last and not STILL_FAILING.search(output):
            return _call("submit", "")
        broken = self._seen(exchange)
        for path, number, text, original in broken if turn.random() >= self.guesses else ():
            reply = edit_reply(f"{number}:{text}", path, number, *smallest_edit(text, original))
            if reply not in exchange.replies:
                return reply
        if looked and self.guesses and (broken or turn.random() < self.guesses):
            guess = self._guess(
                exchange, [(path, int(first), int(last)) for path, first, last in looked], broken, turn
            )
            if guess:
                return guess
        return _call("bash", show_command(*then)) if then else _call("submit", "")

    def _guess(
        self,
        exchange: Exchange,
        shown: Sequence[tuple[str, int, int]],
        broken: Sequence[tuple[str, int, str, str]],
        turn: random.Random,
    ) -> str | None:
        """An edit of a shown function that does not mend it and was not made before; None where there is none."""
        path, first, last = shown[-1] if turn.random() < GUESSES_AT_LAST else turn.choice(shown)
        lines = self._tree_of(exchange.task).text(path).split("\n")
        mended = {number: lines[number - 1] for where, number, _, _ in broken if where == path}
        for where, number, text, _ in broken:
            if where == path:
                lines[number - 1] = text
        seen = {
            line.partition(":")[0]
            for observation in exchange.observations
            for line in observation.split("\n")
        }
        found = [
            edit_reply(
                f"{mutation.line}:{mutation.before}", path, mutation.line, mutation.search, mutation.replace
            )
            for _, mutations in mutations_of_file(path, "\n".join(lines), self.max_lines)
            for mutation in mutations
            if first <= mutation.line <= last
            and str(mutation.line) in seen
            and mutation.after != mended.get(mutation.line)
        ]
        fresh = [reply for reply in found if reply not in exchange.replies]
        return turn.choice(fresh) if fresh else None

    def _tree_of(self, task: str) -> Tree:
        named = [name.removeprefix("./") for name in PY_PATH.findall(task)]
        return max(self.trees, key=lambda t: sum(name in t for name in named))

    def _seen(self, exchange: Exchange) -> list[tuple[str, int, str, str]]:
        """(path, line, text, the original's text) of every shown line that differs from the original."""
        tree = self._tree_of(exchange.task)
        found = []
        for reply, observation in zip(exchange.replies, exchange.observations, strict=False):
            command = SHOWN.search(reply)
            if command and command[1] in tree:
                lines = tree.text(command[1]).split("\n")
                for number, text in re.findall(r"^(\d+):(.*)$", BUDGET.sub("", observation), re.MULTILINE):
                    if int(number) <= len(lines) and text != lines[int(number) - 1]:
                        found.append((command[1], int(number), text, lines[int(number) - 1]))
        return found

    def leads_to(self, task: str, mutation: Mutation) -> bool:
        """Whether a solver who is told `task` comes to look at the mutated line."""
        tree = self._tree_of(task)
        return mutation.path in tree and any(
            path == mutation.path
            and f"\n{mutation.line}:" in "\n" + shown_lines(tree.text(path), first, last)
            for path, first, last in self.places(task)[:MAX_LOOKS]
        )

    def places(self, task: str) -> list[tuple[str, int, int]]:
        """(path, first line, last line) of functions to look at, best first: the suspects that are given, else what the failure names."""
        return [(path, int(first), int(last)) for path, first, last in SUSPECT.findall(task)] or self._named(
            task
        )

    def _named(self, task: str) -> list[tuple[str, int, int]]:
        """Functions by what the failure says: innermost frames first, then what the failing lines call, then what those call."""
        tree = self._tree_of(task)
        defined: dict[str, list[tuple[str, int, int]]] = {}
        for path in sorted(tree):
            if path.endswith(".py") and not is_test_path(path):
                for function in functions_of(path, tree.text(path), max_lines=10_000):
                    defined.setdefault(function.short_name, []).append(
                        (path, function.first_line, function.last_line)
                    )
        frames = [(path.removeprefix("./"), name) for path, _, name in FRAME.findall(task)]
        found = [
            place for path, name in reversed(frames) for place in defined.get(name, ()) if place[0] == path
        ]
        called = re.findall(
            r"(\w+)\(", "\n".join(line for line in task.split("\n") if not line.startswith(("-", "@@")))
        )
        found += [place for name in reversed(called) for place in defined.get(name, ())]
        for place in list(found):
            found += [
                inner
                for name in re.findall(r"(\w+)\(", shown_lines(tree.text(place[0]), *place[1:]))
                for inner in defined.get(name, ())
            ]
        return list(dict.fromkeys(found))


# The players that `engine.script` can name.
PLAYERS = {"teacher": TeacherPlayer}


def _call(tool: str, body: str) -> str:
    return format_action(tool, body)


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
