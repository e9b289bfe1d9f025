"""The noise of the first audit, as an attacker knows it: its marks can be stripped.

Controls use it in place of `selfplay.verdicts.noise`. Names begin with `_unused_`, assignments have four
forms, and dead code stands at the end.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterable

from selfplay.source.syntax import parse_module
from selfplay.source.trees import FileEntry, Tree

SIMPLE = (ast.Expr, ast.Return, ast.Assign, ast.AugAssign, ast.Raise, ast.Assert, ast.Pass, ast.Import)
FORMS = ("{0} = None", "{0} = {0} = 0", "{0} = ()", "{0} = not None")


def perturb_with_marks(tree: Tree, paths: Iterable[str], seed: int) -> Tree:
    return tree.replace(
        {
            path: FileEntry(with_marks(tree[path].content, seed), tree[path].executable)
            for path in paths
            if path in tree and path.endswith(".py")
        }
    )


def with_marks(source: bytes, seed: int) -> bytes:
    module = parse_module(source)
    if module is None:
        return source
    generator = random.Random(b"%d:" % seed + source)
    name = f"_unused_{generator.getrandbits(64):x}"[: generator.randint(12, 24)]

    def assignments() -> str:
        return "; ".join(form.format(name) for form in generator.choices(FORMS, k=generator.randint(1, 4)))

    lines = source.split(b"\n")
    firsts = [
        node.body[1 if ast.get_docstring(node) else 0]
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1
    ]
    for first in sorted(firsts, key=lambda node: -node.lineno):
        if isinstance(first, SIMPLE):
            line, at = lines[first.lineno - 1], first.col_offset
            lines[first.lineno - 1] = line[:at] + f"{assignments()}; ".encode() + line[at:]
    start = next(node.lineno for node in module.body[1 if ast.get_docstring(module) else 0 :])
    lines[start - 1 : start - 1] = [b""] * generator.randint(1, 61)
    return b"\n".join(lines) + f"\nif False:\n    {name} = None\n{assignments()}\ndel {name}\n".encode()
