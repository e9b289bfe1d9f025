"""What a diff changes, in few words: its size, its first change, where that is. For listings only."""

from __future__ import annotations

import json
import re

from unidiff.errors import UnidiffParseError
from unidiff.patch import Hunk, PatchSet

WORD = re.compile(r"\w+|\s+|[^\w\s]")
NAME = re.compile(r"\w")


def diffstat(diff: str) -> str:
    """How many files and lines a diff changes: "2 file(s), +3 −1". "" if the text is not a diff."""
    patch = _read(diff)
    return f"{len(patch)} file(s), +{patch.added} −{patch.removed}" if patch else ""


def change_text(diff: str) -> str:
    """The first change of a diff on one line: `min(a, b) → max(a, b)`, `− removed line`, `+ added line`.

    Of two lines that differ, only the words that differ are shown, and the name before them. "" if the text
    is not a diff.
    """
    for file in _read(diff):
        for hunk in file:
            removed, added = _first_change(hunk)
            if removed and added:
                return _difference(removed, added)
            if removed or added:
                return f"− {removed}" if removed else f"+ {added}"
    return ""


def place_text(target: str, diff: str) -> str:
    """Where a bug is: the name of its target, else the first file that the diff changes."""
    try:
        return str(json.loads(target)["name"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return next((file.path for file in _read(diff)), target)


def _read(diff: str) -> PatchSet:
    try:
        return PatchSet(diff)
    except UnidiffParseError:
        return PatchSet("")


def _first_change(hunk: Hunk) -> tuple[str, str]:
    """(first removed line, first added line) of the first run of changed lines, without indentation."""
    removed = added = ""
    for line in hunk:
        if line.is_removed:
            removed = removed or line.value.strip()
        elif line.is_added:
            added = added or line.value.strip()
        elif removed or added:
            break
    return removed, added


def _difference(old: str, new: str) -> str:
    """The words in which two lines differ, after the last equal name before them: `x < → x <=`."""
    a, b = WORD.findall(old), WORD.findall(new)
    shorter = min(len(a), len(b))
    start = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    end = next((i for i in range(shorter - start) if a[-1 - i] != b[-1 - i]), shorter - start)
    start = next((i for i in range(start - 1, -1, -1) if NAME.match(a[i])), 0)
    if start == 0 and start + end in (len(a), len(b)):
        end = max(0, end - 1)
    return f"{''.join(a[start : len(a) - end]).strip()} → {''.join(b[start : len(b) - end]).strip()}"
