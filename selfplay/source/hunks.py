"""Hunks of a diff: their text, applying them to a file's content, reversing their lines. Pure.

Reading hunks from text is the job of `diffs`.

Invariant: a hunk changes the lines that its header names, or is refused. `git apply` also searches the lines
around, and then changes others than the author, the validator and a reader of the diff see. So:

- The old lines (context and removed ones) must be at the named position. Context is not needed: a diff of
  `git diff -U0` applies where it says.
- An insertion without context has no old lines. It goes after the line that its header names, which must
  exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

NO_NEWLINE = "\\ No newline at end of file"
ADVICE = "Write it with `git diff`."
SHOWN_PLACES = 3


@dataclass(frozen=True)
class Hunk:
    """One hunk. Lines keep their first character; a `\\ No newline` marker is a line of its own."""

    old_start: int
    old_count: int
    new_start: int
    new_count: int
    lines: tuple[str, ...]

    @property
    def header(self) -> str:
        return f"@@ -{self.old_start},{self.old_count} +{self.new_start},{self.new_count} @@"

    @property
    def old_index(self) -> int:
        """Number of old lines before the hunk. Without old lines a header names the line before."""
        return self.old_start - (1 if self.old_count else 0)

    @property
    def new_index(self) -> int:
        """Number of new lines before the hunk."""
        return self.new_start - (1 if self.new_count else 0)

    def text(self) -> str:
        return "".join(f"{line}\n" for line in (self.header, *self.lines))

    def sides(self) -> tuple[list[bytes], list[bytes]]:
        """The old and the new lines, each with its newline except where a marker says that it has none."""
        old: list[bytes] = []
        new: list[bytes] = []
        for line, following in zip_longest(self.lines, self.lines[1:], fillvalue=""):
            content = line[1:].encode("utf-8", "surrogateescape") + (
                b"" if following == NO_NEWLINE else b"\n"
            )
            if line[0] in " -":
                old.append(content)
            if line[0] in " +":
                new.append(content)
        return old, new

    def reversed(self) -> Hunk:
        lines = tuple(_reversed_lines(self.lines))
        return Hunk(self.new_start, self.new_count, self.old_start, self.old_count, lines)


def _reversed_lines(lines: Sequence[str]) -> Iterator[str]:
    """Swap the signs, and put the removed lines of each block of changes before the added ones again."""
    removed: list[str] = []
    added: list[str] = []
    # Where a `\ No newline` marker belongs; None: after the context line that was just yielded.
    target: list[str] | None = None
    for line in lines:
        if line[0] == " ":
            yield from removed
            yield from added
            removed, added, target = [], [], None
            yield line
        elif line[0] == "\\":
            if target is None:
                yield line
            else:
                target.append(line)
        else:
            target = removed if line[0] == "+" else added
            target.append(("-" if line[0] == "+" else "+") + line[1:])
    yield from removed
    yield from added


# ---- applying


def apply_hunks(content: bytes, hunks: Sequence[Hunk], path: str) -> bytes:
    """`content` with each hunk applied at the lines that it names.

    hunks: in order, without overlaps. path: for messages.
    Raises ValueError that names the hunk, the line where it says and the line where its old text is.
    """
    rows: list[bytes] = re.findall(rb"[^\n]*\n|[^\n]+", content)
    result: list[bytes] = []
    done = 0  # rows that are in the result
    for number, hunk in enumerate(hunks, 1):
        name = f"hunk {number} of {path!r} ({hunk.header})"
        old, new = hunk.sides()
        start, end = hunk.old_index, hunk.old_index + len(old)
        if start > len(rows) or rows[start:end] != old:
            raise ValueError(f"{name} {_fault(rows, hunk, old)} {ADVICE}")
        result += rows[done:start]
        if (new and result and not result[-1].endswith(b"\n")) or _ends_within(new, end < len(rows)):
            raise ValueError(f"{name} puts text after a line that has no newline. {ADVICE}")
        result += new
        done = end
    return b"".join([*result, *rows[done:]])


def _ends_within(new: Sequence[bytes], is_followed: bool) -> bool:
    """True if a line without a newline would not be the last one of the file."""
    return any(not row.endswith(b"\n") for row in (new if is_followed else new[:-1]))


def _fault(rows: Sequence[bytes], hunk: Hunk, old: Sequence[bytes]) -> str:
    """Why the hunk cannot be applied where it says."""
    if not old:
        return f"inserts after line {hunk.old_start}, but the file has {_counted(len(rows))}."
    places = _places(rows, old)
    if places:
        found = ", ".join(str(place) for place in places[:SHOWN_PLACES])
        found = f"lines {found}" if len(places) > 1 else f"line {found}"
        more = ", …" if len(places) > SHOWN_PLACES else ""
        return (
            f"says that its old text is at line {hunk.old_start}, but this text is at {found}{more}. "
            "A hunk is applied only where it says."
        )
    for offset, wanted in enumerate(old):
        at = hunk.old_index + offset
        if at >= len(rows):
            return f"goes on after the end of the file, which has {_counted(len(rows))}."
        if rows[at] != wanted:
            return f"does not fit: line {at + 1} of the file is {_shown(rows[at], wanted)}."
    raise AssertionError("the old text is where the hunk says")


def _places(rows: Sequence[bytes], old: Sequence[bytes]) -> list[int]:
    """Numbers of the lines where `old` stands in the file, one more than are shown at most."""
    text, block = b"\n" + b"".join(rows), b"\n" + b"".join(old)
    if not block.endswith(b"\n"):  # then it can only be the end of the file
        return [text.count(b"\n", 0, len(text) - len(block)) + 1] if text.endswith(block) else []
    found: list[int] = []
    at = text.find(block)
    line = last = 0
    while at >= 0 and len(found) <= SHOWN_PLACES:
        line += text.count(b"\n", last, at)
        last = at
        found.append(line + 1)
        at = text.find(block, at + 1)
    return found


def _shown(row: bytes, wanted: bytes) -> str:
    """Both lines, or how they differ where the eye would not see it."""
    if row.rstrip(b"\r\n") == wanted.rstrip(b"\r\n"):
        kinds = {b"\r\n": "CRLF", b"\n": "LF"}
        ends = [
            next((kind for end, kind in kinds.items() if text.endswith(end)), "no newline")
            for text in (row, wanted)
        ]
        return f"the same as in the hunk but for its end: {ends[0]} in the file, {ends[1]} in the hunk"
    texts = [text.rstrip(b"\n").decode("utf-8", "replace") for text in (row, wanted)]
    return f"{texts[0][:60]!r}, and the hunk has {texts[1][:60]!r}"


def _counted(lines: int) -> str:
    return f"{lines} line{'' if lines == 1 else 's'}"
