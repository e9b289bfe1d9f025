"""What all full screens share: a title, a body, a line for what is typed, a line of state, help, the app."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Event, Key
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Input, Static
from textual.widgets.input import Selection

from selfplay.agent.observations import make_harmless
from selfplay.errors import SelfplayError
from selfplay.viewing.folding import one_line
from selfplay.viewing.screens.rows_view import FixedRows, RowsView
from selfplay.viewing.tables import Column

TERMINAL_CHECK_S = 1.0


def is_hung_up(descriptor: int) -> bool:
    """Whether the other end of a terminal or pipe is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


class ViewerApp(App[None]):
    """Shows a stack of screens, and ends with the last of them. It keeps the terminal's own colours."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { background: ansi_default; }
    ScrollView {
        scrollbar-background: ansi_default; scrollbar-background-hover: ansi_default;
        scrollbar-background-active: ansi_default; scrollbar-color: ansi_bright_black;
    }
    .bar { height: 1; width: 100%; }
    .title { text-style: bold reverse; }
    .state { text-style: reverse; }
    Input.asked { display: none; border: none; height: 1; padding: 0; }
    Input.asked.shown { display: block; }
    ModalScreen { align: center middle; background: ansi_default; }
    .window { width: 90%; max-height: 90%; max-width: 110; border: round ansi_cyan; }
    """

    def __init__(self, first: Callable[[], Screen[None]]) -> None:
        """first: makes the screen to begin with."""
        super().__init__()
        self.theme = "ansi-dark"
        self.fault: SelfplayError | None = None
        self._first = first

    def on_mount(self) -> None:
        self.set_interval(TERMINAL_CHECK_S, self._end_without_terminal)
        try:
            self.push_screen(self._first())
        except SelfplayError as error:
            self.fault = error
            self.exit()

    def _end_without_terminal(self) -> None:
        """End once the terminal is closed: Textual would read its end of file for ever."""
        if not self.is_headless and is_hung_up(0):
            self.exit()

    async def on_event(self, event: Event) -> None:
        """Act on keys at once and in their order.

        Textual sends a key to the widget that has the focus, and looks for its binding once it comes back
        from there. Keys that follow `/` without a pause would then go to the page, not into the line.
        """
        if not isinstance(event, Key) or event.is_forwarded:
            await super().on_event(event)
        elif isinstance(self.focused, Input) and event.character is not None and event.is_printable:
            self.focused.replace(event.character, *self.focused.selection)
        elif (found := self.screen.active_bindings.get(event.key)) is not None and found.enabled:
            await self.run_action(found.binding.action, found.node)

    def close_screen(self) -> None:
        """Go back to the screen below, or end."""
        if len(self.screen_stack) <= 2:
            self.exit()
        else:
            self.pop_screen()


def view(first: Callable[[], Screen[None]]) -> None:
    """Show screens until the person ends. Raises what making the first one raises."""
    app = ViewerApp(first)
    app.run()
    if app.fault is not None:
        raise app.fault


class AskingLine(Input):
    """A line that is typed. Enter gives it to the screen at once, so that the next key is a command again."""

    def __init__(self) -> None:
        super().__init__(classes="asked", id="asked", compact=True, select_on_focus=False)

    async def action_submit(self) -> None:
        assert isinstance(self.screen, ViewerScreen)
        self.screen.answer(self.value)


