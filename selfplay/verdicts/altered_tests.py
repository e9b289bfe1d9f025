"""Places in a test function where a small change makes right code fail: a literal, an exception, an operator.

Which change does so is known only after a run of right code. Invariant: if a test says what it expects, the
change is there, and not in what the code gets. So code that passes the test cannot pass the changed one too,
however it treats inputs that no test has.
"""

from __future__ import annotations

import ast
import builtins
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TypeGuard

from selfplay.source.syntax import parse_module

Function = ast.FunctionDef | ast.AsyncFunctionDef

EQUALITIES = re.compile(r"assert_?(\w*equals?|count_?equal)|eq_?", re.IGNORECASE)
CALLED_WITH = re.compile(r"assert_(called\w*_with|any_call|has_calls)")
OWN_ASSERTION = re.compile(r"_*(assert|check|verify|expect|compare)(?!s?_?raises)\w*", re.IGNORECASE)
RAISES = re.compile(r"raises|assert_?raises(_?regexp?)?", re.IGNORECASE)
# Calls that only make a value of what they are given.
MAKES_VALUE = re.compile(
    r"set|frozenset|list|tuple|dict|sorted|str|bytes|bytearray|int|float|complex|approx|OrderedDict|Counter|deque"
    r"|Decimal|Fraction|date|time|datetime|timedelta|PurePosixPath|PurePath|Path|dedent|b|u"
)
TURNED_CALLS = {
    name: other
    for pair in (
        ("assertTrue", "assertFalse"),
        ("assertEqual", "assertNotEqual"),
        ("assertIn", "assertNotIn"),
        ("assertIs", "assertIsNot"),
        ("assertIsNone", "assertIsNotNone"),
        ("assertIsInstance", "assertNotIsInstance"),
        ("assertRegex", "assertNotRegex"),
        ("assertGreater", "assertLessEqual"),
        ("assertLess", "assertGreaterEqual"),
    )
    for name, other in (pair, pair[::-1])
}
TURNED_OPERATORS = {
    ast.Eq: (rb"==", b"!="),
    ast.NotEq: (rb"!=", b"=="),
    ast.Is: (rb"\bis\b", b"is not"),
    ast.IsNot: (rb"\bis\s+not\b", b"is"),
    ast.In: (rb"\bin\b", b"not in"),
    ast.NotIn: (rb"\bnot\s+in\b", b"in"),
    ast.Lt: (rb"<", b">="),
    ast.GtE: (rb">=", b"<"),
    ast.Gt: (rb">", b"<="),
    ast.LtE: (rb"<=", b">"),
}
EXCEPTIONS = (
    *("ValueError", "TypeError", "KeyError", "IndexError", "AttributeError", "RuntimeError"),
    *("NotImplementedError", "ZeroDivisionError", "OSError", "StopIteration"),
)
# A character of a literal gives way to another of its kind.
KINDS = ("0123456789", "aeiou", "bcdfghklmnprst", "AEIOU", "BCDFGHKLMNPRST")
MAX_TRIES = 8  # characters of one literal that are tried
MAX_TEXTS = 4  # texts for one place


@dataclass(frozen=True)
class Spot:
    """A place in a file, in bytes, and the texts that can stand there instead."""

    start: int
    end: int
    texts: tuple[bytes, ...]


class Source:
    """The bytes of a Python file in UTF-8, with the places of its syntax tree's nodes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.lines = [0, *(match.end() for match in re.finditer(rb"\n", content))]

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self.lines[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        return self.lines[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)

    def line_start(self, number: int) -> int:
        """Where line `number` begins, counted from 1. The end of the file for the line after the last."""
        return self.lines[number - 1] if number <= len(self.lines) else len(self.content)

    def text(self, node: ast.expr) -> bytes:
        return self.content[self.start(node) : self.end(node)]


def raised_exceptions(module: ast.Module) -> tuple[str, ...]:
    """The exceptions that a module's tests expect, as they are written there, sorted."""
    return tuple(
        sorted({ast.unparse(found) for node in ast.walk(module) if (found := _exception(node)) is not None})
    )


def find_spots(
    source: Source, function: Function, exceptions: Sequence[str], generator: random.Random
) -> tuple[Spot, ...]:
    """Places where a change makes right code fail. () if the function has none.

    One place at random, or one in each case of a parametrised test. A number is preferred, then a text, an
    exception or a truth value, and an operator. A changed text may not read well, and `!=` is rare in tests.
    exceptions: that the module expects.
    """
    places = _Places(function)
    rows = [_first_spot(source, nodes, exceptions, generator) for nodes in places.rows()]
    of_cases = tuple(spot for spot in rows if spot is not None)
    if of_cases and len(of_cases) == len(rows):
        return of_cases
    ranks = (places.numbers, places.texts, places.words, places.last_arguments, places.arguments, tuple)
    for rank in (*ranks, places.turned):
        nodes = list(rank())
        generator.shuffle(nodes)
        nodes.sort(key=lambda node: id(node) in places.conditional)
        if spot := _first_spot(source, nodes, exceptions, generator):
            return (spot,)
        if rank is tuple and of_cases:
            return of_cases
    return ()


