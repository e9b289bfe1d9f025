"""A parsed Python file as UTF-8 text, and edits of its bytes. Knows no change by name.

Offsets are those of `ast`: lines count from 1, columns in bytes of UTF-8.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

from selfplay.source.syntax import parse_module

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAME = re.compile(r"[^\W\d]\w*")
DUNDER = re.compile("__.*__")
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda)
FORMATTED = tuple(  # texts with code in them; t-strings are of Python 3.14
    getattr(ast, name) for name in ("JoinedStr", "TemplateStr") if hasattr(ast, name)
)
# Fields without a node that anybody asks for: names, numbers, contexts and operators.
PLAIN_FIELDS = frozenset(
    {"arg", "asname", "attr", "conversion", "ctx", "id", "is_async", "kind", "kwd_attrs", "level", "module"}
    | {"name", "op", "ops", "rest", "simple", "str", "tag", "type_comment", "type_ignores"}
)
WITHOUT_NODES = frozenset({ast.Constant, ast.Global, ast.MatchSingleton, ast.Nonlocal, ast.alias})
HAS_GAPS = frozenset({ast.Dict, ast.arguments})

# A function with one of these names may see its own locals: it gets no new ones and keeps those it has.
READS_LOCALS = frozenset(
    {"locals", "vars", "dir", "eval", "exec", "execfile", "f_locals", "_getframe", "currentframe"}
)
OF_FRAMES = frozenset({"f_locals", "_getframe", "currentframe"})
BUILTIN_MODULES = frozenset({"builtins", "__builtins__"})
BUILTINS = frozenset({"len"})  # that noise uses


@dataclass(frozen=True)
class Edit:
    """Bytes `start` to `end` become `text`."""

    start: int
    end: int
    text: bytes


@dataclass(frozen=True)
class Source:
    """A file that parses, without its byte order mark. module: its syntax tree.

    No line ends with a carriage return alone: `ast` would count other lines.
    """

    data: bytes
    module: ast.Module

    @classmethod
    def parse(cls, data: bytes) -> Source | None:
        """None if `data` is no UTF-8 or does not parse."""
        try:
            module = parse_module(data.decode())
        except UnicodeDecodeError:
            return None
        return None if module is None else cls(data, module)

    @cached_property
    def lines(self) -> list[bytes]:
        """The lines, with what ends them."""
        return self.data.splitlines(keepends=True)

    @cached_property
    def starts(self) -> list[int]:
        """The offset of each line, and of the end."""
        return [0, *accumulate(len(line) for line in self.lines)]

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes, each before those below it."""
        return list(walk(self.module))

    @cached_property
    def texts(self) -> list[tuple[int, int]]:
        """Where each text begins and ends, in order. None lies in another one."""
        formatted = [node for node in self.nodes if isinstance(node, FORMATTED)]
        inner = {id(part) for node in formatted for part in walk(node) if part is not node}
        return sorted(
            self.span(node)
            for node in self.nodes
            if id(node) not in inner
            and (
                isinstance(node, FORMATTED)
                or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))
            )
        )

    def end_of_text(self, offset: int) -> int:
        """The end of the text that has bytes before and after `offset`; 0 if none has."""
        number = bisect_left(self.texts, (offset, 0)) - 1
        end = self.texts[number][1] if number >= 0 else 0
        return end if end > offset else 0

    @cached_property
    def comments(self) -> list[tuple[int, int]]:
        """Where each comment begins and ends. A # is in a comment or in a text, and the tree has the texts.

        Comments between the parts of one text are missing: the tree has the parts as one.
        """
        found, at = [], 0
        while (start := self.data.find(b"#", at)) >= 0:
            at = self.end_of_text(start)
            if not at:
                at = self.starts[bisect_right(self.starts, start)]
                found.append((start, start + len(self.data[start:at].rstrip(b"\r\n"))))
        return found

    @cached_property
    def end_of_line(self) -> bytes:
        return b"\r\n" if b"\r\n" in self.data else b"\n"

    @cached_property
    def names(self) -> frozenset[str]:
        """Every word of the text that could be a name, in comments and texts too."""
        return frozenset(NAME.findall(self.data.decode()))

    @cached_property
    def bound(self) -> frozenset[str]:
        """Every name that any scope of the file binds. "*" if it imports all names of a module."""
        return frozenset(name for node in self.nodes if type(node) in BINDERS for name in bound_by(node))

    @cached_property
    def kept(self) -> set[int]:
        """The ids of nodes that keep their text: others may read it, or its position is not exact."""
        roots: list[ast.AST | None] = []
        for node in self.nodes:
            kind = type(node)
            if kind in (ast.arg, ast.AnnAssign):
                roots.append(node.annotation)  # type: ignore[attr-defined]
            elif kind in FUNCTIONS:
                roots.append(node.returns)  # type: ignore[attr-defined]
            elif isinstance(node, ast.JoinedStr | ast.pattern):
                roots.append(node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                roots.append(node)  # a docstring, or a text that stands like one
            elif isinstance(node, ast.Assign) and _is_dunder(node):
                roots.append(node.value)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Constant):
                roots.append(node.value)  # 10 .real
        return {id(part) for root in roots if root is not None for part in walk(root)}

    @cached_property
    def functions(self) -> list[Function]:
        """All functions, each before those in it."""
        return [node for node in self.nodes if isinstance(node, FUNCTIONS)]

    @cached_property
    def _own(self) -> dict[int, list[ast.AST]]:
        return {}

    def own_nodes(self, function: Function) -> list[ast.AST]:
        """See `own_nodes`. Found once for each function."""
        found = self._own.get(id(function))
        if found is None:
            found = self._own[id(function)] = list(own_nodes(function))
        return found

    def start(self, node: ast.AST) -> int:
        return self.starts[int(getattr(node, "lineno", 1)) - 1] + int(getattr(node, "col_offset", 0))

    def end(self, node: ast.AST) -> int:
        return self.starts[int(getattr(node, "end_lineno", 1)) - 1] + int(getattr(node, "end_col_offset", 0))

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.start(node), self.end(node)

    def text(self, node: ast.AST) -> bytes:
        return self.data[self.start(node) : self.end(node)]

    def line(self, number: int) -> bytes:
        return self.lines[number - 1] if 0 < number <= len(self.lines) else b""

    def indentation(self, statement: ast.stmt) -> bytes | None:
        """The blanks before a statement that begins its line; None if something else stands before it."""
        number = first_line(statement)
        before = self.line(number)[: statement.col_offset]
        if before.strip(b" \t\f") or self.line(number - 1).rstrip(b"\r\n").endswith(b"\\"):
            return None
        return before

    def replaced(self, node: ast.AST, text: bytes) -> Edit:
        """The edit that writes `text` in place of an expression, apart from the words beside it."""
        start, end = self.span(node)
        before, after = self.data[start - 1 : start] if start else b"", self.data[end : end + 1]
        return Edit(start, end, b" " * _is_of_a_word(before) + text + b" " * _is_of_a_word(after))

    def edited(self, edits: Iterable[Edit]) -> bytes:
        """The text after the edits. Of two that overlap, the one that begins first is made."""
        parts, at = [], 0
        for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
            if edit.start >= at:
                parts += [self.data[at : edit.start], edit.text]
                at = edit.end
        return b"".join([*parts, self.data[at:]])


