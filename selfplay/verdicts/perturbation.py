"""Changes without meaning to source code. They change the outcome of tests that depend on a hash of the code.

The choice of files is left to `validator` and `grading`. Invariant: equal seeds make equal changes, and a
file that does not parse stays as it is.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Iterable
from keyword import iskeyword

from selfplay.source.path_policy import is_other_code
from selfplay.source.syntax import parse_module, source_encoding
from selfplay.source.trees import FileEntry, Tree

BOM = b"\xef\xbb\xbf"
MOST_BLANK_LINES = 61
# Statements before which another one may stand on the same line. `global` is none: it must precede the names
# that it declares.
SIMPLE = (
    *(ast.Expr, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Assert, ast.Delete),
    *(ast.Pass, ast.Break, ast.Continue, ast.Import, ast.ImportFrom),
)
# Each compiles to different bytecode.
ASSIGNMENTS = ("{0} = None", "{0} = {0} = 0", "{0} = ()", "{0} = not None")
MAX_ASSIGNMENTS = 4
TOKEN = re.compile(r"(\.\s*)?([^\W\d]\w*)(\s*\()?|[(\[{@]")


def perturb(tree: Tree, paths: Iterable[str], seed: int) -> Tree:
    """Change the files among `paths` without changing their meaning.

    A Python file gets no-op assignments in its functions, blank lines before its code and dead code at its
    end. A file in another language gets blank lines at its end. `seed` and the source select the changes:
    text, size, line numbers, syntax tree and bytecode all change. So code that draws at random from any of
    them draws again.
    """
    changes: dict[str, FileEntry | None] = {}
    for path in paths:
        entry = tree.files.get(path)
        if entry is not None and path.endswith(".py"):
            changes[path] = FileEntry(perturb_source(entry.content, seed), entry.executable)
        elif entry is not None and is_other_code(path):
            count = random.Random(b"%d:" % seed + entry.content).randint(1, MOST_BLANK_LINES)
            changes[path] = FileEntry(entry.content + b"\n" * count, entry.executable)
    return tree.replace(changes)


def perturb_source(source: bytes, seed: int) -> bytes:
    """Change a Python file as `perturb` does. A file that does not parse is returned as it is."""
    module = parse_module(source)
    if module is None:
        return source
    generator = random.Random(b"%d:" % seed + source)
    name = f"_unused_{generator.getrandbits(64):x}"[: generator.randint(12, 24)]
    changed = _with_blank_lines(
        _with_assignments(source, module, name, generator), module, generator.randint(1, MOST_BLANK_LINES)
    )
    # The second candidate gets the dead code only: with an unusual encoding the offsets may be wrong.
    for candidate in (changed, source):
        ended = candidate if candidate.endswith(b"\n") else candidate + b"\n"
        ended += f"if False:\n    {name} = None\n{_assignments(name, generator)}\ndel {name}\n".encode()
        if parse_module(ended) is not None:
            return ended
    return source


def _assignments(name: str, generator: random.Random) -> str:
    return "; ".join(
        form.format(name) for form in generator.choices(ASSIGNMENTS, k=generator.randint(1, MAX_ASSIGNMENTS))
    )


def _has_odd_lines(source: bytes) -> bool:
    """True if a line ends with a carriage return alone, so that split("\\n") does not give the lines."""
    return source.count(b"\r") != source.count(b"\r\n")


def _with_assignments(source: bytes, module: ast.Module, name: str, generator: random.Random) -> bytes:
    """No-op assignments before one statement of each function."""
    if _has_odd_lines(source):
        return source
    mark = BOM if source.startswith(BOM) else b""
    lines = source.removeprefix(mark).split(b"\n")
    positions = {
        (found.lineno, found.col_offset)
        for node in ast.walk(module)
        if (found := _first_simple(node)) is not None
    }
    # From the end to the beginning, so that the remaining offsets stay valid.
    for number, offset in sorted(positions, reverse=True):
        line = lines[number - 1]
        lines[number - 1] = line[:offset] + f"{_assignments(name, generator)}; ".encode() + line[offset:]
    return mark + b"\n".join(lines)


def _with_blank_lines(source: bytes, module: ast.Module, count: int) -> bytes:
    """`count` blank lines before the first statement after the docstring, if it begins a line.

    `source` has the lines of `module`.
    """
    body = module.body[1:] if ast.get_docstring(module, clean=False) is not None else module.body
    if _has_odd_lines(source) or not body:
        return source
    number = min(
        [body[0].lineno, *(decorator.lineno for decorator in getattr(body[0], "decorator_list", []))]
    )
    lines = source.split(b"\n")
    if number == 1 or body[0].col_offset or lines[number - 2].rstrip().endswith(b"\\"):
        return source
    return b"\n".join([*lines[: number - 1], *[b""] * count, *lines[number - 1 :]])


def may_be_random(before: Tree, after: Tree, paths: Iterable[str]) -> bool:
    """True if `after` may take a random value, or a hash of its own code, in a way that `before` does not.

    In one of `paths`, a name is called, imported or used as an attribute more often, there is one more
    bracket, or a name is new. Removed code cannot do this, nor can other operators, other constants and other
    known names.
    """
    return any(
        bool(_uses(_text(after, path)) - _uses(_text(before, path)))
        or bool(_names(_text(after, path)) - _names(_text(before, path)))
        for path in paths
        if path in after
    )


def _text(tree: Tree, path: str) -> str:
    """The source as Python reads it, "" if the tree has no such file."""
    return tree[path].content.decode(*source_encoding(path, tree[path].content)) if path in tree else ""


def _uses(text: str) -> Counter[str]:
    """How often each name is called, imported or used as an attribute, and how often each bracket appears."""
    found: Counter[str] = Counter()
    for match in TOKEN.finditer(text):
        dot, name, call = match.groups()
        if not name:
            found[match[0]] += 1
        elif name in ("import", "from") or (not iskeyword(name) and (dot or call or name.startswith("__"))):
            found[f"{'.' if dot else ''}{name}"] += 1
        if call:
            found["("] += 1
    return found


def _names(text: str) -> set[str]:
    return {match[2] for match in TOKEN.finditer(text) if match[2] and not iskeyword(match[2])}


def _first_simple(function: ast.AST) -> ast.stmt | None:
    """The first simple statement of a function after its docstring, at any depth.

    Statements of a nested function or class do not count.
    """
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    has_docstring = ast.get_docstring(function, clean=False) is not None
    pending: list[ast.AST] = list(reversed(function.body[1:] if has_docstring else function.body))
    while pending:
        node = pending.pop()
        if isinstance(node, SIMPLE):
            return node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            children = [
                child
                for child in ast.iter_child_nodes(node)
                if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
            ]
            pending += reversed(children)
    return None
