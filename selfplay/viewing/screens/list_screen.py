"""Lists on a full screen: the bugs of a run, of any number, and its episodes. Enter opens one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType

from selfplay.curriculum.bug_filter import BugFilter
from selfplay.curriculum.rows import BUG_ORDERS
from selfplay.curriculum.store import Store
from selfplay.errors import SelfplayError
from selfplay.viewing.episodes import EPISODE_COLUMNS, EpisodeFilter, episode_texts, listed_episodes
from selfplay.viewing.filter_text import filter_of, filter_text
from selfplay.viewing.inspect import BUG_COLUMNS, listed_bugs
from selfplay.viewing.rejections import REJECTED_COLUMNS, rejected_rows
from selfplay.viewing.screens.base import MOVES, ViewerScreen
from selfplay.viewing.screens.bug_screen import BugScreen
from selfplay.viewing.screens.episode_screen import EpisodeScreen
from selfplay.viewing.screens.rows_view import FixedRows, Rows, RowsView
from selfplay.viewing.tables import Column

LIST_KEYS = "Enter open  ? help"


class BugRows:
    """The bugs that pass a filter, read from the database a page at a time."""

    columns: Sequence[Column] = BUG_COLUMNS

    def __init__(self, store: Store, wanted: BugFilter) -> None:
        self._store, self._wanted = store, wanted
        self.count = min(store.count_bugs(wanted), wanted.limit or 1 << 62)

    def read(self, first: int, count: int) -> Sequence[Mapping[str, str]]:
        """From the nearer end, since SQLite counts through the rows before the first one."""
        count = min(count, self.count - first)
        after = self.count - first - count
        if after < first and self._wanted.limit is None:
            page = self._store.bug_page(self._wanted, after, count, backwards=True)[::-1]
        else:
            page = self._store.bug_page(self._wanted, first, count)
        return listed_bugs(self._store, page)


class ListScreen(ViewerScreen):
    """A table with a cursor. A subclass says what Enter opens."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *MOVES,
        Binding("enter,l,right", "open", "open this one"),
    ]

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.table = RowsView(rows)
        self.table.id = "body"

    def body(self) -> RowsView:
        return self.table

    def show_bars(self) -> None:
        raise NotImplementedError

    def on_rows_view_moved(self) -> None:
        self.show_bars()

    def on_resize(self) -> None:
        self.call_after_refresh(self.show_bars)

    def action_move(self, by: int) -> None:
        self.table.move(by)

    def action_move_pages(self, by: int) -> None:
        self.table.move_pages(by)

    def place(self) -> str:
        count = self.table.rows.count
        return f"{self.table.cursor + 1:,} of {count:,}" if count else "none"


