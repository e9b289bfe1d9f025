"""Parses Python source that nobody vouches for, and finds its encoding. Safe to call from any thread.

Invariant: one parse at a time. CPython 3.11 counts the depth of a syntax tree in state that its threads share
("AST constructor recursion depth mismatch", cpython issue 106905). `catch_warnings` also changes shared
state.
"""

from __future__ import annotations

import ast
import codecs
import gc
import io
import re
import threading
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

UTF_8 = ("utf-8", "surrogateescape")
# Encodings of one or two bytes a character. Others are slow on hostile bytes, or no encodings of text.
PLAIN_ENCODINGS = re.compile(r"iso8859-|cp\d|shift_jis|euc_|koi8|gb|big5|mac-|johab|tis-|kz|ptcp|hp-")

_parse_lock = threading.Lock()


def parse_module(source: str | bytes) -> ast.Module | None:
    """The syntax tree, None if `source` does not parse. Compiler warnings are suppressed."""
    with _parse_lock, warnings.catch_warnings(), no_collection():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage is collected: a tree is many objects and no garbage, so a parse takes a third less time.

    Another thread may end this early, which costs time and nothing else.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def source_encoding(path: str, content: bytes) -> tuple[str, str]:
    """The arguments of `decode` and `encode` that read a file and write it back, byte for byte.

    The encoding is the one that a Python file declares (PEP 263), unless its text beyond ASCII is UTF-8.
    Otherwise it is UTF-8, with a lone surrogate for each byte that is not.
    """
    if not path.endswith(".py") or (not content.isascii() and _is_utf_8(content)):
        return UTF_8
    try:
        name = codecs.lookup(tokenize.detect_encoding(io.BytesIO(content).readline)[0]).name
        is_exact = bool(PLAIN_ENCODINGS.match(name)) and content.decode(name).encode(name) == content
    except (SyntaxError, LookupError, UnicodeError):
        return UTF_8
    return (name, "strict") if is_exact else UTF_8


def _is_utf_8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
