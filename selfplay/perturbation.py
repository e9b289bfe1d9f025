"""Changes without meaning to Python source: what the determinism check runs so that nothing may hang on a hash of the code.

Leaves the choice of files to the validator. Invariant: every line keeps its number, and what does not parse is left alone.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable

from selfplay.syntax import parse_module
from selfplay.trees import FileEntry, Tree

SIMPLE = (ast.Expr, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Assert, ast.Delete)


def perturb(tree: Tree, paths: Iterable[str], seed: int) -> Tree:
    """`tree` with a no-op assignment in the functions of the Python files among `paths`, and a dead branch at their ends.

    Both survive parsing, the assignment also compiling, so that a seed drawn from source, syntax tree or bytecode moves.
    """
    changes: dict[str, FileEntry | None] = {}
    for path in paths:
        entry = tree.files.get(path)
        if entry is not None and path.endswith(".py"):
            changes[path] = FileEntry(perturb_source(entry.content, seed), entry.executable)
    return tree.replace(changes)


def perturb_source(source: bytes, seed: int) -> bytes:
    module = parse_module(source)
    if module is None:
        return source
    lines = source.split(b"\n")
    if any(line.rstrip(b"\r\f\x0b") != line for line in lines) or source.startswith(b"\xef\xbb\xbf"):
        return source  # line breaks or offsets that split("\n") would count differently
    name = b"_unused_" + hashlib.sha256(b"%d" % seed + source).hexdigest()[:8].encode()
    for statement in _first_statements(module):
        line = lines[statement.lineno - 1]
        before, after = line[: statement.col_offset], line[statement.col_offset :]
        if not before.strip():
            lines[statement.lineno - 1] = before + name + b" = None; " + after
    if lines[-1]:
        lines.append(b"")
    changed = b"\n".join(lines) + b"if False:\n    " + name + b" = None\n"
    return source if parse_module(changed) is None else changed


def _first_statements(module: ast.Module) -> Iterable[ast.stmt]:
    """The first statement of each function behind its docstring, where another fits before it on its line."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            if body and isinstance(body[0], SIMPLE):
                yield body[0]
