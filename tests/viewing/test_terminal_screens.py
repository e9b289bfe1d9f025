"""Full screens in a terminal emulator: hostile text is harmless, the size changes, `q` ends."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from selfplay.curriculum.store import Store
from store_rows import INJECT, a_bug, an_episode_value
from terminal_screen import TerminalScreen

# Renames the window, clears the screen, shows text from right to left, rings, is markup of two libraries, is
# no UTF-8 (a lone surrogate stands for the byte), and moves a line up and over what stands there.
EVIL = "\x1b]0;owned\x07\x1b[2J\u202eevil\x9b1A[red]m[/red][@click=app.quit]x[/]\udce9\x1b[1A\rover"
SPELLED = "\\x1b]0;owned\\x07\\x1b[2J\\u202eevil\\x9b1A[red]m[/red][@click=app.quit]x[/]\\xe9\\x1b[1A"


@pytest.fixture
def hostile(run):
    """The recorded run with an episode and a bug that hold EVIL in each text, and one huge line."""
    episode = an_episode_value()
    turns = tuple(
        replace(turn, text=f"{EVIL}\n{turn.text}", observation=f"{EVIL}\n{'x' * 300_000}")
        for turn in episode.turns
    )
    replace(
        episode,
        episode_id="u0001-sol0-m2",
        repository=f"heron{EVIL}",
        messages=({"role": f"user{EVIL}", "content": EVIL},),
        turns=turns,
        submission={"patch": f"{INJECT}{EVIL}", f"name{EVIL}": EVIL},
        error=EVIL,
    ).write(run / "episodes")
    with Store.open(run / "selfplay.db") as store:
        diff = INJECT.replace("x = 2", f"x = {EVIL}")
        store.add_bug(
            a_bug(
                "u0009-evil",
                "u0001-inj0-m2",
                repository=f"heron{EVIL}",
                artifact={"bug_inject.diff": diff},
                failure=EVIL,
            )
        )
    return run


def all_of(*texts: str) -> Callable[[str], bool]:
    return lambda shown: all(text in shown for text in texts)


def is_small(shown: str) -> bool:
    """True once the line of state ends where 50 columns end."""
    lines = shown.splitlines()
    return len(lines) == 12 and lines[-1].rstrip().endswith("? help")


def is_untouched(terminal: TerminalScreen) -> bool:
    """True if no text of the run reached the terminal as a code or a character that hides."""
    hidden = {"\u202e", "\x07", "\x9b", "\x00", "\x1b"}
    return "owned" not in terminal.screen.title and not hidden & set(terminal.text)


def test_a_hostile_episode_is_shown_as_text_and_the_screen_follows_the_terminals_size(hostile):
    with TerminalScreen(["replay", "u0001-sol0-m2"], hostile.parents[1]) as terminal:
        first = terminal.wait_for(all_of("━━ user\\x1b]0;owned", "? help"))
        assert "u0001-sol0-m2" in first.splitlines()[0] and "? help" in first.splitlines()[-1]
        terminal.press("l")
        shown = terminal.wait_for("turn 1 of 3 ·").replace("\n│ ", "").replace(" ", "")
        assert SPELLED.replace(" ", "")[:60] in shown and is_untouched(terminal)
        terminal.resize(50, 12)
        terminal.wait_for(lambda text: is_small(text) and "━━ turn 1 of 3" in text)
        terminal.press("/")
        terminal.wait_for("search for")
        terminal.press("xxxxx\r")
        terminal.wait_for("'xxxxx' 1 of")
        terminal.press("q")
        assert terminal.end() == 0 and is_untouched(terminal)


def test_hostile_bugs_are_listed_found_and_opened(hostile):
    arguments = ["inspect-bugs", "demo", "--sort", "created"]
    with TerminalScreen(arguments, hostile.parents[1], 120, 40) as terminal:
        terminal.wait_for(all_of("bug 1 of 4", "heron\\x1b]0;"))
        assert is_untouched(terminal)
        terminal.press("/")
        terminal.wait_for("a text in the diffs")
        terminal.press("owned\r")
        terminal.wait_for("bug 1 of 1")
        terminal.press("\r")
        terminal.wait_for(all_of("━━ the bug u0009-evil", "heron\\x1b]0;owned\\x07"))
        terminal.press("d")
        terminal.wait_for(lambda text: "+x = \\x1b]0;owned\\x07\\x1b[2J\\u202eevil" in text)
        assert is_untouched(terminal)
        terminal.press("qq")
        assert terminal.end() == 0


def test_keys_that_are_typed_at_once_act_in_their_order(hostile):
    arguments = ["inspect-bugs", "demo", "--sort", "created"]
    with TerminalScreen(arguments, hostile.parents[1], 120, 40) as terminal:
        terminal.wait_for(all_of("bug 1 of 4", "heron\\x1b]0;"))
        terminal.press("/no\x7f\x7fowmed\x1b[D\x1b[D\x7fn\r")
        terminal.wait_for(lambda text: "bug 1 of 1 " in text and "owned" in text.splitlines()[-1])
        terminal.press("/nothing\rf\x15order=1\r/\x15\r")
        terminal.wait_for(all_of("bug 1 of", "order=1"))
        terminal.press("qq")
        assert terminal.end() == 0


def test_a_window_and_the_screen_below_take_keys_that_are_typed_at_once(hostile):
    with TerminalScreen(["replay", "u0001-sol0-m2"], hostile.parents[1]) as terminal:
        terminal.wait_for("━━ user\\x1b]0;owned")
        terminal.press("tjj\r")
        terminal.wait_for(lambda text: text.splitlines()[1].startswith("━━ turn "))
        terminal.press("/turn 3\rn/no such text\r")
        terminal.wait_for("'no such text' not found")
        terminal.press("?qq")
        assert terminal.end() == 0


def test_a_viewer_ends_when_its_terminal_is_closed(hostile):
    with TerminalScreen(["inspect-bugs", "demo"], hostile.parents[1]) as terminal:
        terminal.wait_for("? help")
        assert terminal.close() == 0
