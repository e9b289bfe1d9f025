"""Parsing Python source that may be anything, from any thread. What is looked for in the tree is left to callers.

Invariant: one parse at a time. CPython 3.11 counts the depth of a tree in state that its threads share ("AST constructor recursion
depth mismatch", cpython issue 106905), and `catch_warnings` swaps filters that they share too.
"""

from __future__ import annotations

import ast
import threading
import warnings

_one_at_a_time = threading.Lock()


def parse_module(source: str | bytes) -> ast.Module | None:
    """The syntax tree, None for what does not parse. What the compiler would warn of is not told."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
