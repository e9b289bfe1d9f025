"""Parses Python source that nobody vouches for. Safe to call from any thread.

Invariant: one parse at a time. CPython 3.11 counts the depth of a syntax tree in state that its threads share
("AST constructor recursion depth mismatch", cpython issue 106905). `catch_warnings` also changes shared
state.
"""

from __future__ import annotations

import ast
import threading
import warnings

_parse_lock = threading.Lock()


def parse_module(source: str | bytes) -> ast.Module | None:
    """The syntax tree, None if `source` does not parse. Compiler warnings are suppressed."""
    with _parse_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
