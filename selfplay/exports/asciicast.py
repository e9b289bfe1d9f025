"""Episodes as terminal recordings (asciicast v2): `selfplay replay`, with the times of the episode.

Invariant: what a policy wrote cannot control the terminal that plays it; `replay` shows it as visible text.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from selfplay.exports.base import RunExport
from selfplay.viewing.episode_record import RecordedEpisode
from selfplay.viewing.episode_search import find_episode
from selfplay.viewing.frames import Frames
from selfplay.viewing.replay import episode_sections

WIDTH, HEIGHT = 100, 32


def write_asciicast(run: RunExport, path: Path) -> int:
    """A folder with one `.cast` file for each episode of both roles."""
    path.mkdir()
    count = 0
    for played in run.episodes():
        found = find_episode(run.folder.path, str(run.folder.path / played.row.path))
        (path / f"{played.row.episode_id}.cast").write_text(asciicast(found), encoding="utf-8")
        count += 1
    return count


def asciicast(found: RecordedEpisode) -> str:
    """The recording: a line with its header, then one for each piece of output with its second."""
    recorder = _Recorder()
    console = Console(
        file=recorder,
        width=WIDTH,
        height=HEIGHT,
        force_terminal=True,
        color_system="standard",
        legacy_windows=False,
        _environ={},
    )
    frames = Frames(console, plain=False)
    for section in episode_sections(found, frames):
        recorder.pass_time(section.pause_s)
        frames.print(section)
    recorder.end()
    header = {
        "version": 2,
        "width": WIDTH,
        "height": HEIGHT,
        "timestamp": int(found.episode.started_at),
        "title": found.episode.episode_id,
    }
    lines = [header, *([round(at, 3), "o", text] for at, text in recorder.events)]
    return "".join(json.dumps(line) + "\n" for line in lines)


class _Recorder(io.StringIO):
    """Collects what is written until time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[float, str]] = []
        self._now = 0.0

    def pass_time(self, seconds: float) -> None:
        self.end()
        self._now += seconds

    def end(self) -> None:
        if text := self.getvalue():
            # A terminal that plays it back has no driver that adds carriage returns.
            self.events.append((self._now, text.replace("\n", "\r\n")))
        self.seek(0)
        self.truncate()