def _is_dunder(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and DUNDER.match(target.id) for target in node.targets)


def _is_of_a_word(byte: bytes) -> bool:
    return byte.isalnum() or byte == b"_" or byte > b"\x7f"


def first_line(statement: ast.stmt) -> int:
    """The line on which a statement begins, with its decorators."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    lines = [statement.lineno]
    lines += [decorator.lineno for decorator in decorators]
    return min(lines)


def docstring(node: ast.AST) -> ast.Expr | None:
    """The statement that is the docstring of a module, class or function."""
    first = next(iter(getattr(node, "body", [])), None)
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first if is_text and isinstance(first.value.value, str) else None  # type: ignore[union-attr]


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The lists of statements of one node: of `if` both branches, of `try` all of them."""
    for field in ("body", "orelse", "finalbody"):
        found = getattr(node, field, None)
        if isinstance(found, list) and found and isinstance(found[0], ast.stmt):
            yield found


@cache
def _fields_below(kind: Any) -> tuple[str, ...]:
    """The fields of a kind of node that hold nodes, lists of nodes or nothing."""
    if kind in WITHOUT_NODES:
        return ()
    plain = PLAIN_FIELDS - {"name"} if kind.__name__ == "TypeAlias" else PLAIN_FIELDS
    return tuple(name for name in kind._fields if name not in plain)


def children(node: ast.AST) -> list[ast.AST]:
    """The nodes directly below one that anybody asks for: much faster than `ast.iter_child_nodes`."""
    found: list[ast.AST] = []
    kind: Any = type(node)
    for name in _fields_below(kind):
        value = getattr(node, name, None)
        if value.__class__ is list:
            found += value
        elif value is not None:
            found.append(value)
    # A dictionary that is unpacked has no key, and a parameter no default.
    return [child for child in found if child is not None] if kind in HAS_GAPS else found


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it."""
    pending = [node]
    while pending:
        found = pending.pop()
        yield found
        pending += children(found)


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's own scope. Of inner functions, lambdas and classes only the node itself."""
    pending: list[ast.AST] = list(getattr(function, "body", []))
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, SCOPES):
            pending += children(node)


def bound_by(node: ast.AST) -> Sequence[str]:
    """The names that this one node binds."""
    bound = BINDERS.get(type(node))
    return bound(node) if bound else ()


def _own_name(node: Any) -> Sequence[str]:
    return (node.name,) if node.name else ()


def _imported(node: Any) -> Sequence[str]:
    return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]


# What binds names, and which.
BINDERS: Mapping[type[ast.AST], Callable[[Any], Sequence[str]]] = {
    ast.Name: lambda node: () if type(node.ctx) is ast.Load else (node.id,),
    ast.arg: lambda node: (node.arg,),
    ast.MatchMapping: lambda node: (node.rest,) if node.rest else (),
    **dict.fromkeys((*FUNCTIONS, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar), _own_name),
    **dict.fromkeys((ast.Import, ast.ImportFrom), _imported),
    **dict.fromkeys((ast.Global, ast.Nonlocal), lambda node: node.names),
}


def reads_locals(nodes: Sequence[ast.AST]) -> bool:
    """Whether a function with these nodes may see its own locals."""
    return any(
        (isinstance(node, ast.Name) and node.id in READS_LOCALS)
        or (isinstance(node, ast.Attribute) and (node.attr in OF_FRAMES or _is_builtin(node)))
        for node in nodes
    )


def _is_builtin(node: ast.Attribute) -> bool:
    owner = node.value
    return node.attr in READS_LOCALS and isinstance(owner, ast.Name) and owner.id in BUILTIN_MODULES


def free_builtins(source: Source) -> frozenset[str]:
    """The builtins that mean the same as everywhere: the file binds none of these names."""
    return frozenset() if "*" in source.bound else BUILTINS - source.bound
