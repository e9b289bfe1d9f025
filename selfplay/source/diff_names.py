"""File names in the headers of a diff: their prefixes and quotes. Pure.

git writes names as `a/NAME` and `b/NAME`. Its own settings change that: `diff.noprefix` leaves the prefixes
out, `diff.mnemonicPrefix` writes c/, i/, o/, w/ (1/ and 2/ with `--no-index`), `git diff -R` swaps the two.
All of these are read; any other prefix is refused, since the name could be meant in several ways.

Invariant: a `diff --git` line has one reading at most. Both names of a section are equal unless it is a
rename, so its two halves have one length, and equal halves have no prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_HEADER = 10_000  # characters of both names, each escaped
PREFIXES = ("a/", "b/", "c/", "i/", "o/", "w/", "1/", "2/")
# Escapes in names that git quotes in C style, and their bytes.
ESCAPES = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}


@dataclass(frozen=True)
class Names:
    """The old and the new name of a section, and the prefixes that its headers put before them."""

    old: str
    new: str
    old_prefix: str
    new_prefix: str

    def labels(self, added: bool, deleted: bool) -> tuple[str, str]:
        """What must follow --- and +++."""
        return (
            "/dev/null" if added else self.old_prefix + self.old,
            "/dev/null" if deleted else self.new_prefix + self.new,
        )


def read_names(rest: str, rename: tuple[str, str] | None) -> Names:
    """The names in `rest`, the text after 'diff --git '.

    rename: the names of 'rename from' and 'rename to', if there are any.
    Raises ValueError that says what is wrong, without the line and the remedy.
    """
    if len(rest) > MAX_HEADER:
        raise ValueError(f"the names in the 'diff --git' line are too long: {rest[:60]!r}…")
    quoted = _quoted_halves(rest) if '"' in rest else None
    if rename is not None:
        old, new = rename
        for prefixes in _prefix_pairs():
            pair = prefixes[0] + old, prefixes[1] + new
            if quoted == pair or (quoted is None and rest == " ".join(pair)):
                return Names(old, new, *prefixes)
        raise ValueError(
            f"the 'diff --git' line does not name {old[:60]!r} and {new[:60]!r} as the other headers do"
        )
    halves = quoted or _equal_halves(rest)
    if halves is None:
        raise ValueError(
            f"the names in the 'diff --git' line do not agree: {rest[:80]!r}; "
            "a rename needs 'rename from' and 'rename to'"
        )
    left, right = halves
    if left == right:
        return Names(left, right, "", "")
    prefixes = left[:2], right[:2]
    if left[2:] == right[2:] and all(prefix in PREFIXES for prefix in prefixes):
        return Names(left[2:], right[2:], *prefixes)
    raise ValueError(
        f"the names {left[:60]!r} and {right[:60]!r} in the 'diff --git' line do not agree: they may differ "
        "in a/ and b/, or in the prefixes of diff.mnemonicPrefix, only; "
        "a rename needs 'rename from' and 'rename to'"
    )


def _prefix_pairs() -> Iterator[tuple[str, str]]:
    yield "", ""
    yield from ((old, new) for old in PREFIXES for new in PREFIXES if old != new)


def _equal_halves(rest: str) -> tuple[str, str] | None:
    middle = len(rest) // 2
    return (rest[:middle], rest[middle + 1 :]) if len(rest) % 2 and rest[middle] == " " else None


def _quoted_halves(rest: str) -> tuple[str, str] | None:
    """The names of a line where one or both are quoted."""
    if rest.startswith('"'):
        left, tail = _take_quoted(rest)
        return (left, unquoted(tail[1:])) if tail.startswith(" ") else None
    left, found, right = rest.partition(' "')
    return (left, unquoted(f'"{right}')) if found else None


# ---- quotes


def unquoted(text: str) -> str:
    """The name, also if git quoted it in C style. Raises ValueError."""
    if not text.startswith('"'):
        return text
    name, rest = _take_quoted(text)
    if rest:
        raise ValueError(f"unreadable quoted name {text[:60]!r}")
    return name


def _take_quoted(text: str) -> tuple[str, str]:
    """The quoted name at the start of `text`, and the rest after its closing quote. Raises ValueError."""
    data = bytearray()
    at = 1
    while at < len(text) and text[at] != '"':
        if text[at] != "\\":
            data += text[at].encode("utf-8", "surrogateescape")
            at += 1
        elif text[at + 1 : at + 2] in ESCAPES:
            data.append(ESCAPES[text[at + 1]])
            at += 2
        elif re.fullmatch(r"[0-3][0-7]{2}", text[at + 1 : at + 4]):
            data.append(int(text[at + 1 : at + 4], 8))
            at += 4
        else:
            raise ValueError(f"unreadable quoted name {text[:60]!r}")
    if at >= len(text):
        raise ValueError(f"unreadable quoted name {text[:60]!r}")
    try:
        return data.decode("utf-8"), text[at + 1 :]
    except UnicodeDecodeError as error:
        raise ValueError(f"the file name {text[:60]!r} is not UTF-8") from error


def label(prefix: str, name: str | None) -> str:
    """A name as git writes it after --- and +++. A tab ends a name with blanks, as git does it."""
    if name is None:
        return "/dev/null"
    return f"{prefix}{name}\t" if " " in name else f"{prefix}{name}"