def _first_spot(
    source: Source, nodes: Sequence[ast.expr | ast.stmt], exceptions: Sequence[str], generator: random.Random
) -> Spot | None:
    found = (_spot(source, node, exceptions, generator) for node in nodes[:MAX_TRIES])
    return next((spot for spot in found if spot is not None), None)


class _Places:
    """The nodes of a test function that can be changed."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.nodes = list(ast.walk(function))
        # What may not run with other code.
        self.conditional = {
            id(inner)
            for node in self.nodes
            if isinstance(node, ast.If | ast.IfExp | ast.While | ast.ExceptHandler | ast.Lambda | ast.Match)
            or (isinstance(node, ast.For) and not _is_literal(node.iter))
            or (isinstance(node, Function) and node is not function)
            for inner in ast.walk(node)
        }
        self.pairs = list(self._pairs())
        self.own_last = [
            node.args[-1]
            for node in self.nodes
            if isinstance(node, ast.Call) and _is_own_assertion(_called(node)) and len(node.args) >= 2
        ]
        operands = {id(side) for side in (*(side for pair in self.pairs for side in pair), *self.own_last)}
        loads = [node for node in self.nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
        used = {node.id for node in loads if id(node) not in operands}
        # Names whose value is only ever compared.
        self.expected = {node.id for node in loads} - used

    def _pairs(self) -> Iterator[tuple[ast.expr, ast.expr]]:
        """The two sides of each comparison for equality that a test makes."""
        for node in self.nodes:
            for part in _asserted_by(node):
                sides = pairwise((part.left, *part.comparators))
                for way, pair in zip(part.ops, sides, strict=True):
                    if isinstance(way, ast.Eq) or (isinstance(way, ast.Is) and _has_truth(pair)):
                        yield pair
            if isinstance(node, ast.Call) and EQUALITIES.fullmatch(_called(node)) and len(node.args) >= 2:
                yield node.args[0], node.args[1]

    def _expected(self) -> Iterator[ast.expr]:
        """Expressions of literals that are compared with what the code gives."""
        for left, right in self.pairs:
            if _is_literal(left) != _is_literal(right):
                yield left if _is_literal(left) else right
        for node in self.nodes:
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                yield from self._named(node.targets[0], [node.value])
            elif isinstance(node, ast.For | ast.AsyncFor) and isinstance(node.iter, ast.List | ast.Tuple):
                yield from self._named(node.target, node.iter.elts)
            elif isinstance(node, ast.Call) and CALLED_WITH.fullmatch(_called(node)):
                yield from (value for value in node.args if _is_literal(value))
            elif isinstance(node, ast.Call) and RAISES.fullmatch(_called(node)):
                yield from (word.value for word in node.keywords if word.arg == "match")
                yield from node.args[1:2] if "regex" in _called(node).lower() else ()

    def _named(self, target: ast.expr, values: Sequence[ast.expr]) -> Iterator[ast.expr]:
        """The `values` of a target that is only ever compared, or of such a part of it."""
        if isinstance(target, ast.Name):
            if target.id in self.expected:
                single = (value.args[0] if _is_param(value) and value.args else value for value in values)
                yield from (value for value in single if _is_literal(value))
        elif isinstance(target, ast.Tuple | ast.List):
            rows = [_row(value, len(target.elts)) for value in values]
            for number, part in enumerate(target.elts):
                yield from self._named(part, [row[number] for row in rows if row])

    def rows(self) -> Iterator[Sequence[ast.expr]]:
        """The literals that a case of a parametrised test expects, numbers first."""
        for call in self.function.decorator_list:
            if not isinstance(call, ast.Call) or _called(call) != "parametrize" or len(call.args) < 2:
                continue
            target, values = _parameters(call.args[0]), call.args[1]
            if target is None or not isinstance(values, ast.List | ast.Tuple):
                continue
            found = [list(_constants(self._named(target, [value]))) for value in values.elts]
            if any(found):
                yield from (sorted(nodes, key=lambda node: not _has_digits(node)) for nodes in found)

    def numbers(self) -> Iterator[ast.expr]:
        yield from (node for node in _constants(self._expected()) if _has_digits(node))

    def texts(self) -> Iterator[ast.expr]:
        yield from (node for node in _constants(self._expected()) if isinstance(node.value, str | bytes))

    def words(self) -> Iterator[ast.expr]:
        """Exceptions and truth values that a test expects."""
        yield from (found for node in self.nodes if (found := _exception(node)) is not None)
        yield from (node for node in _constants(self._expected()) if isinstance(node.value, bool))

    def last_arguments(self) -> Iterator[ast.expr]:
        """Literals in the last argument of an assertion that the repository defines itself."""
        yield from _constants(last for last in self.own_last if _is_literal(last))

    def arguments(self) -> Iterator[ast.expr]:
        """Literals that both sides of a comparison are computed from."""
        sides = (side for pair in self.pairs if not any(map(_is_literal, pair)) for side in pair)
        yield from _constants((*sides, *self.own_last))

    def turned(self) -> Iterator[ast.expr | ast.stmt]:
        """Assertions that can be turned into their opposite."""
        for node in self.nodes:
            if isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and _called(node) in TURNED_CALLS):
                yield node


def _constants(expressions: Iterable[ast.expr]) -> Iterator[ast.Constant]:
    """Numbers, texts and truth values in expressions."""
    for expression in expressions:
        pending = [expression]
        while pending:
            node = pending.pop()
            if isinstance(node, ast.Constant):
                if isinstance(node.value, int | float | complex | str | bytes):
                    yield node
            elif not isinstance(node, ast.JoinedStr):  # its parts have no places of their own
                pending += [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]


def _has_digits(node: ast.Constant) -> bool:
    """True for a number, and for a text with one in it."""
    return not isinstance(node.value, bool) and re.search(r"\d", repr(node.value)) is not None


def _parameters(written: ast.expr) -> ast.expr | None:
    """The names of `parametrize`, as a target of assignments. None if they are no literal."""
    try:
        names = ast.literal_eval(written)
    except (ValueError, TypeError):
        return None
    words = re.findall(r"\w+", names) if isinstance(names, str) else names
    if not isinstance(words, list | tuple) or not words:
        return None
    targets: list[ast.expr] = [ast.Name(str(word), ast.Store()) for word in words]
    return targets[0] if len(targets) == 1 and isinstance(names, str) else ast.Tuple(targets, ast.Store())


def _called(call: ast.Call) -> str:
    """The last name of what is called, "" if it has none."""
    function = call.func
    return (
        function.attr
        if isinstance(function, ast.Attribute)
        else function.id
        if isinstance(function, ast.Name)
        else ""
    )


def _asserted_by(node: ast.AST) -> Iterator[ast.Compare]:
    """The comparisons that must all be true if the assertion `node` passes."""
    if isinstance(node, ast.Assert):
        yield from _asserted(node.test)
    elif isinstance(node, ast.Call) and _called(node) in ("assertTrue", "assert_", "assert_true"):
        for part in node.args[:1]:
            yield from _asserted(part)


def _asserted(test: ast.expr) -> Iterator[ast.Compare]:
    """The comparisons that must all be true if `test` is."""
    if isinstance(test, ast.Compare):
        yield test
    elif isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        for part in test.values:
            yield from _asserted(part)
    elif isinstance(test, ast.Call) and _called(test) == "all":
        for part in test.args:
            yield from _asserted(part.elt) if isinstance(part, ast.GeneratorExp | ast.ListComp) else ()


def _is_own_assertion(name: str) -> bool:
    """True for the name of an assertion that neither pytest nor unittest defines."""
    is_known = name in TURNED_CALLS or EQUALITIES.fullmatch(name) or CALLED_WITH.fullmatch(name)
    return OWN_ASSERTION.fullmatch(name) is not None and not is_known


def _has_truth(sides: Sequence[ast.expr]) -> bool:
    return any(isinstance(side, ast.Constant) and isinstance(side.value, bool) for side in sides)


def _is_literal(node: ast.expr) -> bool:
    """True for an expression of literals, without names of the code under test."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Call):
        on_text = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Constant)
        values = (*node.args, *(word.value for word in node.keywords))
        makes_value = on_text or MAKES_VALUE.fullmatch(_called(node)) is not None
        return makes_value and bool(values) and all(map(_is_literal, values))
    if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict | ast.UnaryOp | ast.BinOp):
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        return bool(parts) and all(map(_is_literal, parts))
    return False


