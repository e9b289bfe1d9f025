"""One episode on a full screen: its turns, details, diffs, tokens; a play-back; its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.timer import Timer

from selfplay.agent.episode import Episode
from selfplay.errors import SelfplayError
from selfplay.viewing.bug_page import earned
from selfplay.viewing.episode_record import RecordedEpisode
from selfplay.viewing.episode_search import load_episode
from selfplay.viewing.frames import Frames
from selfplay.viewing.playback import Playback
from selfplay.viewing.replay import episode_sections
from selfplay.viewing.screens.base import ViewerApp
from selfplay.viewing.screens.page_screen import PageScreen
from selfplay.viewing.screens.page_view import page_console
from selfplay.viewing.sections import Section
from selfplay.viewing.token_page import Decode, diff_sections, token_sections, tokenizer_of
from selfplay.viewing.turns import budget

SHORTEST_S = 0.01  # of a timer: Textual leaves out one whose time has passed when it begins


@dataclass(frozen=True)
class Watching:
    """How an episode is played back. is_paused: step by step."""

    speed: float = 1.0
    is_paused: bool = False


class EpisodeScreen(PageScreen):
    """`paths` are the files of the episodes that H and L go to; `path` is one of them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l,right", "turn(1)", "next turn"),
        Binding("h,left", "turn(-1)", "previous turn"),
        Binding("L", "episode(1)", "next episode"),
        Binding("H", "episode(-1)", "previous episode"),
        Binding("v", "details", "details of each turn, or of each token"),
        Binding("d", "view('diffs')", "the diffs alone, and back"),
        Binding("p", "view('tokens')", "the tokens: log-probability, mask, weights; and back"),
        Binding("s", "story", "the story of the bug"),
        Binding("space", "pause", "play-back: pause, go on; else a page down"),
        Binding("enter", "step", "play-back: show the next turn"),
        Binding("plus", "speed(1)", "play-back: faster"),
        Binding("minus", "speed(-1)", "play-back: slower"),
    ]

    def __init__(self, paths: Sequence[Path], path: Path, watching: Watching | None = None) -> None:
        """Raises RunError if the file cannot be read."""
        super().__init__()
        self._paths = list(paths)
        self._place = self._paths.index(path)
        self._watching = watching
        self._view, self._details = "episode", False
        self._player: Playback | None = None
        self._timer: Timer | None = None
        self._decoders: dict[Path, Decode | str] = {}
        self.found = load_episode(path)

    @property
    def episode(self) -> Episode:
        return self.found.episode

    def on_mount(self) -> None:
        if self._watching is None:
            self.page.show(self._sections())
            return
        sections = list(episode_sections(self.found, self._frames()))
        self._player = Playback(sections, self._watching.speed, self._watching.is_paused)
        self.page.show(sections[: self._player.shown])
        self.call_after_refresh(self._wait)

    # ---- content

    def _frames(self) -> Frames:
        return Frames(page_console(80), plain=False)

    def _sections(self) -> list[Section]:
        frames = self._frames()
        if self._view == "diffs":
            return list(diff_sections(self.found, frames))
        if self._view == "tokens":
            return list(token_sections(self.found, self._decode(), frames, self._details))
        return list(episode_sections(self.found, frames, self._details))

    def _decode(self) -> Decode | str:
        """What decodes tokens of this episode, or why nothing does."""
        path = self.found.path
        if path not in self._decoders:
            self._decoders = {path: tokenizer_of(path, self.episode)}
        return self._decoders[path]

    def show_bars(self) -> None:
        episode, page = self.episode, self.page
        turns = [number for number, part in enumerate(page.sections) if part.is_turn]
        turn = sum(number <= page.current for number in turns)
        of_run = f"{self._place + 1} of {len(self._paths)}"
        title = f"{episode.episode_id} · {episode.role} in {episode.repository} · episode {of_run}"
        state = f"turn {turn} of {len(episode.turns)}"
        if 0 < turn <= len(episode.turns) and (left := budget(episode.turns[turn - 1])):
            state += f" · left {left[0]} turns, {left[1]:,} tokens"
        state += f" · {_ended(self.found)}"
        if self._player is not None:
            state = f"{self._player}"
        view = "" if self._view == "episode" else f" · {self._view}"
        keys = "Space pause  Enter next" if self._player else "? help"
        self.set_bars(title + view, self.found_text() + state, keys)

    # ---- play-back

    def _wait(self) -> None:
        """Wait until the next section follows."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = None
        delay = self._player.delay_s() if self._player else None
        if delay is not None and delay < SHORTEST_S:
            self.call_later(self._advance)
        elif delay is not None:
            self._timer = self.set_timer(delay, self._advance)
        self.show_bars()

    def _advance(self) -> None:
        if self._player is not None and not self._player.is_paused:
            self._reveal(whole_turn=False)

    def _reveal(self, whole_turn: bool) -> None:
        if self._player is None:
            return
        before = self._player.shown
        self._player.step() if whole_turn else self._player.advance()
        new = list(self._player.sections[before : self._player.shown])
        if new:
            self.page.add(new)
        if self._player.is_done:
            self._end_playback()
        self._wait()

    def _end_playback(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._player = self._timer = None

    def action_pause(self) -> None:
        if self._player is None:
            self.page.scroll_pages(1)
        elif self._player.is_paused and self._watching is not None and self._watching.is_paused:
            self._reveal(whole_turn=True)  # step by step
        else:
            self._player.toggle()
            self._wait()

    def action_step(self) -> None:
        self._reveal(whole_turn=True)

    def action_speed(self, by: int) -> None:
        if self._player is not None:
            self._player.change_speed(by)
            self._wait()

    # ---- moving

    def action_turn(self, by: int) -> None:
        if by > 0 and self._player is not None and self.page.current >= len(self.page.sections) - 1:
            self._reveal(whole_turn=True)
        else:
            self.page.go_to_turn(by)

    def action_episode(self, by: int) -> None:
        place = self._place + by
        if not 0 <= place < len(self._paths):
            self.say(f"this is the {'last' if by > 0 else 'first'} episode")
            return
        try:
            self.found = load_episode(self._paths[place])
        except SelfplayError as error:
            self.say(str(error), is_error=True)
            return
        self._place = place
        self._end_playback()
        self.page.show(self._sections())

    def action_view(self, view: str) -> None:
        self._end_playback()
        self._view = "episode" if self._view == view else view
        self.page.show(self._sections())

    def action_details(self) -> None:
        self._end_playback()
        self._details = not self._details
        self.page.show(self._sections(), keep_place=True)

    def action_story(self) -> None:
        from selfplay.viewing.screens.bug_screen import BugScreen  # it imports this module, too

        bug = self.found.bug.bug_id if self.found.bug is not None else ""
        database = self.found.path.parent.parent / "selfplay.db"
        if not bug or not database.is_file():
            self.say("this episode has no bug in its run")
            return
        assert isinstance(self.app, ViewerApp)
        self.app.push_screen(BugScreen(database, [bug], bug))


def _ended(found: RecordedEpisode) -> str:
    earned_text = earned(found.row) if found.row is not None else ""
    return " · ".join(part for part in (found.episode.finish.value, earned_text) if part)
