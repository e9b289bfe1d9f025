"""A widget that shows a table of any length: only the rows around the screen are read.

Invariant: a text is shown on one line, harmless, cut at the width of its column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.events import MouseScrollDown, MouseScrollUp
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from selfplay.viewing.folding import one_line
from selfplay.viewing.tables import Column, Listing

PAGE = 200  # rows that are read at a time
KEPT = 8  # pages that are remembered
HEADING, CURSOR = Style.parse("bold"), Style.parse("reverse")


class Rows(Protocol):
    """Where rows come from: texts by the name of the column."""

    @property
    def columns(self) -> Sequence[Column]: ...

    @property
    def count(self) -> int: ...

    def read(self, first: int, count: int) -> Sequence[Mapping[str, str]]: ...


@dataclass(frozen=True)
class FixedRows:
    """Rows that are at hand."""

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, str]]

    @property
    def count(self) -> int:
        return len(self.rows)

    def read(self, first: int, count: int) -> Sequence[Mapping[str, str]]:
        return self.rows[first : first + count]


class RowsView(ScrollView, can_focus=True, inherit_bindings=False):
    """The table with a cursor. Its heading stays at the top."""

    DEFAULT_CSS = """
    RowsView { overflow-y: scroll; overflow-x: hidden; scrollbar-size-vertical: 1; height: 1fr; }
    """

    class Moved(Message):
        """The cursor is on another row."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows
        self.cursor = 0
        self._heading = _heading(rows)
        self._pages: dict[int, Sequence[Mapping[str, str]]] = {}
        self._widths: dict[str, int] = {}
        self._widths_of: tuple[int, frozenset[int]] = (0, frozenset())

    def show(self, rows: Rows, cursor: int = 0) -> None:
        """Show other rows."""
        self.rows, self._pages, self._heading = rows, {}, _heading(rows)
        self._widths_of = (0, frozenset())
        self.virtual_size = Size(self.size.width, rows.count + self._heading)
        self.move_to(cursor)

    def on_mount(self) -> None:
        self.virtual_size = Size(self.size.width, self.rows.count + self._heading)
        self.call_after_refresh(self.move_to, self.cursor)

    def on_resize(self) -> None:
        self.move_to(self.cursor)

    def row(self, number: int) -> Mapping[str, str]:
        """Row `number` from 0. Raises IndexError."""
        page, at = divmod(number, PAGE)
        if page not in self._pages:
            if len(self._pages) >= KEPT:
                self._pages.pop(next(iter(self._pages)))
            self._pages[page] = self.rows.read(page * PAGE, PAGE)
        return self._pages[page][at]

    # ---- moving

    def move(self, by: int) -> None:
        self.move_to(self.cursor + by)

    def move_pages(self, by: int) -> None:
        self.move(by * max(self.size.height - 2, 1))

    def move_to(self, number: int) -> None:
        self.cursor = max(0, min(number, self.rows.count - 1))
        room = max(self.size.height - self._heading, 1)
        top = self.scroll_offset.y
        if self.cursor < top:
            top = self.cursor
        elif self.cursor >= top + room:
            top = self.cursor - room + 1
        self.scroll_to(y=top, animate=False, immediate=True, force=True)
        self.refresh()
        self.post_message(self.Moved())

    # ---- mouse

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        event.stop().prevent_default()
        self.move(3)

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        event.stop().prevent_default()
        self.move(-3)

    # ---- lines

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        shown = self._shown_widths(width)
        if y < self._heading:
            texts = {name: name for name in shown}
            return self._strip(texts, shown, HEADING + self.rich_style, width)
        number = self.scroll_offset.y + y - self._heading
        try:
            row = self.row(number) if number < self.rows.count else None
        except IndexError:  # fewer than were counted
            row = None
        if row is None:
            return Strip.blank(self.size.width, self.rich_style)
        style = self.rich_style + CURSOR if number == self.cursor else self.rich_style
        return self._strip(row, shown, style, width)

    def _shown_widths(self, width: int) -> dict[str, int]:
        """Column -> its characters, for the rows on the screen."""
        first = self.scroll_offset.y
        last = min(first + self.size.height, self.rows.count - 1)
        pages = frozenset(range(first // PAGE, max(last, 0) // PAGE + 1)) if self.rows.count else frozenset()
        if self._widths_of != (width, pages):
            for page in pages:
                self.row(page * PAGE)
            texts = [row for page in pages for row in self._pages.get(page, ())]
            self._widths = Listing(self.rows.columns, texts).widths(width)
            self._widths_of = (width, pages)
        return self._widths

    def _strip(self, row: Mapping[str, str], widths: Mapping[str, int], style: Style, width: int) -> Strip:
        right = {column.name for column in self.rows.columns if column.right}
        cells = [_cell(one_line(row.get(name, "")), room, name in right) for name, room in widths.items()]
        strip = Strip([Segment("  ".join(cells), style)])
        return strip.adjust_cell_length(width, style)


def _heading(rows: Rows) -> int:
    """Lines of the heading: none if no column has a name."""
    return int(any(column.name for column in rows.columns))


def _cell(text: str, width: int, right: bool) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, max(width - 1, 0)) + "…"
    pad = " " * (width - cell_len(text))
    return pad + text if right else text + pad
