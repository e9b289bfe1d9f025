"""The style that listings have in common."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table


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
