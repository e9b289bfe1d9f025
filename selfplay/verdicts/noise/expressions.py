"""Other spellings of the same: constants, comparisons, branches, values and returns."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from selfplay.verdicts.noise.snippets import Snippets
from selfplay.verdicts.noise.source import (
    FUNCTIONS,
    Edit,
    Source,
    first_line,
    free_builtins,
    reads_locals,
)
from selfplay.verdicts.noise.words import Words

PLAIN_TEXT = re.compile(rb"(?P<quote>['\"])(?P<text>[^'\"\\\r\n]*)(?P=quote)")
MIRRORED = {ast.Lt: b">", ast.LtE: b">=", ast.Gt: b"<", ast.GtE: b"<=", ast.Eq: b"==", ast.NotEq: b"!="}
SIGN = re.compile(rb"\s*(<=|>=|<|>|==|!=)\s*")
NEGATED = re.compile(rb"[ \t]+(is[ \t]+not|not[ \t]+in)[ \t]+")
ELSE = re.compile(rb"[ \t\f]*else[ \t]*:")
MOST_DIGITS = 1000  # Python refuses to write a number with more than 4300


# ---- constants


def respell_constants(source: Source, words: Words) -> list[Edit]:
    """Numbers as sums, differences or in base 16; texts in other quotes or in two parts."""
    share = words.random.uniform(0.1, 0.7)
    return [
        edit
        for node in source.nodes
        if isinstance(node, ast.Constant) and id(node) not in source.kept and words.random.random() < share
        for edit in _respelled(source, node, words)
    ]


def _respelled(source: Source, node: ast.Constant, words: Words) -> Iterator[Edit]:
    text, value = source.text(node), node.value
    if type(value) is int and text.isdigit() and len(text) <= MOST_DIGITS:
        yield source.replaced(node, _number(value, words).encode())
    elif isinstance(value, str) and (found := PLAIN_TEXT.fullmatch(text)):
        yield source.replaced(node, _text(found["text"].decode(), words).encode())


def _number(value: int, words: Words) -> str:
    """The compiler folds a sum to the same constant."""
    part = words.random.randint(0, value)
    more = words.number()
    return words.random.choice(
        (f"({part} + {value - part})", f"({value + more} - {more})", f"({value:#x})", f"({value:#o})")
    )


def _text(text: str, words: Words) -> str:
    cut = words.random.randint(0, len(text)) if words.random.random() < 0.5 else 0
    parts = [text[:cut], text[cut:]] if cut else [text]
    return " ".join(f"{quote}{part}{quote}" for part in parts for quote in [words.random.choice("'\"")])


# ---- comparisons


def mirror_comparisons(source: Source, words: Words) -> list[Edit]:
    """`a < 3` as `3 > a`, `a is not b` as `not a is b`, `a not in b` as `not a in b`.

    A constant of a builtin type leaves the comparison to the other side's type, in either order.
    """
    share = words.random.uniform(0.1, 0.8)
    return [
        edit
        for node in source.nodes
        if isinstance(node, ast.Compare) and id(node) not in source.kept and words.random.random() < share
        for edit in _mirrored(source, node)
    ]


def _mirrored(source: Source, node: ast.Compare) -> Iterator[Edit]:
    if len(node.ops) != 1:
        return
    left, right, sign = node.left, node.comparators[0], node.ops[0]
    between = source.data[source.end(left) : source.start(right)]
    left_text, right_text = source.text(left), source.text(right)
    if type(sign) in MIRRORED:
        if _is_plain(right) and not _is_plain(left) and SIGN.fullmatch(between):
            yield source.replaced(node, b"%b %b %b" % (right_text, MIRRORED[type(sign)], left_text))
    elif isinstance(sign, ast.IsNot | ast.NotIn) and NEGATED.fullmatch(between):
        positive = b"is" if isinstance(sign, ast.IsNot) else b"in"
        yield source.replaced(node, b"(not %b %b %b)" % (left_text, positive, right_text))


def _is_plain(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Constant) and type(node.value) in (int, str) and node.lineno == node.end_lineno
    )


# ---- branches


def exchange_branches(source: Source, words: Words) -> list[Edit]:
    """`if a: b else: c` as `if not (a): c else: b`."""
    share = words.random.uniform(0.2, 0.9)
    return [
        edit
        for node in source.nodes
        if isinstance(node, ast.If) and node.orelse and words.random.random() < share
        for edit in _exchanged(source, node)
    ]


def _exchanged(source: Source, node: ast.If) -> Iterator[Edit]:
    body, other = node.body, node.orelse
    if source.indentation(body[0]) is None or source.indentation(other[0]) is None:
        return
    starts = [source.starts[first_line(block[0]) - 1] for block in (body, other)]
    ends = [source.end(block[-1]) for block in (body, other)]
    between = range((body[-1].end_lineno or 0) + 1, first_line(other[0]))
    found = [number for number in between if ELSE.match(source.line(number))]
    if len(found) != 1 or source.line(node.end_lineno or 0)[node.end_col_offset :].strip(b" \t\r\n;"):
        return
    # What follows a block's last statement on its line must be its end.
    if source.line(body[-1].end_lineno or 0)[body[-1].end_col_offset :].strip():
        return
    start, end = source.span(node.test)
    if isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not):
        test = b"(%b)" % source.data[start + len(b"not") : end].strip()
    else:
        test = b"(not (%b))" % source.data[start:end]
    text = source.data
    head, middle = text[end : starts[0]], text[ends[0] : starts[1]]
    bodies = text[starts[0] : ends[0]], text[starts[1] : ends[1]]
    yield Edit(start, ends[1], b"".join((test, head, bodies[1], middle, bodies[0])))


# ---- values


def choose_values(source: Source, words: Words) -> list[Edit]:
    """Some values and all lambdas as `(value) if … else …`, with a condition that holds."""
    share = words.random.uniform(0.05, 0.3)
    edits: list[tuple[ast.expr, ast.AST]] = []
    for node in source.nodes:
        if isinstance(node, ast.Lambda) and words.random.random() < 0.8:
            edits.append((node.body, node))
        elif isinstance(node, FUNCTIONS):
            edits += [
                (child.value, child)
                for child in source.own_nodes(node)
                if isinstance(child, ast.Assign) and words.random.random() < share
            ]
    return [
        source.replaced(value, _chosen(source, value, words))
        for value, owner in edits
        if id(owner) not in source.kept
        and not isinstance(value, ast.Tuple | ast.Starred | ast.Yield | ast.YieldFrom)
    ]


def _chosen(source: Source, value: ast.expr, words: Words) -> bytes:
    snippets = Snippets(words, False, free_builtins(source))
    text = b"(%b)" % source.text(value)
    if words.random.random() < 0.5:
        return b"(%b if %b else %b)" % (
            text,
            snippets.condition(True).encode(),
            snippets.number()[0].encode(),
        )
    return b"(%b if %b else %b)" % (snippets.number()[0].encode(), snippets.condition(False).encode(), text)


def return_through_locals(source: Source, words: Words) -> list[Edit]:
    """`return a` as `b = a; return b`."""
    share = words.random.uniform(0.2, 0.8)
    edits = []
    for function in source.functions:
        own = source.own_nodes(function)
        if not reads_locals(own):
            edits += [
                edit
                for child in own
                if isinstance(child, ast.Return) and words.random.random() < share
                for edit in _through_a_local(source, child, words)
            ]
    return edits


def _through_a_local(source: Source, node: ast.Return, words: Words) -> Iterator[Edit]:
    if node.value is None or isinstance(node.value, ast.Name | ast.Constant | ast.Tuple):
        return
    start, end = source.span(node)
    text = source.data[start:end].removeprefix(b"return").strip()
    name = words.name().encode()
    yield Edit(start, end, b"%b = %b; return %b" % (name, text, name))
