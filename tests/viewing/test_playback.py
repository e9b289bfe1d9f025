"""How a play-back goes on: at a speed, step by step, and what the keys do to it."""

from io import StringIO

import pytest
from rich.console import Console

from selfplay.viewing.episode_search import find_episode
from selfplay.viewing.frames import Frames
from selfplay.viewing.playback import MAX_PAUSE_S, Playback
from selfplay.viewing.replay import episode_sections


@pytest.fixture
def sections(run):
    found = find_episode(run, "u0001-sol0-m0")
    return list(episode_sections(found, Frames(Console(file=StringIO()), plain=False)))


def shown(player: Playback) -> str:
    return player.sections[player.shown - 1].title


def test_it_pauses_for_the_recorded_time_divided_by_the_speed(sections):
    player = Playback(sections, speed=2.0)
    assert shown(player) == "user", "what precedes the first turn is shown at once"
    waited = []
    while (delay := player.delay_s()) is not None:
        waited.append(delay)
        player.advance()
    assert waited[:5] == [0.75, 0.1, 0.5, 0.05, 0.25] and set(waited[5:]) == {0.0}
    assert player.is_done and player.delay_s() is None


def test_no_pause_is_longer_than_the_bound(sections):
    assert Playback(sections, speed=0.01).delay_s() == MAX_PAUSE_S


def test_a_paused_one_waits_for_a_step_which_shows_a_whole_turn(sections):
    player = Playback(sections, is_paused=True)
    assert player.delay_s() is None
    player.step()
    assert shown(player).startswith("observation") and sections[player.shown].title.startswith("turn 2 of 3")
    player.step()
    assert sections[player.shown].title.startswith("turn 3 of 3")
    player.step()
    assert player.is_done, "the outcome follows the last turn"


def test_speeds_are_changed_in_steps_and_have_ends(sections):
    player = Playback(sections, speed=4.0)
    player.change_speed(1)
    assert player.speed == 8.0
    for _ in range(20):
        player.change_speed(-1)
    assert player.speed == 0.25
