"""Other names for locals, and another order of definitions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from selfplay.verdicts.noise.source import (
    FUNCTIONS,
    SCOPES,
    Edit,
    Function,
    Source,
    blocks,
    bound_by,
    reads_locals,
    walk,
)
from selfplay.verdicts.noise.words import Words

# A file with one of these names may see the order of its definitions.
SEES_ORDER = frozenset({"globals", "locals", "vars", "__dict__", "co_firstlineno", "__code__", "__prepare__"})
# Of a parser generator, which orders its rules by their lines.
RULE_NAME = re.compile("[tp]_")
PLAIN_BASES = frozenset({"object", "Exception", "ValueError", "TypeError", "KeyError", "RuntimeError"})


def rename_locals(source: Source, words: Words) -> list[Edit]:
    """Other names for some locals of each function.

    Only those which plain names alone bind and use, in this function alone. Parameters keep their names.
    """
    share = words.random.uniform(0.2, 0.9)
    return [edit for node in source.functions for edit in _renamed(source, node, words, share)]


def _renamed(source: Source, function: Function, words: Words, share: float) -> Iterator[Edit]:
    own = source.own_nodes(function)
    if reads_locals(own):
        return
    uses: dict[str, list[ast.Name]] = {}
    bound: set[str] = set()
    kept = {name for node in walk(function.args) if isinstance(node, ast.arg) for name in bound_by(node)}
    for node in own:
        if isinstance(node, ast.Name):
            uses.setdefault(node.id, []).append(node)
            bound.update(bound_by(node))
        elif isinstance(node, (*SCOPES, ast.JoinedStr)):
            kept.update(bound_by(node))
            kept.update(name for part in walk(node) for name in _mentioned(part))
        elif isinstance(node, ast.comprehension):
            kept.update(name for part in walk(node.target) for name in bound_by(part))
        else:
            kept.update(bound_by(node))
    for name in sorted(bound - kept):
        if name.startswith("__") or words.random.random() >= share:
            continue
        spans = [source.span(node) for node in uses[name]]
        if all(source.data[start:end] == name.encode() for start, end in spans):
            new = words.name().encode()
            yield from (Edit(start, end, new) for start, end in spans)


def _mentioned(node: ast.AST) -> Iterator[str]:
    yield from bound_by(node)
    if isinstance(node, ast.Name):
        yield node.id


def reorder(source: Source, words: Words) -> list[Edit]:
    """Another order of neighbouring functions and methods that do not depend on it."""
    if not source.names.isdisjoint(SEES_ORDER):
        return []
    edits: list[Edit] = []
    for body in _bodies(source):
        for run in _runs(source, body):
            mixed = words.random.sample(run, len(run))
            edits += [
                Edit(*source.span(old), source.text(new))
                for old, new in zip(run, mixed, strict=True)
                if old is not new
            ]
    return edits


def _bodies(source: Source) -> Iterator[Sequence[ast.stmt]]:
    yield source.module.body
    for node in source.module.body:
        if (
            isinstance(node, ast.ClassDef)
            and not node.decorator_list
            and not node.keywords
            and all(isinstance(base, ast.Name) and base.id in PLAIN_BASES for base in node.bases)
        ):
            yield from blocks(node)


def _runs(source: Source, body: Sequence[ast.stmt]) -> Iterator[list[Function]]:
    """Neighbouring functions whose order does not matter: each stands alone and has a name of its own."""
    run: list[Function] = []
    for statement, following in zip(body, [*body[1:], None], strict=False):
        movable = _is_movable(source, statement) and (
            following is None or following.lineno > (statement.end_lineno or 0)
        )
        if movable:
            run.append(statement)  # type: ignore[arg-type]
        if (not movable or following is None) and run:
            yield from _independent(run)
            run = []


def _is_movable(source: Source, statement: ast.stmt) -> bool:
    return (
        isinstance(statement, FUNCTIONS)
        and not statement.decorator_list
        and source.indentation(statement) is not None
        and not RULE_NAME.match(statement.name)
        and not any(
            isinstance(node, ast.Call | ast.Await | ast.NamedExpr | ast.Lambda)
            for part in (*_evaluated(statement),)
            for node in walk(part)
        )
        and not getattr(statement, "type_params", [])
    )


def _evaluated(function: Function) -> Iterator[ast.AST]:
    """What runs when the function is defined: defaults and annotations."""
    yield function.args
    if function.returns is not None:
        yield function.returns


def _independent(run: list[Function]) -> Iterator[list[Function]]:
    names = [function.name for function in run]
    used = {
        node.id
        for function in run
        for part in _evaluated(function)
        for node in walk(part)
        if isinstance(node, ast.Name)
    }
    if len(set(names)) == len(names) > 1 and used.isdisjoint(names):
        yield run
