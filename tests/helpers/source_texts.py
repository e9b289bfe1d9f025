"""The texts in the source of selfplay, with … for what is put in. Docstrings are left out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "…"
PACKAGE = Path(__file__).parents[2] / "selfplay"


def texts_of_package() -> list[str]:
    """Every text of the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [text for file in files for text in texts(file.read_text(encoding="utf-8"))]


def texts(source: str) -> Iterator[str]:
    """The string constants, f-strings and their sums of a module."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if id(node) not in docstrings and (text := _text(node)) is not None:
            yield text


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [_text(part) for part in node.values]
        return "".join(VARIABLE if part is None else part for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        if left is not None or right is not None:
            return (VARIABLE if left is None else left) + (VARIABLE if right is None else right)
    return None


def holds(text: str, message: str) -> bool:
    """True if the parts of a message between … stand in the text, in their order."""
    at = 0
    for part in message.split(VARIABLE):
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True