class ViewerScreen(Screen[None]):
    """A body with a title above it and a line of state below. `/` and other keys ask for a text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "close", "back; at the first screen: end"),
        Binding("escape", "leave", "close the line that asks, or go back", show=False),
        Binding("question_mark", "help", "this help", key_display="?"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._answered: Callable[[str], None] | None = None

    def body(self) -> Widget:
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        yield Static(classes="bar title", id="title", markup=False)
        yield self.body()
        yield AskingLine()
        yield Static(classes="bar state", id="state", markup=False)

    def set_bars(self, title: str, state: str, keys: str) -> None:
        """The lines above and below the body. keys: shown at the right of the state, if there is room."""
        self.query_one("#title", Static).update(_bar(f" {title}", "", self.size.width))
        self.query_one("#state", Static).update(_bar(f" {state}", keys, self.size.width))

    def say(self, text: str, is_error: bool = False) -> None:
        """Show a note for a moment. It may quote the run."""
        self.notify(make_harmless(text), severity="error" if is_error else "information", markup=False)

    # ---- asking for a text

    def ask(self, what: str, text: str, answered: Callable[[str], None]) -> None:
        """Let the person type a line, below the body."""
        asked = self.query_one(AskingLine)
        asked.placeholder, asked.value, self._answered = what, text, answered
        asked.selection = Selection(0, len(text))
        asked.add_class("shown")
        self.set_focus(asked)

    def answer(self, text: str) -> None:
        """Act on what was typed."""
        answered = self._answered
        self._stop_asking()
        if answered is not None:
            answered(text)

    def _stop_asking(self) -> None:
        self.query_one(AskingLine).remove_class("shown")
        self._answered = None
        self.set_focus(self.query_one("#body"))

    @property
    def is_asking(self) -> bool:
        return self._answered is not None

    # ---- actions

    def action_close(self) -> None:
        assert isinstance(self.app, ViewerApp)
        self.app.close_screen()

    def action_leave(self) -> None:
        if self.is_asking:
            self._stop_asking()
        else:
            self.action_close()

    def action_help(self) -> None:
        keys: dict[str, list[str]] = {}
        for binding in self._bindings.key_to_bindings.values():
            for one in binding:
                if one.show:
                    keys.setdefault(one.description, []).append(_key_name(one))
        rows = [{"key": " ".join(names), "what it does": what} for what, names in keys.items()]
        self.app.push_screen(ListWindow("keys", FixedRows((Column("key"), Column("what it does")), rows)))


# The keys that move the cursor of a list.
MOVES: tuple[Binding, ...] = (
    Binding("j,down", "move(1)", "down"),
    Binding("k,up", "move(-1)", "up"),
    Binding("ctrl+d,pagedown,space", "move_pages(1)", "a page down"),
    Binding("ctrl+u,pageup,b", "move_pages(-1)", "a page up"),
    Binding("g,home", "move(-1000000000)", "to the first"),
    Binding("G,end", "move(1000000000)", "to the last"),
)


class ListWindow(ModalScreen[int | None]):
    """A list in a window. Its result is the number of the row that was chosen, None if it was closed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,escape,question_mark", "dismiss", "close"),
        *MOVES,
        Binding("enter", "choose", "choose"),
    ]

    def __init__(self, title: str, rows: FixedRows, cursor: int = 0) -> None:
        super().__init__()
        self._title = title
        self._view = RowsView(rows)
        self._view.cursor = cursor

    def compose(self) -> ComposeResult:
        self._view.add_class("window")
        self._view.styles.height = self._view.rows.count + 3
        self._view.border_title = Text(one_line(self._title)).markup
        yield self._view

    def action_move(self, by: int) -> None:
        self._view.move(by)

    def action_move_pages(self, by: int) -> None:
        self._view.move_pages(by)

    def action_choose(self) -> None:
        self.dismiss(self._view.cursor if self._view.rows.count else None)


def names_window(title: str, names: Sequence[str], cursor: int = 0) -> ListWindow:
    """A list of names to choose from."""
    rows = [{"": name} for name in names]
    return ListWindow(title, FixedRows((Column("", least=10),), rows), cursor)


def _bar(left: str, right: str, width: int) -> Text:
    left, right = one_line(left), one_line(right)
    text, room = Text(left), width - len(right) - 2
    if not right or room <= 0:
        text.truncate(width, overflow="ellipsis", pad=True)
        return text
    text.truncate(room, overflow="ellipsis", pad=True)
    return text.append(f" {right}")


def _key_name(binding: Binding) -> str:
    names = {"slash": "/", "plus": "+", "minus": "-", "escape": "Esc", "enter": "Enter", "space": "Space"}
    return binding.key_display or names.get(binding.key, binding.key)
