"""How all listings look: tables, columns that adapt to the width, bars, and the console of the output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from selfplay.agent.observations import make_harmless

BAR_WIDTH = 24
EIGHTHS = " ▏▎▍▌▋▊▉"
PIPE_WIDTH = 160  # columns of output that goes to a file or another program


def output_console() -> Console:
    """The console of a command's output. A pipe has no width: there listings get PIPE_WIDTH columns."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def table(*columns: str, right: Iterable[str] = (), whole: Iterable[str] = ()) -> Table:
    """An empty table in the style of all listings.

    right: columns of numbers. whole: columns that never wrap, such as ids that people copy.
    """
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in columns:
        number = name in right
        made.add_column(
            name, justify="right" if number else "left", no_wrap=number or name in whole, overflow="fold"
        )
    return made


@dataclass(frozen=True)
class Column:
    """A column of a `Listing`.

    rank      columns of a higher rank are left out first if the listing does not fit; 0 is never left out
    least     the fewest characters to which its texts may be cut; 0: they are never cut
    right     numbers, at the right side of the column
    """

    name: str
    rank: int = 0
    least: int = 0
    right: bool = False


@dataclass(frozen=True)
class Listing:
    """A table with one line for each row, at any width.

    Columns are left out until the rest fits, then texts are cut. rows: texts by the name of the column; text
    is shown as it is, with control characters as visible escapes. narrow: printed instead if not even the
    columns of rank 0 fit.
    """

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, str]]
    narrow: Listing | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        if self.narrow is not None and _row_width(self.widths(0).values()) > options.max_width:
            yield self.narrow
            return
        widths = self.widths(options.max_width)
        shown = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for column in self.columns:
            if width := widths.get(column.name):
                shown.add_column(
                    column.name,
                    justify="right" if column.right else "left",
                    no_wrap=True,
                    overflow="ellipsis",
                    width=width,
                )
        for row in self.rows:
            shown.add_row(*(Text(_one_line(row[name])) for name in widths))
        yield shown

    def widths(self, available: int) -> dict[str, int]:
        """Column -> its characters, for the columns that are shown in so many characters."""
        natural = {
            column.name: max([len(column.name), *(len(_one_line(row[column.name])) for row in self.rows)])
            for column in self.columns
        }
        shown = list(self.columns)

        def least(column: Column) -> int:
            return min(natural[column.name], column.least or natural[column.name])

        while _row_width(map(least, shown)) > available:
            rank = max(column.rank for column in shown)
            if rank == 0:
                break
            shown.remove(next(column for column in reversed(shown) if column.rank == rank))
        widths = {column.name: least(column) for column in shown}
        spare = available - _row_width(widths.values())
        while spare > 0 and (cut := [name for name in widths if widths[name] < natural[name]]):
            for name in cut[:spare]:
                widths[name] += 1
                spare -= 1
        return widths


def _row_width(widths: Iterable[int]) -> int:
    """Characters of a row, with two blanks between columns."""
    return sum(width + 2 for width in widths) - 2


def _one_line(text: str) -> str:
    return make_harmless(text).replace("\n", "⏎").replace("\t", " ")


@dataclass(frozen=True)
class FirstThatFits:
    """Prints the first choice that is no wider than the console, else the last one."""

    choices: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        unbounded = options.update(width=10_000)
        for choice in self.choices[:-1]:
            if console.measure(choice, options=unbounded).maximum <= options.max_width:
                yield choice
                return
        yield self.choices[-1]


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A bar of block characters, `share` (0 to 1) of `width` long, in steps of 1/8 character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def shown_text(text: str) -> Text:
    """Text as it is: no markup, control characters as visible escapes. It may quote a policy."""
    return Text(make_harmless(text))


def print_note(console: Console, note: str, command: str) -> None:
    """Print the note, then the command that shows one row in full. Commands are not wrapped, to be copied."""
    console.print(Text(f"{note} To see one in full:", style="dim"))
    console.print(Text(f"  {command}", style="cyan"), soft_wrap=True, highlight=False)
