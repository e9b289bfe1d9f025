"""A full screen with one page of sections: scrolling, search, the list of jumps."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType

from selfplay.viewing.screens.base import ViewerScreen, names_window
from selfplay.viewing.screens.page_view import PageView


class PageScreen(ViewerScreen):
    """`page` shows the sections. A subclass fills it in `on_mount`, and says what the bars show."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "lines(1)", "a line down"),
        Binding("k,up", "lines(-1)", "a line up"),
        Binding("ctrl+d,pagedown,space", "pages(1)", "a page down"),
        Binding("ctrl+u,pageup,b", "pages(-1)", "a page up"),
        Binding("g,home", "start", "to the start"),
        Binding("G,end", "end", "to the end"),
        Binding("t", "jumps", "list of the parts, to jump to one"),
        Binding("slash", "search", "search", key_display="/"),
        Binding("n", "match(1)", "next place that was found"),
        Binding("N", "match(-1)", "previous place that was found"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.page = PageView()
        self.page.id = "body"

    def body(self) -> PageView:
        return self.page

    def show_bars(self) -> None:
        raise NotImplementedError

    def found_text(self) -> str:
        """What the line of state says of a search, before the rest."""
        page = self.page
        if not page.wanted:
            return ""
        if not page.matches:
            return f"{page.wanted!r} not found · "
        return f"{page.wanted!r} {page.match + 1} of {len(page.matches)} · "

    def on_page_view_moved(self) -> None:
        self.show_bars()

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_bars)

    def action_lines(self, by: int) -> None:
        self.page.scroll_lines(by)

    def action_pages(self, by: int) -> None:
        self.page.scroll_pages(by)

    def action_start(self) -> None:
        self.page.go_to(0)

    def action_end(self) -> None:
        self.page.scroll_end_of_page()

    def action_search(self) -> None:
        def answered(text: str) -> None:
            self.page.search(text)
            self.show_bars()

        self.ask("search for; an empty line ends the search", self.page.wanted, answered)

    def action_match(self, by: int) -> None:
        self.page.next_match(by)
        self.show_bars()

    def action_jumps(self) -> None:
        named = [number for number, part in enumerate(self.page.sections) if part.name]
        here = max((place for place, number in enumerate(named) if number <= self.page.current), default=0)

        def jump(chosen: int | None) -> None:
            if chosen is not None:
                self.page.go_to(named[chosen])

        names = [self.page.sections[number].name for number in named]
        self.app.push_screen(names_window("jump to", names, here), jump)
