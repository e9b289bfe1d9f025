"""Edits of a text: the one occurrence of a search text, replaced. Pure.

Invariant: an edit changes the one place that it can mean. Whole lines may differ from the file in their
indentation, and may be elsewhere than named, as long as they are in it once.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

MAX_PLACES = 1000  # occurrences that are looked for: a text of one character holds its half at every place

MAX_INDENTATIONS = 40  # of equal lines in a file that are told apart


class EditError(Exception):
    """An edit that does not fit the file; the message is shown to the policy."""


class _NotThere(EditError):
    """The search text is not where it was looked for."""


# ---- editing


def apply_edit(text: str, search: str, replace: str, line: int | None = None) -> str:
    """`text` with the only occurrence of `search` replaced; with `line` (1-based), the one that starts there.

    If `search` occurs nowhere, or not in `line`, and is whole lines that the text has once but for their
    indentation, they are replaced; `replace` is then moved as far as they are. In a file with CRLF, `search`
    is matched as the file is shown, without carriage returns; the new lines get the file's line break. Raises
    EditError that says what to do.
    """
    try:
        start, end = _place(text, search, line)
    except _NotThere:
        moved = _moved_lines(text, search, replace)
        if moved is None:
            raise
        start, end, replace = moved
    if _is_as_shown(text, search):
        replace = replace.replace("\r\n", "\n").replace("\n", _line_break(text, start))
    if text[start:end] == replace:
        raise EditError("The replacement equals the search text, so nothing would change.")
    return text[:start] + replace + text[end:]


def _place(text: str, search: str, line: int | None) -> tuple[int, int]:
    """Start and end of the only occurrence, or of the only one that starts in `line`. Raises EditError."""
    places = _places(text, search)
    starts = list(places)
    if line is not None:
        begin, end = _line_span(text, line)
        in_line = {begin + start: begin + stop for start, stop in _places(text[begin:], search).items()}
        places |= in_line
        here = [start for start in in_line if start < end]
        if not here:
            elsewhere = (
                f" It starts in line {_listed(text, starts)}." if starts else " It is nowhere in the file."
            )
            raise _NotThere(f"The search text does not start in line {line}.{elsewhere}")
        if len(here) > 1:
            raise EditError(
                f"The search text occurs {len(here)} times in line {line}; give more of the line."
            )
        starts = here
    if not starts:
        raise _NotThere("The search text is not in the file; copy it exactly, indentation included.")
    if len(starts) > 1:
        raise EditError(
            f"The search text occurs {len(starts)} times, in lines {_listed(text, starts)}; "
            "name one as path:LINE, or give more of it."
        )
    return starts[0], places[starts[0]]


def _moved_lines(text: str, search: str, replace: str) -> tuple[int, int, str] | None:
    """Start and end of the only lines that are those of `search` but for their indentation, and `replace`
    moved as far as they are.

    None if there are none or several, or if `replace` cannot be moved so.
    """
    wanted = search.removesuffix("\n").split("\n")
    first, given = wanted[0].strip(), _indentation(wanted[0])
    meant = sorted({_indentation(line) for line in text.split("\n") if line.strip() == first})
    if "\r" in text or not first or len(meant) > MAX_INDENTATIONS:
        return None
    found: list[tuple[int, int, str]] = []
    for indentation in meant:
        moved = _moved(wanted, given, indentation)
        if moved is not None:
            lines = "\n".join(moved) + search[len(search.removesuffix("\n")) :]
            whole = [place for place in _occurrences(text, lines).items() if _are_whole_lines(text, *place)]
            found += [(*place, indentation) for place in whole]
    if len(found) != 1:
        return None
    start, end, indentation = found[0]
    put = _moved(replace.split("\n"), given, indentation)
    return None if put is None else (start, end, "\n".join(put))


def _are_whole_lines(text: str, start: int, end: int) -> bool:
    return (start == 0 or text[start - 1] == "\n") and (end == len(text) or "\n" in text[end - 1 : end + 1])


def _moved(lines: Sequence[str], given: str, meant: str) -> list[str] | None:
    """The lines with `meant` in place of the indentation `given`; None if one that is not blank lacks it."""
    if any(line.strip() and not line.startswith(given) for line in lines):
        return None
    return [meant + line.removeprefix(given) if line.strip() else line for line in lines]


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def apply_one_of(text: str, readings: Sequence[tuple[str, str]], line: int | None = None) -> tuple[str, str]:
    """Apply the reading (search, replace) of an edit whose search text is the longest one in the file.

    readings: what the edit can mean; a longer search text begins with each shorter one. So where the longer
    one is in the file, the shorter one would repeat a part of the file.
    Returns the new text and the replacement. Raises EditError, that of the first reading if no text is there.
    """
    longest_first = sorted(readings, key=lambda reading: len(reading[0]), reverse=True)
    search, replace = next((one for one in longest_first if _places(text, one[0])), readings[0])
    return apply_edit(text, search, replace, line), replace


def _places(text: str, search: str) -> dict[int, int]:
    """Start -> end of each place that `search` means."""
    return _shown_occurrences(text, search) if _is_as_shown(text, search) else _occurrences(text, search)


def _is_as_shown(text: str, search: str) -> bool:
    return "\r\n" in text and "\r" not in search


def _occurrences(text: str, search: str) -> dict[int, int]:
    """Start -> end of each occurrence, of the first MAX_PLACES.

    Overlapping ones count: an edit must not depend on the search's direction.
    """
    places: dict[int, int] = {}
    at = text.find(search)
    while at >= 0 and len(places) < MAX_PLACES:
        places[at] = at + len(search)
        at = text.find(search, at + 1)
    return places


def _shown_occurrences(text: str, search: str) -> dict[int, int]:
    """The same, if each line break of `search` may be CRLF in the text: files mix them, and the policy
    cannot see it.
    """
    shown = text.replace("\r\n", "\n")
    breaks = [found.start() - number for number, found in enumerate(re.finditer("\r\n", text))]
    return {
        start + bisect_left(breaks, start): end + bisect_left(breaks, end)
        for start, end in _occurrences(shown, search).items()
    }


def _line_break(text: str, at: int) -> str:
    """The line break of the line at `at`. A last line without one gets CRLF."""
    end = text.find("\n", at)
    return "\r\n" if end < 0 or text[:end].endswith("\r") else "\n"


def _line_span(text: str, line: int) -> tuple[int, int]:
    """The characters of a line, its line break included."""
    begin = 0
    for _ in range(line - 1):
        begin = text.find("\n", begin) + 1
        if begin == 0:
            break
    if line < 1 or (begin == 0 and line > 1) or begin >= max(len(text), 1):
        last = text.removesuffix("\n").count("\n") + 1
        raise _NotThere(f"There is no line {line}; the last is line {last}.")
    end = text.find("\n", begin)
    return begin, len(text) if end < 0 else end + 1


def _listed(text: str, starts: Sequence[int]) -> str:
    numbers = [str(text.count("\n", 0, start) + 1) for start in starts[:5]]
    return ", ".join(numbers) + (", …" if len(starts) > 5 else "")