def _row(value: ast.expr, length: int) -> Sequence[ast.expr]:
    """The parts of one case: a tuple, a list or `pytest.param(…)`. () if there are not `length` of them."""
    parts = value.args if _is_param(value) else getattr(value, "elts", [])
    return parts if len(parts) == length and not any(isinstance(p, ast.Starred) for p in parts) else ()


def _is_param(value: ast.expr) -> TypeGuard[ast.Call]:
    return isinstance(value, ast.Call) and _called(value) == "param"


def _exception(node: ast.AST) -> ast.expr | None:
    """The exception that a call of `raises` names."""
    if isinstance(node, ast.Call) and node.args and RAISES.fullmatch(_called(node)):
        first = node.args[0]
        return first if isinstance(first, ast.Name | ast.Attribute) else None
    return None


# ---- from a node to a spot


def _spot(
    source: Source, node: ast.expr | ast.stmt, exceptions: Sequence[str], generator: random.Random
) -> Spot | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return Spot(source.start(node), source.end(node), (str(not node.value).encode(),))
    if isinstance(node, ast.Constant):
        return _of_literal(source, node, generator)
    if isinstance(node, ast.Assert):
        return _of_assertion(source, node.test)
    if isinstance(node, ast.Call):
        return _of_call(source, node)
    if isinstance(node, ast.Name | ast.Attribute):
        others = _other_exceptions(ast.unparse(node), exceptions)
        generator.shuffle(others)
        texts = tuple(name.encode() for name in others)
        return Spot(source.start(node), source.end(node), texts) if texts else None
    return None


