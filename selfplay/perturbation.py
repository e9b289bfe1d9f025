"""Changes without meaning to Python source: what the determinism check runs so that nothing may hang on a hash of the code.

Leaves the choice of files to the validator. Invariant: every line keeps its number, and what does not parse is left alone.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable

from selfplay.syntax import parse_module
from selfplay.trees import FileEntry, Tree

BOM = b"\xef\xbb\xbf"
# Statements that another may stand before on their line. Not `global`, which must come before what it names.
SIMPLE = (
    *(ast.Expr, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Assert, ast.Delete),
    *(ast.Pass, ast.Break, ast.Continue, ast.Import, ast.ImportFrom),
)


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
    name = b"_unused_" + hashlib.sha256(b"%d" % seed + source).hexdigest()[:8].encode()
    changed = _with_assignments(source, module, name)
    for candidate in (changed, source):  # the dead branch alone, where offsets cannot be trusted: an odd encoding, say
        ended = candidate if candidate.endswith(b"\n") else candidate + b"\n"
        ended += b"if False:\n    " + name + b" = None\n"
        if parse_module(ended) is not None:
            return ended
    return source


def _with_assignments(source: bytes, module: ast.Module, name: bytes) -> bytes:
    """A no-op assignment before one statement of each function; nothing where line breaks are not what split("\\n") takes for them."""
    if source.count(b"\r") != source.count(b"\r\n"):
        return source
    mark = BOM if source.startswith(BOM) else b""
    lines = source.removeprefix(mark).split(b"\n")
    chosen = {(found.lineno, found.col_offset) for node in ast.walk(module) if (found := _first_simple(node)) is not None}
    for number, offset in sorted(chosen, reverse=True):  # from the right, so that the offsets before stay true
        line = lines[number - 1]
        lines[number - 1] = line[:offset] + name + b" = None; " + line[offset:]
    return mark + b"\n".join(lines)


def _first_simple(function: ast.AST) -> ast.stmt | None:
    """The first simple statement of a function behind its docstring, at any depth, but not of a function or class within it."""
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    has_docstring = ast.get_docstring(function, clean=False) is not None
    pending: list[ast.AST] = list(reversed(function.body[1:] if has_docstring else function.body))
    while pending:
        node = pending.pop()
        if isinstance(node, SIMPLE):
            return node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            within = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)]
            pending += reversed(within)
    return None