class BugsScreen(ListScreen):
    """The bugs of a run."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "only bugs whose diffs hold a text", key_display="/"),
        Binding("f", "filter", "filter by repository, strategy, order, status, solve rate, since"),
        Binding("s", "sort", "sort by the next column"),
        Binding("r", "reverse", "sort the other way round"),
    ]

    def __init__(self, database: Path, wanted: BugFilter) -> None:
        self._database, self._store = database, Store.open(database, writer=False)
        self._wanted = wanted
        super().__init__(BugRows(self._store, wanted))

    def on_unmount(self) -> None:
        self._store.close()

    def show_bars(self) -> None:
        sort = f"by {self._wanted.sort}" + (", reversed" if self._wanted.reverse else "")
        state = f"bug {self.place()} · {sort}"
        if shown := filter_text(self._wanted):
            state += f" · {shown}"
        title = f"bugs of {self._database.parent.name}"
        self.set_bars(title, state, "Enter open  ? help")

    def _show(self, wanted: BugFilter) -> None:
        try:
            rows = BugRows(self._store, wanted)
        except SelfplayError as error:
            self.say(str(error), is_error=True)
            return
        self._wanted = wanted
        self.table.show(rows)

    def action_search(self) -> None:
        def answered(text: str) -> None:
            self._show(replace(self._wanted, text=text or None))

        self.ask("a text in the diffs; an empty line: all bugs", self._wanted.text or "", answered)

    def action_filter(self) -> None:
        def answered(text: str) -> None:
            try:
                wanted = filter_of(text, self._wanted, time.time())
                wanted.check()
            except SelfplayError as error:
                self.say(str(error), is_error=True)
            else:
                self._show(wanted)

        what = "repository=… strategy=… order=2 status=measured solve-rate=0.1..0.6 since=2d"
        self.ask(what, filter_text(replace(self._wanted, text=None)), answered)

    def action_sort(self) -> None:
        orders = list(BUG_ORDERS)
        following = orders[(orders.index(self._wanted.sort) + 1) % len(orders)]
        self._show(replace(self._wanted, sort=following))

    def action_reverse(self) -> None:
        self._show(replace(self._wanted, reverse=not self._wanted.reverse))

    def action_open(self) -> None:
        if not self.table.rows.count:
            return
        first = self.table.cursor // 200 * 200
        near = [row["bug"] for row in self.table.rows.read(first, 200)]
        try:
            opened = BugScreen(self._database, near, near[self.table.cursor - first])
        except (SelfplayError, IndexError) as error:
            self.say(str(error), is_error=True)
        else:
            self.app.push_screen(opened)


@dataclass(frozen=True)
class ListedFile:
    """A row of a list of episodes. path: of the episode's file."""

    texts: Mapping[str, str]
    path: Path


class EpisodesScreen(ListScreen):
    """Episodes of a run, or its rejected artifacts."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "find", "only rows that hold a text", key_display="/"),
    ]

    def __init__(self, title: str, columns: Sequence[Column], listed: Sequence[ListedFile]) -> None:
        self._title, self._columns = title, columns
        self._all = self._shown = list(listed)
        self._text = ""
        super().__init__(FixedRows(columns, [one.texts for one in listed]))

    @classmethod
    def of_run(cls, run: Path) -> EpisodesScreen:
        """All episodes of a run whose files are there, the newest last."""
        with Store.open(run / "selfplay.db", writer=False) as store:
            found = listed_episodes(store, EpisodeFilter())
        listed = [ListedFile(episode_texts(one), run / one.row.path) for one in found if one.row.path]
        return cls(f"episodes of {run.name}", EPISODE_COLUMNS, _there(listed))

    @classmethod
    def of_rejections(cls, run: Path, check: str) -> EpisodesScreen:
        """The artifacts of a run that a check rejected."""
        with Store.open(run / "selfplay.db", writer=False) as store:
            rows = rejected_rows(store, check)
        listed = [ListedFile(row, run / "episodes" / f"{row['episode']}.json.gz") for row in rows]
        return cls(f"rejected by {check} in {run.name}", REJECTED_COLUMNS, _there(listed))

    def show_bars(self) -> None:
        found = f" · with {self._text!r}" if self._text else ""
        self.set_bars(self._title, f"episode {self.place()}{found}", LIST_KEYS)

    def action_find(self) -> None:
        def answered(text: str) -> None:
            self._text = text
            wanted = text.casefold()
            self._shown = [one for one in self._all if wanted in " ".join(one.texts.values()).casefold()]
            self.table.show(FixedRows(self._columns, [one.texts for one in self._shown]))

        self.ask("a text in the rows; an empty line: all episodes", self._text, answered)

    def action_open(self) -> None:
        if not self._shown:
            return
        paths = [one.path for one in self._shown]
        try:
            opened = EpisodeScreen(paths, paths[self.table.cursor])
        except SelfplayError as error:
            self.say(str(error), is_error=True)
        else:
            self.app.push_screen(opened)


def _there(listed: Sequence[ListedFile]) -> list[ListedFile]:
    """Those whose file exists: one listing of the folder is quicker than asking for each."""
    folders = {one.path.parent for one in listed}
    names = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    return [one for one in listed if one.path in names]
