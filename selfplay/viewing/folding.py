"""Long text folded at the width of the screen, quickly and without surprises.

Rich's own wrapping takes seconds for a line of a megabyte. This one cuts a line where the width ends, as a
terminal does, and shows at most MAX_LINE characters of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import chop_cells
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment

from selfplay.agent.observations import make_harmless

MAX_LINE = 10_000  # characters of one line that are shown
MAX_LINES = 20_000  # lines of one text that are shown
MORE = "more; --json has all"

Piece = tuple[str, str]  # text of one line, style


@dataclass(frozen=True)
class Folded:
    """Lines of styled pieces. Invariant: the pieces are harmless and hold no newline or tab."""

    lines: Sequence[Sequence[Piece]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        width = max(options.max_width, 2)
        for line in self.lines:
            for segments in _folded(line, width):
                for text, style in segments:
                    yield Segment(text, console.get_style(style) if style else None)
                yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(8, options.max_width), options.max_width)


def folded_text(text: str, style: str = "") -> Folded:
    """Text in one style, made harmless."""
    return Folded([[(line, style)] for line in shown_lines(text)])


def folded_diff(text: str) -> Folded:
    """A diff: added lines green, removed ones red, places cyan, names bold."""
    return Folded([[(line, diff_style(line))] for line in shown_lines(text)])


def folded_edit(text: str) -> Folded:
    """The body of an edit call: what is sought is red, what replaces it green."""
    styled, style = [], ""
    for line in shown_lines(text):
        if line.startswith("<<<<<<<"):
            styled.append([(line, "dim")])
            style = "red"
        elif line.startswith("=======") and style == "red":
            styled.append([(line, "dim")])
            style = "green"
        elif line.startswith(">>>>>>>"):
            styled.append([(line, "dim")])
            style = ""
        else:
            styled.append([(line, style)])
    return Folded(styled)


def diff_style(line: str) -> str:
    if line.startswith(("+++ ", "--- ", "diff --git ")):
        return "bold"
    if line.startswith("@@"):
        return "cyan"
    return {"+": "green", "-": "red"}.get(line[:1], "")


def shown_lines(text: str) -> list[str]:
    """The lines of a text, harmless, with blanks for tabs. Very long lines, and very many, are cut."""
    lines = text.rstrip("\n").split("\n")
    more = [f"… {len(lines) - MAX_LINES} lines {MORE}"] if len(lines) > MAX_LINES else []
    return [_shown(line) for line in lines[:MAX_LINES]] + more


def _shown(line: str) -> str:
    cut = line[:MAX_LINE]
    shown = make_harmless(cut).expandtabs(4).replace("\n", "⏎")
    return shown if len(line) <= MAX_LINE else f"{shown}… {len(line) - MAX_LINE} characters {MORE}"


def one_line(text: str) -> str:
    """Text as one line: harmless, with a sign for each newline."""
    return make_harmless(text).replace("\n", "⏎").replace("\t", " ")


def _folded(line: Iterable[Piece], width: int) -> Iterator[list[Piece]]:
    """The screen lines of one line; [] pieces for an empty one."""
    row: list[Piece] = []
    used = 0
    for text, style in line:
        if text.isascii():
            while used + len(text) > width:
                row.append((text[: width - used], style))
                yield row
                text, row, used = text[width - used :], [], 0
            if text:
                row.append((text, style))
                used += len(text)
            continue
        for number, part in enumerate(_by_cells(text, width - used, width)):
            if number:
                yield row
                row, used = [], 0
            if part:
                row.append((part, style))
                used += _cells(part)
    yield row


def _by_cells(text: str, room: int, width: int) -> list[str]:
    """Parts of a text with wide characters: the first one takes `room` cells, the others `width`."""
    if _cells(text) <= room:
        return [text]
    first = chop_cells(text, room)[0] if room >= 2 else ""
    return [first, *chop_cells(text[len(first) :], width)]


def _cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
