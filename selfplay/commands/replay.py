"""`selfplay replay`: an episode, the story of a bug, or the episodes of a run: on a screen or printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfplay.commands.screens import has_screen
from selfplay.curriculum.store import Store
from selfplay.errors import RunError, StoreError, UsageError
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.viewing.bug_page import show_bug
from selfplay.viewing.episode_record import RecordedEpisode
from selfplay.viewing.episode_search import SUFFIX, find_episode
from selfplay.viewing.episodes import EpisodeFilter, show_episodes
from selfplay.viewing.replay import replay
from selfplay.viewing.tables import output_console

if TYPE_CHECKING:
    from textual.screen import Screen


@dataclass(frozen=True)
class ReplayRequest:
    """What to show and how.

    play    like a film, `speed` times as fast as it happened
    step    like a film that waits for a key after each turn
    plain   printed, not on a full screen. Always so without a terminal
    rerun   execute the recorded actions instead
    """

    what: str
    play: bool = False
    step: bool = False
    speed: float | None = None
    plain: bool = False
    rerun: bool = False


@dataclass(frozen=True)
class FoundBug:
    database: Path
    bug_id: str


Subject = RecordedEpisode | FoundBug | RunFolder


def find_subject(what: str, folder: Path, is_one_run: bool) -> Subject:
    """The episode, bug or run that is called so. Raises RunError or StoreError if there is none, or several.

    folder: the folder of one run, or one that holds several.
    """
    if not what.endswith(SUFFIX):
        for candidate in (folder / what, Path(what)):
            if not is_one_run and (candidate / "selfplay.db").is_file():
                return RunFolder(candidate)
    try:
        return find_episode(folder, what)
    except RunError as error:
        if found := _find_bug(what, folder):
            return found
        if "begins with" not in str(error):
            raise
        raise RunError(f"{error} Neither a run nor a bug is called so.") from error


def _find_bug(what: str, folder: Path) -> FoundBug | None:
    """The bug with this id or start of an id, in one run; None if no run has it."""
    databases = sorted([*folder.glob("selfplay.db"), *folder.glob("*/selfplay.db")])
    found, several = [], None
    for database in databases:
        try:
            with closing(Store.open(database, writer=False)) as store:
                found.append(FoundBug(database, store.bug(what).bug_id))
        except StoreError as error:
            several = error if "bugs' ids begin" in str(error) else several
    if len(found) > 1:
        runs = ", ".join(bug.database.parent.name for bug in found[:6])
        raise RunError(f"{len(found)} runs have a bug {what!r}: {runs}. Choose one with --run.")
    if not found and several is not None:
        raise several
    return found[0] if found else None


def replay_recorded(request: ReplayRequest, run: str, runs: Path, *, as_json: bool = False) -> int:
    """Show what was asked for. Returns the exit code: 1 if a rerun differs, else 0."""
    subject = find_subject(request.what, runs / run if run else runs, bool(run))
    if request.rerun:
        if not isinstance(subject, RecordedEpisode):
            raise UsageError(f"--rerun takes an episode; {request.what!r} is none.")
        from selfplay.commands.rerun import rerun

        return rerun(subject, output_console(), as_json=as_json)
    if as_json or not has_screen(request.plain):
        _print(subject, as_json)
    else:
        _show(subject, request)
    return 0


def _print(subject: Subject, as_json: bool) -> None:
    console = output_console()
    if isinstance(subject, RecordedEpisode):
        if as_json:
            print(json.dumps(subject.to_json()))
        else:
            replay(subject, console, plain=True)
        return
    database = subject.database
    with closing(Store.open(database, writer=False)) as store:
        if isinstance(subject, FoundBug):
            show_bug(store, subject.bug_id, console, as_json=as_json)
        else:
            show_episodes(store, EpisodeFilter(), console, as_json=as_json)


def _show(subject: Subject, request: ReplayRequest) -> None:
    from selfplay.viewing.screens.base import view

    view(_first_screen(subject, request))


def _first_screen(subject: Subject, request: ReplayRequest) -> Callable[[], Screen[None]]:
    """What makes the screen, in the app."""
    from selfplay.viewing.screens.bug_screen import BugScreen
    from selfplay.viewing.screens.episode_screen import EpisodeScreen, Watching
    from selfplay.viewing.screens.list_screen import EpisodesScreen

    if isinstance(subject, FoundBug):
        return lambda: BugScreen(subject.database, [subject.bug_id], subject.bug_id)
    if isinstance(subject, RunFolder):
        return lambda: EpisodesScreen.of_run(subject.path)
    is_played = request.play or request.step or request.speed is not None
    watching = Watching(request.speed or 1.0, request.step) if is_played else None
    paths = sorted(subject.path.parent.glob(f"*{SUFFIX}"), key=_in_order)
    return lambda: EpisodeScreen(paths, subject.path, watching)


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Names by their numbers: m10 after m9."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", path.name)]
