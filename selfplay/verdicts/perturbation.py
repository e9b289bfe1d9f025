"""Changes without meaning to source code: what the determinism check runs so that nothing may hang on a hash of the code.

Leaves the choice of files to the validator. Invariant: equal seeds make equal changes, and what does not parse is left alone.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Iterable
from keyword import iskeyword

from selfplay.source.path_policy import is_other_code
from selfplay.source.syntax import parse_module
from selfplay.source.trees import FileEntry, Tree

BOM = b"\xef\xbb\xbf"
MOST_BLANK_LINES = 61
# Statements that another may stand before on their line. Not `global`, which must come before what it names.
SIMPLE = (
    *(ast.Expr, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Assert, ast.Delete),
    *(ast.Pass, ast.Break, ast.Continue, ast.Import, ast.ImportFrom),
)
ASSIGNMENTS = ("{0} = None", "{0} = {0} = 0", "{0} = ()", "{0} = not None")  # each compiles to something else
MAX_ASSIGNMENTS = 4
TOKEN = re.compile(r"(\.\s*)?([^\W\d]\w*)(\s*\()?|[(\[{@]")


def perturb(tree: Tree, paths: Iterable[str], seed: int) -> Tree:
    """`tree` with no-op assignments in the functions of the Python files among `paths`, blank lines before and dead code behind them.

    They are drawn by `seed`: text, size, line numbers, syntax tree and bytecode all move, each time by something else, so that a lot
    drawn from any of them is drawn anew. Files in other languages get blank lines at their ends.
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
    module = parse_module(source)
    if module is None:
        return source
    generator = random.Random(b"%d:" % seed + source)
    name = f"_unused_{generator.getrandbits(64):x}"[: generator.randint(12, 24)]
    changed = _with_blank_lines(
        _with_assignments(source, module, name, generator), module, generator.randint(1, MOST_BLANK_LINES)
    )
    for candidate in (
        changed,
        source,
    ):  # the dead code alone, where offsets cannot be trusted: an odd encoding, say
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
    """Whether line breaks are not what split("\\n") takes for them."""
    return source.count(b"\r") != source.count(b"\r\n")


def _with_assignments(source: bytes, module: ast.Module, name: str, generator: random.Random) -> bytes:
    """No-op assignments before one statement of each function."""
    if _has_odd_lines(source):
        return source
    mark = BOM if source.startswith(BOM) else b""
    lines = source.removeprefix(mark).split(b"\n")
    chosen = {
        (found.lineno, found.col_offset)
        for node in ast.walk(module)
        if (found := _first_simple(node)) is not None
    }
    for number, offset in sorted(
        chosen, reverse=True
    ):  # from the right, so that the offsets before stay true
        line = lines[number - 1]
        lines[number - 1] = line[:offset] + f"{_assignments(name, generator)}; ".encode() + line[offset:]
    return mark + b"\n".join(lines)


def _with_blank_lines(source: bytes, module: ast.Module, count: int) -> bytes:
    """Blank lines before the first statement behind the docstring, where it begins a line; `source` has the lines of `module`."""
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


def may_draw_lots(before: Tree, after: Tree, paths: Iterable[str]) -> bool:
    """Whether some file of `paths` asks in `after` what it did not ask in `before`, so that chance or its own code may answer.

    That is a name called, dotted into or imported more often, a bracket more, or a name that is new to the file. Code that is taken
    away, and operators, constants and known names that are exchanged, ask nothing.
    """
    return any(
        bool(_asked(after.text(path)) - _asked(before.text(path) if path in before else ""))
        or bool(_names(after.text(path)) - _names(before.text(path) if path in before else ""))
        for path in paths
        if path in after
    )


def _asked(text: str) -> Counter[str]:
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
            within = [
                child
                for child in ast.iter_child_nodes(node)
                if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
            ]
            pending += reversed(within)
    return None
