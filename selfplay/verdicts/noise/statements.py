"""Statements that do nothing, in functions, in classes and between definitions.

In a function they run and bind new locals. Elsewhere they bind nothing, since others see the names of a class
and of a module. Some of them hold copies of the code around them that never run: so counts of every kind of
node, name, constant and operation change.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from selfplay.verdicts.noise.snippets import Snippets
from selfplay.verdicts.noise.source import (
    FUNCTIONS,
    Edit,
    Function,
    Source,
    bound_by,
    docstring,
    first_line,
    free_builtins,
    reads_locals,
    walk,
)
from selfplay.verdicts.noise.words import Words

# Statements before which another one may stand on the same line. `global` is none: it must precede the names
# that it declares.
SIMPLE = (
    *(ast.Expr, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Assert, ast.Delete),
    *(ast.Pass, ast.Break, ast.Continue, ast.Import, ast.ImportFrom),
)
# What a copy of a statement in the same function must not hold.
NOT_COPIED = (
    *(ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Global, ast.Nonlocal),
    *(ast.Break, ast.Continue),
)
MAX_COPIED_LINES = 40


def in_functions(source: Source, words: Words) -> list[Edit]:
    """Statements in every function."""
    return [edit for node in source.functions for edit in _in_function(source, node, words)]


def _in_function(source: Source, function: Function, words: Words) -> Iterator[Edit]:
    own = source.own_nodes(function)
    arguments = function.args
    lost = {
        name
        for node in own
        if isinstance(node, ast.ExceptHandler) or isinstance(getattr(node, "ctx", None), ast.Del)
        for name in bound_by(node)
    }
    plain = [arg.arg for arg in (*arguments.posonlyargs, *arguments.args) if arg.arg not in lost]
    snippets = Snippets(words, not reads_locals(own), free_builtins(source), _unmangled(plain))
    body = function.body[1:] if docstring(function) else function.body
    declared = [n for n, child in enumerate(body) if isinstance(child, ast.Global | ast.Nonlocal)]
    body = body[declared[-1] + 1 :] if declared else body
    places = [child for child in body if source.indentation(child) is not None]
    if not places:
        yield from _on_the_line(source, function, body, snippets)
        return
    chosen = words.random.sample(places, min(len(places), words.random.choice((1, 1, 1, 2))))
    for place in sorted(chosen, key=lambda child: child.lineno):
        lines = snippets.live(words.random.randint(1, 2))
        if words.random.random() < 0.6:
            lines += _dead_lines(source, function, own, snippets)
        yield _before(source, place, lines)


def _unmangled(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith("__")]


def _on_the_line(
    source: Source, function: Function, body: Sequence[ast.stmt], snippets: Snippets
) -> Iterator[Edit]:
    """A statement in a function that has no line of its own for it."""
    only = docstring(function)
    if body and isinstance(body[0], SIMPLE):
        start = source.start(body[0])
        yield Edit(start, start, f"{snippets.simple_statement()}; ".encode())
    elif only is not None and len(function.body) == 1:
        end = source.end(only)
        yield Edit(end, end, f"; {snippets.simple_statement()}".encode())


def _before(source: Source, place: ast.stmt, lines: Sequence[str]) -> Edit:
    """The lines before a statement that begins its line."""
    indentation = source.indentation(place) or b""
    if b"\t" in indentation:
        lines = [_with_tabs(line) for line in lines]
    start = source.starts[first_line(place) - 1]
    text = b"".join(
        indentation + line.encode() + source.end_of_line if line else source.end_of_line for line in lines
    )
    return Edit(start, start, text)


def _with_tabs(line: str) -> str:
    blanks = re.match(" *", line)[0]  # type: ignore[index]
    return "\t" * (len(blanks) // 4) + line.lstrip(" ")


def _dead_lines(source: Source, function: Function, own: Sequence[ast.AST], snippets: Snippets) -> list[str]:
    """Lines that never run, most of them a copy of some statement of the same function."""
    words = snippets.words
    inner = Snippets(words, snippets.binds, snippets.builtins, snippets.plain, known=dict(snippets.known))
    lines = inner.live(1) if words.random.random() < 0.4 else []
    copies = (
        []
        if any(isinstance(node, ast.Global | ast.Nonlocal) for node in own)
        else _copied(source, own, words)
    )
    lines += copies
    if not copies or words.random.random() < 0.4:
        generates = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in own)
        value = words.random.choice([*snippets.plain, str(words.number()), "None"])
        lines += [words.random.choice((f"return {value}", f"raise ValueError({inner.text()[0]})"))]
        if generates:
            lines[-1] = "return"
    return snippets.dead(lines)


def _copied(source: Source, own: Sequence[ast.AST], words: Words) -> list[str]:
    """The lines of a statement of the function, which binds nothing that the function does not bind."""
    statements = [node for node in own if isinstance(node, ast.stmt)]
    for statement in words.random.sample(statements, min(4, len(statements))):
        lines = lines_of(source, statement)
        is_branch = bool(lines) and lines[0].startswith("elif")
        if lines and not is_branch and not any(isinstance(node, NOT_COPIED) for node in walk(statement)):
            return lines
    return []


def lines_of(source: Source, statement: ast.stmt) -> list[str]:
    """The lines of a statement without their common indentation; [] if they do not stand alone."""
    indentation = source.indentation(statement)
    last, end = statement.end_lineno or 0, statement.end_col_offset or 0
    if indentation is None or last - first_line(statement) >= MAX_COPIED_LINES:
        return []
    if any(
        node.lineno != node.end_lineno
        for node in walk(statement)
        if isinstance(node, ast.Constant | ast.JoinedStr)
    ):
        return []
    raw = [source.line(number).rstrip(b"\r\n") for number in range(first_line(statement), last)]
    raw.append(source.line(last)[:end])
    if any(line.endswith(b"\\") for line in raw):
        return []
    return [line.removeprefix(indentation).decode() if line.strip() else "" for line in raw]


# ---- between definitions


def dead_blocks(source: Source, words: Words) -> list[Edit]:
    """Blocks that never run, between the statements of the module and of its classes, and at the end."""
    edits: list[Edit] = []
    for node in source.nodes:
        if isinstance(node, ast.ClassDef) and words.random.random() < 0.6:
            edits += _blocks_in(source, node, node.body, 1, words)
    edits += _blocks_in(source, source.module, source.module.body, words.random.randint(0, 3), words)
    lines = _block(source, source.module, words)
    text = b"".join(line.encode() + source.end_of_line for line in lines)
    before = b"" if source.data.endswith(b"\n") or not source.data else source.end_of_line
    return [*edits, Edit(len(source.data), len(source.data), before + text)]


def _blocks_in(
    source: Source, node: ast.AST, body: Sequence[ast.stmt], count: int, words: Words
) -> Iterator[Edit]:
    first = 1 if docstring(node) else 0
    while first < len(body) and _is_from_the_future(body[first]):
        first += 1
    places = [child for child in body[first:] if source.indentation(child) is not None]
    for place in words.random.sample(places, min(count, len(places))):
        yield _before(source, place, _block(source, node, words))


def _is_from_the_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _block(source: Source, node: ast.AST, words: Words) -> list[str]:
    """Lines that never run, most of them a copy of one of the node's functions or classes."""
    # A class may have names of its own that hide a builtin.
    snippets = Snippets(words, False, free_builtins(source))
    inner = Snippets(words, True).live(words.random.randint(1, 3))
    found = [child for child in getattr(node, "body", []) if isinstance(child, (*FUNCTIONS, ast.ClassDef))]
    for child in words.random.sample(found, min(2, len(found))):
        lines = lines_of(source, child)
        head = re.compile(rf"((?:async\s+)?(?:def|class)\s+){re.escape(child.name)}\b")
        if lines and any(head.match(line) for line in lines):
            inner = [head.sub(rf"\g<1>{words.name()}", line, count=1) for line in lines]
            break
    return snippets.dead(inner)
