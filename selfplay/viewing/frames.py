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
from selfplay.viewing.folding import folded_diff, folded_text
from selfplay.viewing.sections import Section

LEXERS = {".diff": "diff", ".py": "python", ".sh": "bash"}
MAX_HIGHLIGHTED = 10_000  # characters


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

    def print(self, section: Section) -> None:
        """Print a section, as `show` does. Without a title its parts stand without a frame."""
        if section.title:
            self.show(section.title, section.parts, section.colour)
            return
        for part in section.parts:
            self.console.print(part, highlight=False, soft_wrap=self.plain)

    def text(self, text: str, style: str = "") -> RenderableType:
        """Text that is shown as it is: whole lines where the output is plain, else folded at the width."""
        return harmless(text, "" if self.plain else style) if self.plain else folded_text(text, style)

    def file(self, name: str, text: str, note: str = "") -> list[RenderableType]:
        """The name of a file in bold with a note, then its text."""
        heading = harmless(f"{name}: {note}" if note else name)
        heading.stylize("bold")
        return [heading, diff_or_text(name, text, self.plain) if text.strip() else Text("(empty)", "dim")]

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
    if plain:
        return harmless(text)
    lexer = LEXERS.get(Path(name).suffix)
    if lexer == "diff" or name == "patch":
        return folded_diff(text)
    if lexer is None or len(text) > MAX_HIGHLIGHTED:
        return folded_text(text)
    return highlighted(text, lexer)


def highlighted(text: str, lexer: str) -> RenderableType:
    """Code in colours. Longer text than MAX_HIGHLIGHTED takes too long: it is shown without."""
    if len(text) > MAX_HIGHLIGHTED:
        return folded_text(text)
    shown = make_harmless(text.rstrip("\n"))
    return Syntax(shown, lexer, theme="ansi_dark", background_color="default", word_wrap=True)
