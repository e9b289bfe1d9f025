"""A widget that shows sections as one long page: scrolled, searched, with a mark on the current section.

It renders lines itself, so that a page of many thousand lines scrolls at once. Lines are made again when the
width changes.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.segment import Segment
from rich.style import Style
from textual.events import MouseScrollDown, MouseScrollUp
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from selfplay.viewing.folding import one_line
from selfplay.viewing.sections import Section

INDENT = 2  # cells before the text of a section
FOUND, CURRENT = Style.parse("black on yellow"), Style.parse("black on bright_magenta bold")


@dataclass(frozen=True)
class Line:
    """A line of the page. indent: cells before its text. is_whole: False if the text goes on below."""

    strip: Strip
    text: str
    indent: int
    is_whole: bool = True


@dataclass(frozen=True)
class Match:
    """A place where the text that is searched for stands: (line, first cell, one past the last cell)."""

    parts: tuple[tuple[int, int, int], ...]

    @property
    def line(self) -> int:
        return self.parts[0][0]


def page_console(width: int) -> Console:
    return Console(
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        highlight=False,
        _environ={},
    )


def section_lines(shown: Section, width: int) -> list[Line]:
    """The lines of a section: its title, its parts beside a bar in its colour, an empty line."""
    console = page_console(width)
    lines = []
    indent = INDENT if shown.title else 0
    if shown.title:
        title = _cut(f"━━ {one_line(shown.title)} ", width)
        rest = "━" * (width - cell_len(title))
        style = console.get_style(f"bold {shown.colour}")
        lines.append(Line(Strip([Segment(title + rest, style)]), title, 0))
    bar = [Segment("│ ", console.get_style(shown.colour))] if indent else []
    room = max(width - indent, 2)
    for segments in console.render_lines(Group(*shown.parts), console.options.update(width=room), pad=False):
        text = "".join(segment.text for segment in segments)
        lines.append(Line(Strip([*bar, *segments]), text, indent, cell_len(text) < room))
    lines.append(Line(Strip([]), "", 0))
    return lines


def find_all(lines: Sequence[Line], wanted: str) -> list[Match]:
    """Where a text stands, in any case of letters; also across lines that were folded.

    A line that fills the width exactly is taken for one that goes on below.
    """
    if not wanted:
        return []
    starts, pieces, at = [], [], 0
    for line in lines:
        starts.append(at)
        pieces.append(line.text + ("\n" if line.is_whole else ""))
        at += len(pieces[-1])
    return [
        Match(tuple(_parts(lines, starts, found.start(), found.end())))
        for found in re.finditer(re.escape(wanted), "".join(pieces), re.IGNORECASE)
    ]


def _parts(lines: Sequence[Line], starts: Sequence[int], first: int, end: int) -> list[tuple[int, int, int]]:
    parts = []
    number = bisect_right(starts, first) - 1
    while number < len(lines) and starts[number] < end:
        line = lines[number]
        begin = max(first - starts[number], 0)
        stop = min(end - starts[number], len(line.text))
        cells = line.indent + cell_len(line.text[:begin])
        parts.append((number, cells, cells + cell_len(line.text[begin:stop])))
        number += 1
    return parts


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)) + "…"


class PageView(ScrollView, can_focus=True, inherit_bindings=False):
    """The page. `current` is the section that keys and jumps move to; its title is marked."""

    DEFAULT_CSS = """
    PageView { overflow-y: scroll; overflow-x: hidden; scrollbar-size-vertical: 1; height: 1fr; }
    """

    class Moved(Message):
        """Another section or place is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[Section] = []
        self.current = 0
        self.matches: list[Match] = []
        self.match = -1
        self.wanted = ""
        self._lines: list[Line] = []
        self._starts: list[int] = []
        self._width = 0
        self._marks: dict[int, list[tuple[int, int, Style]]] = {}

    # ---- content

    def show(self, sections: Sequence[Section], keep_place: bool = False) -> None:
        """Show other sections, from the top or, if they are another form of the same, where it was."""
        place = self.current, self._offset()
        self.sections = list(sections)
        self.current = min(place[0], len(self.sections) - 1) if keep_place else 0
        self._lay_out()
        self._scroll(self._start(self.current) + place[1] if keep_place else 0)

    def add(self, sections: Sequence[Section]) -> None:
        """Append sections and show the end, as a play-back does."""
        self.current = len(self.sections)
        self.sections += sections
        self._lay_out(len(self.sections) - len(sections))
        self._scroll(self._start(self.current))

    def _lay_out(self, first: int = 0) -> None:
        width = self.scrollable_content_region.width
        if not width:
            return
        if first == 0 or width != self._width:
            self._width, self._lines, self._starts, first = width, [], [], 0
        for part in self.sections[first:]:
            self._starts.append(len(self._lines))
            self._lines += section_lines(part, width)
        self.virtual_size = Size(width, max(len(self._lines), 1))
        self.search(self.wanted, move=False)
        self.refresh()

    def on_resize(self) -> None:
        if self.scrollable_content_region.width != self._width:
            place = self._offset()
            self._lay_out()
            self._scroll(self._start(self.current) + place)

    def render_line(self, y: int) -> Strip:
        number = y + self.scroll_offset.y
        if number >= len(self._lines):
            return Strip.blank(self.size.width, self.rich_style)
        strip = self._lines[number].strip
        if self._is_title(number):
            strip = strip.apply_style(Style(reverse=True))
        for first, end, style in self._marks.get(number, ()):
            before, marked, after = strip.divide([first, end, strip.cell_length])
            strip = Strip.join([before, Strip(Segment.apply_style(marked, post_style=style)), after])
        return strip.adjust_cell_length(self.size.width, self.rich_style).apply_style(self.rich_style)

    def _is_title(self, number: int) -> bool:
        """True for the title line of the current section."""
        return (
            self.current < len(self._starts)
            and number == self._starts[self.current]
            and bool(self.sections[self.current].title)
        )

    # ---- places

    def go_to(self, section: int) -> None:
        self.current = max(0, min(section, len(self.sections) - 1))
        self._scroll(self._start(self.current))

    def go_to_turn(self, by: int) -> None:
        """The next (by 1) or previous (by -1) turn; before the first one the beginning, after the last one
        what follows.
        """
        turns = [number for number, part in enumerate(self.sections) if part.is_turn]
        if by > 0:
            after = next((number for number in turns if number > self.current), None)
            self.go_to(after if after is not None else self._after_turns(turns))
        else:
            self.go_to(max((number for number in turns if number < self.current), default=0))

    def _after_turns(self, turns: Sequence[int]) -> int:
        """The first section after the observation of the last turn, or the next section beyond that."""
        if not turns:
            return self.current + 1
        first = next(
            (number for number in range(turns[-1] + 1, len(self.sections)) if self.sections[number].name),
            turns[-1],
        )
        return first if self.current < first else self.current + 1

    def scroll_lines(self, by: int) -> None:
        self._scroll(self.scroll_offset.y + by)
        self._follow()

    def scroll_pages(self, by: int) -> None:
        self.scroll_lines(by * max(self.size.height - 2, 1))

    def scroll_end_of_page(self) -> None:
        self._scroll(len(self._lines))
        self.current = max(len(self.sections) - 1, 0)
        self.refresh()

    def _follow(self) -> None:
        """Make the section at the top the current one."""
        if self._starts:
            self.current = max(bisect_right(self._starts, self.scroll_offset.y) - 1, 0)
            self.refresh()

    def _start(self, section: int) -> int:
        return self._starts[section] if 0 <= section < len(self._starts) else 0

    def _offset(self) -> int:
        """Lines from the title of the current section to the top of the screen."""
        return self.scroll_offset.y - self._start(self.current)

    def _scroll(self, line: int) -> None:
        self.scroll_to(y=max(0, line), animate=False, immediate=True, force=True)
        self.refresh()
        self.post_message(self.Moved())

    # ---- search

    def search(self, wanted: str, move: bool = True) -> None:
        """Mark all places of a text, and go to the first one from here on."""
        self.wanted = wanted
        self.matches = find_all(self._lines, wanted)
        self.match = min(self.match, len(self.matches) - 1)
        if move and self.matches:
            here = self.scroll_offset.y
            later = (number for number, found in enumerate(self.matches) if found.line >= here)
            self.match = next(later, 0)
            self._show_match()
        self._mark()

    def next_match(self, by: int) -> None:
        if self.matches:
            self.match = (self.match + by) % len(self.matches)
            self._show_match()
            self._mark()

    def _show_match(self) -> None:
        line = self.matches[self.match].line
        if not self.scroll_offset.y <= line < self.scroll_offset.y + self.size.height:
            self._scroll(line - self.size.height // 3)
            self._follow()

    def _mark(self) -> None:
        self._marks = {}
        for number, found in enumerate(self.matches):
            for line, first, end in found.parts:
                style = CURRENT if number == self.match else FOUND
                self._marks.setdefault(line, []).append((first, end, style))
        self.refresh()

    # ---- mouse

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        event.stop().prevent_default()
        self.scroll_lines(3)

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        event.stop().prevent_default()
        self.scroll_lines(-3)
