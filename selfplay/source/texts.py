"""Reads the texts of a tree that hold settings: decoded, as TOML, as INI.

Invariant: a file that is absent, too large or damaged gives an empty value. Nobody vouches for these files.
"""

from __future__ import annotations

import codecs
import configparser
import contextlib
import re
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfplay.source.trees import Tree

MAX_FILE_BYTES = 4 << 20
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
PLAIN_CODINGS = ("utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252")


def text_of(tree: Tree, path: str) -> str:
    """The text of a file: by its byte order mark, else by its coding line, else as UTF-8.

    "" for a file that is absent or larger than MAX_FILE_BYTES. Bytes that do not fit are replaced.
    """
    entry = tree.get(path)
    if entry is None or len(entry.content) > MAX_FILE_BYTES:
        return ""
    content = entry.content
    for mark, coding in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(coding, errors="replace")
    for line in content.split(b"\n", 2)[:2]:
        if found := CODING.match(line):
            with contextlib.suppress(LookupError):
                name = codecs.lookup(found[1].decode()).name
                if name in PLAIN_CODINGS:
                    return content.decode(name, errors="replace")
    return content.decode("utf-8", errors="replace")


def toml_of(tree: Tree, path: str) -> dict[str, Any]:
    """The document of a TOML file."""
    with contextlib.suppress(tomllib.TOMLDecodeError, RecursionError, ValueError):
        return tomllib.loads(text_of(tree, path))
    return {}


def ini_of(tree: Tree, path: str) -> configparser.RawConfigParser:
    """The sections of an INI file, up to its first error."""
    config = configparser.RawConfigParser(strict=False)
    with contextlib.suppress(configparser.Error):
        config.read_string(text_of(tree, path))
    return config


def table(document: Any, *keys: str) -> Mapping[str, Any]:
    """The table of a document below these keys. Empty if there is none."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def strings(value: Any) -> list[str]:
    """The texts of a list; a text alone is a list of one."""
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []
