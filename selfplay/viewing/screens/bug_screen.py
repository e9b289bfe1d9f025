"""One bug on a full screen: its story, then all that the run knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType

from selfplay.curriculum.store import Store
from selfplay.errors import SelfplayError
from selfplay.viewing.bug_page import RESULTS, BugStory, bug_sections
from selfplay.viewing.frames import Frames
from selfplay.viewing.screens.base import names_window
from selfplay.viewing.screens.page_screen import PageScreen
from selfplay.viewing.screens.page_view import page_console


class BugScreen(PageScreen):
    """`bug_ids` are the bugs that H and L go to; `bug_id` is one of them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l,right", "part(1)", "next part"),
        Binding("h,left", "part(-1)", "previous part"),
        Binding("L", "bug(1)", "next bug of the list"),
        Binding("H", "bug(-1)", "previous bug of the list"),
        Binding("d", "diffs", "to the diffs"),
        Binding("e,enter", "episodes", "open the episode that made it, or an attempt"),
        Binding("f", "family", "open another bug of its lineage"),
    ]

    def __init__(self, database: Path, bug_ids: Sequence[str], bug_id: str) -> None:
        """Raises StoreError if there is no such bug."""
        super().__init__()
        self._database = database
        self._bug_ids = list(bug_ids)
        self._place = self._bug_ids.index(bug_id)
        self.story = self._read(bug_id)

    def _read(self, bug_id: str) -> BugStory:
        with closing(Store.open(self._database, writer=False)) as store:
            return BugStory.read(store, bug_id)

    def on_mount(self) -> None:
        self._show()

    def _show(self) -> None:
        self.page.show(list(bug_sections(self.story, Frames(page_console(80), plain=False))))

    def show_bars(self) -> None:
        bug = self.story.bug
        place = f" · bug {self._place + 1} of {len(self._bug_ids)}" if len(self._bug_ids) > 1 else ""
        rate = "not measured" if bug.solve_rate is None else f"solve rate {bug.solve_rate:.2f}"
        state = f"{self.found_text()}{bug.status} · {rate}"
        title = f"{bug.bug_id} · {bug.repository} · order {bug.order}{place}"
        self.set_bars(title, state, "e episodes  f family  d diffs  ? help")

    # ---- actions

    def action_part(self, by: int) -> None:
        self.page.go_to(self.page.current + by)

    def action_diffs(self) -> None:
        diffs = (
            number
            for number, part in enumerate(self.page.sections)
            if part.title.startswith("bug_inject.diff")
        )
        self.page.go_to(next(diffs, 0))

    def action_bug(self, by: int) -> None:
        place = self._place + by
        if not 0 <= place < len(self._bug_ids):
            self.say(f"this is the {'last' if by > 0 else 'first'} bug")
            return
        if self._open(self._bug_ids[place]):
            self._place = place

    def _open(self, bug_id: str) -> bool:
        try:
            self.story = self._read(bug_id)
        except SelfplayError as error:
            self.say(str(error), is_error=True)
            return False
        self._show()
        return True

    def action_family(self) -> None:
        names = [bug.bug_id for bug in self.story.family]

        def opened(chosen: int | None) -> None:
            if chosen is not None:
                self._open(names[chosen])

        here = names.index(self.story.bug.bug_id)
        self.app.push_screen(names_window("the lineage", names, here), opened)

    def action_episodes(self) -> None:
        from selfplay.viewing.screens.episode_screen import EpisodeScreen

        bug = self.story.bug
        made = [(name, "made it") for name in (bug.injector_episode_id, bug.parent_episode_id) if name]
        tried = [(row.episode_id, RESULTS[row.passed][0]) for row, _ in self.story.attempts]
        folder = self._database.parent / "episodes"
        found = [
            (path, f"{name}  {what}")
            for name, what in [*made, *tried]
            if (path := folder / f"{name}.json.gz").is_file()
        ]
        if not found:
            self.say("the files of its episodes are gone")
            return

        def opened(chosen: int | None) -> None:
            if chosen is None:
                return
            paths = list(dict.fromkeys(path for path, _ in found))
            try:
                self.app.push_screen(EpisodeScreen(paths, found[chosen][0]))
            except SelfplayError as error:
                self.say(str(error), is_error=True)

        self.app.push_screen(names_window("episodes", [text for _, text in found]), opened)