def _other_exceptions(written: str, exceptions: Sequence[str]) -> list[str]:
    """Exceptions that are not `written`. Of Python's own, none that `pytest.raises(written)` takes."""
    kind = getattr(builtins, written, None)
    if isinstance(kind, type):
        return [name for name in EXCEPTIONS if not issubclass(getattr(builtins, name), kind)]
    return [name for name in exceptions if name != written and not hasattr(builtins, name)] or list(
        EXCEPTIONS
    )


def _of_literal(source: Source, node: ast.Constant, generator: random.Random) -> Spot | None:
    """One character of a literal, and others of its kind in random order."""
    written = source.text(node).decode()
    if _value(written) != node.value:
        return None
    is_text = isinstance(node.value, str | bytes)
    digits = [number for number, char in enumerate(written) if char in KINDS[0]]
    if is_text:
        first = min((written.find(quote) for quote in "'\"" if quote in written), default=0)
        letters = [n for n, char in enumerate(written) if n > first and any(char in kind for kind in KINDS)]
        positions = [n for n in letters if n in digits] or letters
        generator.shuffle(positions)
    else:
        positions = [n for n in digits if written[n] != "0"][-1:] or digits[-1:]
    for position in positions[:MAX_TRIES]:
        kind = next(kind for kind in KINDS if written[position] in kind)
        lacks_zero = not is_text and len(digits) > 1
        chars = [char for char in kind if char != written[position] and not (lacks_zero and char == "0")]
        generator.shuffle(chars)
        before, after = written[:position], written[position + 1 :]
        fitting = (char for char in chars if _is_other(_value(f"{before}{char}{after}"), node.value))
        texts = list(islice(fitting, MAX_TEXTS))
        if texts:
            start = source.start(node) + len(before.encode())
            return Spot(start, start + 1, tuple(char.encode() for char in texts))
    return None


def _value(written: str) -> object:
    """The value of a literal, None if it is none."""
    module = parse_module(f"({written})")
    statement = module.body[0] if module is not None and len(module.body) == 1 else None
    try:
        return ast.literal_eval(statement.value) if isinstance(statement, ast.Expr) else None
    except (ValueError, TypeError, MemoryError, RecursionError):
        return None


def _is_other(value: object, original: object) -> bool:
    return type(value) is type(original) and value != original


def _of_assertion(source: Source, test: ast.expr) -> Spot | None:
    """The operator of an asserted comparison, or the `not` that it has or gets."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        pattern, other = TURNED_OPERATORS[type(test.ops[0])]
        begin, end = source.end(test.left), source.start(test.comparators[0])
        found = list(re.finditer(pattern, source.content[begin:end]))
        return Spot(begin + found[0].start(), begin + found[0].end(), (other,)) if len(found) == 1 else None
    start = source.start(test)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        length = re.match(rb"not *", source.content[start:])
        return Spot(start, start + length.end(), (b"",)) if length else None
    if isinstance(test, ast.Call | ast.Name | ast.Attribute | ast.Subscript):
        return Spot(start, start, (b"not ",))
    return None


def _of_call(source: Source, call: ast.Call) -> Spot | None:
    """The name of an assertion of unittest."""
    name = _called(call).encode()
    end = source.end(call.func)
    if source.content[end - len(name) : end] != name:
        return None
    return Spot(end - len(name), end, (TURNED_CALLS[name.decode()].encode(),))
