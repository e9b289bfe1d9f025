"""The parts of a replay on a console: a frame with a colour, or a heading where the output is plain.

Invariant: control characters of a recording are shown as visible text, so a recording cannot control the
terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from selfplay.agent.observations import make_harmless

LEXERS = {".diff": "diff", ".py": "python", ".sh": "bash"}


@dataclass(frozen=True)
class Frames:
    """plain: headings instead of frames and colours."""

    console: Console
    plain: bool

    def show(self, title: str, parts: Iterable[RenderableType], colour: str) -> None:
        """Print the parts under the title. Plain text is not wrapped, so that it can be copied."""
        heading = harmless(title)
        if self.plain:
            self.console.print(Text("── ") + heading, highlight=False, soft_wrap=True)
            for part in parts:
                self.console.print(part, highlight=False, soft_wrap=not isinstance(part, Table))
        else:
            framed = Panel(Group(*parts), title=heading, title_align="left", border_style=colour, box=ROUNDED)
            self.console.print(framed, highlight=False)

    def file(self, name: str, text: str, note: str = "") -> list[RenderableType]:
        """The name of a file in bold with a note, then its text."""
        heading = harmless(f"{name}: {note}" if note else name)
        heading.stylize("bold")
        return [heading, diff_or_text(name, text, self.plain) if text.strip() else Text("(empty)", "dim")]

    def show_facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.console.print(self.facts(pairs), highlight=False, soft_wrap=self.plain)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> RenderableType:
        """Names and values, one pair a line, without pairs whose value is ""."""
        given = [(name, harmless(value)) for name, value in pairs if value]
        if self.plain:
            width = max((len(name) for name, _ in given), default=0)
            return Text("\n").join(Text(f"{name:<{width}}  ") + value for name, value in given)
        shown = Table.grid(padding=(0, 2, 0, 0))
        shown.add_column(style="dim", no_wrap=True)
        shown.add_column(overflow="fold")
        for pair in given:
            shown.add_row(*pair)
        return shown


def harmless(text: str, style: str = "") -> Text:
    return Text(make_harmless(text.rstrip("\n")), style)


def diff_or_text(name: str, text: str, plain: bool = False) -> RenderableType:
    """The text, highlighted as the file's name suggests. Control characters are shown as visible escapes."""
    lexer = "diff" if name == "patch" else LEXERS.get(Path(name).suffix)
    if plain or lexer is None:
        return harmless(text)
    return Syntax(
        make_harmless(text.rstrip("\n")), lexer, theme="ansi_dark", background_color="default", word_wrap=True
    )
