"""A live display that erases itself completely: after the terminal became narrower, and between threads."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment, Segments
from rich.text import Text


class ResizableLive(Live):
    """Shows a renderable at the end of the output, 4 times a second, and removes it when it stops.

    A terminal wraps lines that are too long for its new width. So the display is higher than when it was
    printed, and rich's `Live` alone would leave copies of its upper lines.
    """

    def __init__(self, shown: RenderableType, console: Console) -> None:
        self._measured = _Measured(shown)
        super().__init__(self._measured, console=console, refresh_per_second=4, transient=True)

    def print_above(self, text: Text) -> None:
        """Print a line that stays. Any thread may call it.

        rich's own lock ends before the text is written. A refresh by another thread could come between, which
        finds another number of lines to erase than the terminal has.
        """
        with self._lock:
            self.console.print(text, highlight=False)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        extra = self._measured.wrapped_rows(self.console)
        found = super().process_renderables(renderables)
        if extra and self.console.is_interactive:
            # The first one moves to the top of the display, as high as it was when it was printed.
            found.insert(1, Control(*((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * extra))
        return found


class _Measured:
    """Renders what is shown, and remembers the width of each line."""

    def __init__(self, shown: RenderableType) -> None:
        self._shown = shown
        self._widths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        lines = console.render_lines(self._shown, options, pad=False)
        self._widths = [Segment.get_line_length(line) for line in lines]
        yield Segments([segment for line in lines for segment in (*line, Segment.line())][:-1])

    def wrapped_rows(self, console: Console) -> int:
        """How many rows the last rendering takes in addition, at the width that the console has now."""
        shown = self._widths[: console.height]
        return sum(max(1, -(-width // console.width)) - 1 for width in shown)
