"""Edits of a text: the one occurrence of a search text, replaced. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

MAX_PLACES = 1000  # occurrences that are looked for: a text of one character holds its half at every place

MAX_SHOWN = 200  # characters of a line that an error shows


class EditError(Exception):
    """An edit that does not fit the file; the message is shown to the policy."""


# ---- editing


def apply_edit(text: str, search: str, replace: str, line: int | None = None) -> str:
    """`text` with the only occurrence of `search` replaced; with `line` (1-based), the one that starts there.

    Raises EditError that says what to do. In a file with CRLF, `search` is matched as the file is shown,
    without carriage returns; the new lines get the file's line break.
    """
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
            shown = text[begin:end].rstrip()[:MAX_SHOWN]
            raise EditError(
                f"The search text does not start in line {line}.{elsewhere} That line is:\n{line}:{shown}"
            )
        if len(here) > 1:
            raise EditError(
                f"The search text occurs {len(here)} times in line {line}; give more of the line."
            )
        starts = here
    if not starts:
        raise EditError("The search text is not in the file; copy it exactly, indentation included.")
    if len(starts) > 1:
        raise EditError(
            f"The search text occurs {len(starts)} times, in lines {_listed(text, starts)}; "
            "name one as path:LINE, or give more of it."
        )
    start, end = starts[0], places[starts[0]]
    if _is_as_shown(text, search):
        replace = replace.replace("\r\n", "\n").replace("\n", _line_break(text, start))
    if text[start:end] == replace:
        raise EditError("The replacement equals the search text, so nothing would change.")
    return text[:start] + replace + text[end:]


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
        raise EditError(f"There is no line {line}; the last is line {last}.")
    end = text.find("\n", begin)
    return begin, len(text) if end < 0 else end + 1


def _listed(text: str, starts: Sequence[int]) -> str:
    numbers = [str(text.count("\n", 0, start) + 1) for start in starts[:5]]
    return ", ".join(numbers) + (", …" if len(starts) > 5 else "")
