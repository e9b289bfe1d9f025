"""Fields of task records, read strictly: each fault names the field and its value. Knows no shape of them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


def has(record: Mapping[str, Any], name: str) -> bool:
    return bool(record.get(name))


def text_of(record: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """The text of a field. A missing or null one is `default`, if there is one. Raises ValueError."""
    value = record.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise ValueError(f"lacks {name}")
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, not a text")
    return value


def ids_of(record: Mapping[str, Any], *names: str) -> list[str]:
    """Test ids: a list, the JSON text of one, or Python's. Raises ValueError."""
    for name in names:
        if record.get(name) is not None:
            return list(texts_of(decoded(record[name], name), name))
    raise ValueError(f"lacks {names[0]}")


def decoded(value: object, name: str) -> Any:
    """The value of a text in JSON or Python's notation, and anything else as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return []
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(f"{name} is {shown(value)}, neither a list nor the JSON text of one")


def texts_of(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"{name} is {shown(value)}, not a list of texts")
    if wrong := [item for item in value if not isinstance(item, str)]:
        raise ValueError(f"{name} holds {shown(wrong[0])}, which is not a text")
    return tuple(value)


def python_version(value: object) -> str:
    """`3.9` from "3.9", "3.9.18" or 3.9; "" for nothing. Raises ValueError."""
    if value in (None, ""):
        return ""
    found = re.match(r"3\.\d+", str(value))
    if found is None:
        raise ValueError(f"install_config.python is {shown(value)}, not a version like 3.11")
    return found[0]


def shown(value: object) -> str:
    """A value in a message, cut to a length that a person reads."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
