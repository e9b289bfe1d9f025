"""The files that an episode submitted, as parts of a replay: diffs in full, other files shortened.

Invariant: a script or parser counts as the standard one only if it has exactly our text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from selfplay.repositories.scripts import is_standard_parser, standard_script
from selfplay.verdicts.artifact import ALIASES, FILE_NAMES
from selfplay.viewing.frames import Frames, harmless

MAX_LINES = 10  # of a file that is no diff
MAX_CHARACTERS = 2000  # of these lines
MAX_NAMES = 3  # of files in one line
MORE = "more; --json has all"
PLAIN_OPTIONS = re.compile(r"[\w@%+=:,./ -]*", re.ASCII)  # nothing that a shell reads as more than words
NO_OPTIONS = ("", "-o addopts=")  # of the suite of a repository that was given without a `test` hint


def submission_parts(submission: Mapping[str, str], frames: Frames) -> list[RenderableType]:
    """Injector: the two diffs, then the other files in the order of the artifact. Solver: the patch first."""
    parts: list[RenderableType] = []
    for name in sorted(submission, key=_place):
        text, known = submission[name], ALIASES.get(name, name)
        if known.endswith(".diff") or known == "patch":
            parts += frames.file(name, text)
        elif note := _standard(known, text, submission.get("test_files.txt", "")):
            parts.append(harmless(f"{name}: {note}", "bold"))
        else:
            shown, more = shortened(text)
            parts += frames.file(name, shown)
            parts += [Text(more, "dim")] if more else []
    return parts


def shortened(text: str) -> tuple[str, str]:
    """The first MAX_LINES lines, at most MAX_CHARACTERS of them, and what is left out, "" if nothing is."""
    lines = text.rstrip("\n").split("\n")
    shown = "\n".join(lines[:MAX_LINES])
    if len(shown) > MAX_CHARACTERS:
        return shown[:MAX_CHARACTERS], f"… {len(text) - MAX_CHARACTERS} characters {MORE}"
    return shown, f"… {len(lines) - MAX_LINES} lines {MORE}" if len(lines) > MAX_LINES else ""


def names_text(names: Sequence[str]) -> str:
    """The first MAX_NAMES names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _place(name: str) -> tuple[int, str]:
    order = ("patch", *FILE_NAMES)
    known = ALIASES.get(name, name)
    return (order.index(known) if known in order else len(order), name)


def _standard(name: str, text: str, test_files: str) -> str:
    """What to say instead of the text of our own script or parser; "" for every other text."""
    if name == "test_parser.py":
        return "the standard parser" if is_standard_parser(text) else ""
    files = [line.strip() for line in test_files.split("\n") if line.strip()]
    if name != "test_script.sh" or not files:
        return ""
    start, end = standard_script(files, "\0").split("\0")
    options = text.removeprefix(start).removesuffix(end)
    if text != start + options + end or not PLAIN_OPTIONS.fullmatch(options):
        return ""
    told = "" if options.strip() in NO_OPTIONS else f", with {options.strip()}"
    return f"the standard script for {names_text(files)}{told}"
