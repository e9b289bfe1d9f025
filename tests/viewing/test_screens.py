"""What the keys of the full screens do. `test_terminal_screens.py` has them in a terminal."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from textual.pilot import Pilot

from selfplay.agent.token_ratios import ratios_file, write_ratios
from selfplay.curriculum.bug_filter import BugFilter
from selfplay.curriculum.store import Store
from selfplay.viewing.screens.base import ViewerApp
from selfplay.viewing.screens.bug_screen import BugScreen
from selfplay.viewing.screens.episode_screen import EpisodeScreen, Watching
from selfplay.viewing.screens.list_screen import BugsScreen, EpisodesScreen
from store_rows import an_episode_value

Steps = Callable[[Pilot], Awaitable[None]]


def shown(make: Callable, steps: Steps, size: tuple[int, int] = (80, 24)) -> None:
    """Show the screen that `make` makes, and go through the steps."""

    async def go() -> None:
        app = ViewerApp(make)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(pilot)

    asyncio.run(go())


@pytest.fixture
def episodes(run):
    """The files of three episodes of the recorded run."""
    files = []
    for member in range(3):
        value = replace(an_episode_value(), episode_id=f"u0001-sol0-m{member}", member=member)
        files.append(value.write(run / "episodes"))
    return files


def state(pilot: Pilot) -> str:
    return str(pilot.app.screen.query_one("#state").render())


def title(pilot: Pilot) -> str:
    return pilot.app.screen.page.sections[pilot.app.screen.page.current].title


async def press(pilot: Pilot, *keys: str) -> None:
    await pilot.press(*keys)
    await pilot.pause()


def test_keys_move_between_turns_episodes_and_ends(episodes):
    async def steps(pilot):
        for start in ("turn 1 of 3", "turn 2 of 3", "turn 3 of 3", "submission"):
            await press(pilot, "l")
            assert title(pilot).startswith(start)
        await press(pilot, "h")
        assert title(pilot).startswith("turn 3 of 3") and "turn 3 of 3" in state(pilot)
        await press(pilot, "L")
        assert pilot.app.screen.episode.episode_id == "u0001-sol0-m2"
        await press(pilot, "L")
        assert pilot.app.screen.episode.episode_id == "u0001-sol0-m2", "it is the last one"
        await press(pilot, "H", "H")
        assert pilot.app.screen.episode.episode_id == "u0001-sol0-m0"
        page = pilot.app.screen.page
        await press(pilot, "G")
        assert page.scroll_offset.y == page.max_scroll_y > 0
        await press(pilot, "k")
        assert page.scroll_offset.y == page.max_scroll_y - 1
        await press(pilot, "g", "j", "j")
        assert page.scroll_offset.y == 2

    shown(lambda: EpisodeScreen(episodes, episodes[1]), steps)


def test_search_jumps_details_and_other_views(episodes):
    async def steps(pilot):
        page = pilot.app.screen.page
        await press(pilot, "slash", *"NO SUCH", "enter")
        assert "'NO SUCH' 1 of" in state(pilot) and page.matches[page.match].parts
        await press(pilot, "g", "t", "j", "j", "j", "enter")
        assert title(pilot).startswith("turn 1 of 3")
        await press(pilot, "v")
        assert any("mean log-probability 0.000" in line.text for line in page._lines)
        assert title(pilot).startswith("turn 1 of 3"), "the place is kept"
        await press(pilot, "d")
        assert page.sections[0].title == "submitted: patch"
        await press(pilot, "d", "p")
        assert any(part.title.startswith("turn 1 · tokens 5–8") for part in page.sections)
        await press(pilot, "p", "s")
        assert isinstance(pilot.app.screen, BugScreen)
        await press(pilot, "question_mark")
        await press(pilot, "q", "q")
        assert isinstance(pilot.app.screen, EpisodeScreen)

    shown(lambda: EpisodeScreen(episodes, episodes[0]), steps)


def test_the_token_view_has_the_ratio_of_each_token_of_the_update(episodes, run):
    episode = an_episode_value()
    ratios = [1.3 if mask else math.nan for mask in episode.loss_mask]
    write_ratios(ratios_file(run, 1), {"u0001-sol0-m0": ratios})
    with Store.open(run / "selfplay.db") as store:
        store.consume("u0001-sol0-m0", 1, 0.5)

    async def steps(pilot):
        page = pilot.app.screen.page
        await press(pilot, "p")
        assert any("1.3 to 1.3 here" in line.text for line in page._lines)
        await press(pilot, "v")
        assert sum(" 1.300 " in line.text for line in page._lines) == sum(episode.loss_mask)

    shown(lambda: EpisodeScreen(episodes, episodes[0]), steps)


def test_space_stops_a_play_back_and_in_step_mode_shows_the_next_turn(episodes):
    async def stepped(pilot):
        page = pilot.app.screen.page
        assert not any(part.is_turn for part in page.sections)
        await press(pilot, "space")
        assert page.sections[-1].title.startswith("observation")
        await press(pilot, "enter", "space")
        assert page.sections[-1].name == "the end" and "turn" in state(pilot)

    async def played(pilot):
        await press(pilot, "space")
        count = len(pilot.app.screen.page.sections)
        assert "paused" in state(pilot)
        await press(pilot, "enter")
        assert len(pilot.app.screen.page.sections) == count + 2
        await press(pilot, "plus", "space")
        assert "as fast" in state(pilot)

    shown(lambda: EpisodeScreen(episodes, episodes[0], Watching(1.0, is_paused=True)), stepped)
    # So slow that nothing follows by itself while the test runs.
    slow = replace(
        an_episode_value(), turns=tuple(replace(t, generate_s=9e9) for t in an_episode_value().turns)
    )
    slow.write(episodes[0].parent)
    shown(lambda: EpisodeScreen(episodes, episodes[0], Watching(1.0)), played)


def test_a_play_back_shows_all_of_an_episode_by_itself(episodes):
    async def steps(pilot):
        while pilot.app.screen._player is not None:
            await pilot.pause()
        assert pilot.app.screen.page.sections[-1].name == "the end"

    shown(lambda: EpisodeScreen(episodes, episodes[0], Watching(1e6)), steps)


def test_a_resize_keeps_the_place(episodes):
    async def steps(pilot):
        await press(pilot, "l", "l")
        await pilot.resize_terminal(50, 15)
        await pilot.pause()
        page = pilot.app.screen.page
        assert title(pilot).startswith("turn 2 of 3")
        assert page._starts[page.current] == page.scroll_offset.y
        assert all(line.strip.cell_length <= 49 for line in page._lines)

    shown(lambda: EpisodeScreen(episodes, episodes[0]), steps)


def test_bugs_are_sorted_filtered_found_and_opened_with_their_episodes(run, episodes):
    async def steps(pilot):
        table = pilot.app.screen.table
        assert "bug 1 of 3" in state(pilot)
        await press(pilot, "f", *"order=2", "enter")
        assert table.rows.count == 1 and "order=2" in state(pilot)
        await press(pilot, "f", *["backspace"] * 7, "enter")
        await press(pilot, "r")
        assert table.row(0)["bug"] == "u0001-sol0-m1-bug2"
        await press(pilot, "G")
        assert table.cursor == 2
        await press(pilot, "enter")
        assert pilot.app.screen.story.bug.bug_id == "u0001-inj0-m0-bug"
        await press(pilot, "e", "enter")
        assert isinstance(pilot.app.screen, EpisodeScreen)
        await press(pilot, "q", "f", "G", "enter")
        assert pilot.app.screen.story.bug.bug_id == "u0001-sol0-m1-bug2", "another bug of the lineage"
        await press(pilot, "q", "slash", *"no such text", "enter")
        assert table.rows.count == 0 and "none" in state(pilot)

    shown(lambda: BugsScreen(run / "selfplay.db", BugFilter()), steps)


def test_a_list_reads_only_the_rows_near_the_screen(run, monkeypatch):
    asked = []
    pages = Store.bug_page

    def bug_page(store, wanted, first, count, backwards=False):
        asked.append((first, count, backwards))
        return pages(store, wanted, first, count, backwards)

    monkeypatch.setattr(Store, "bug_page", bug_page)
    monkeypatch.setattr(Store, "count_bugs", lambda store, wanted=None: 1_000_000)

    async def steps(pilot):
        await press(pilot, "G")
        assert asked == [(0, 200, False), (0, 200, True)]

    shown(lambda: BugsScreen(run / "selfplay.db", BugFilter()), steps)


def test_the_episodes_of_a_run_and_the_artifacts_that_a_check_rejected(run, episodes):
    async def all_of_them(pilot):
        assert "episode 1 of 3" in state(pilot), "only those whose file is there"
        await press(pilot, "slash", *"not repaired", "enter")
        assert "of 2" in state(pilot)
        await press(pilot, "enter")
        assert pilot.app.screen.episode.episode_id == "u0001-sol0-m1"

    async def rejected(pilot):
        assert "episode 1 of 1" in state(pilot)
        assert pilot.app.screen.table.row(0)["reason"].startswith("the output [is] not JSON")

    shown(lambda: EpisodesScreen.of_run(run), all_of_them)
    replace(an_episode_value(), episode_id="u0001-inj0-m2").write(run / "episodes")
    shown(lambda: EpisodesScreen.of_rejections(run, "parser"), rejected)
