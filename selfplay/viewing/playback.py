"""How far a play-back of an episode is, and when its next section follows. Pure: a screen has the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.viewing.sections import Section

MAX_PAUSE_S = 5.0
SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)


@dataclass
class Playback:
    """One player for both ways to watch: at a speed, and step by step (it is paused then).

    sections   of the whole episode
    speed      how many times as fast as it happened
    shown      how many sections are shown
    """

    sections: Sequence[Section]
    speed: float = 1.0
    is_paused: bool = False
    shown: int = 0

    def __post_init__(self) -> None:
        """What precedes the first turn is shown at once."""
        first = next((number for number, part in enumerate(self.sections) if part.is_turn), None)
        self.shown = len(self.sections) if first is None else max(first, 1)

    @property
    def is_done(self) -> bool:
        return self.shown >= len(self.sections)

    def delay_s(self) -> float | None:
        """Seconds until the next section: what it took, divided by the speed, at most MAX_PAUSE_S.

        None if nothing follows by itself.
        """
        if self.is_paused or self.is_done:
            return None
        return min(self.sections[self.shown].pause_s / self.speed, MAX_PAUSE_S)

    def advance(self) -> None:
        self.shown = min(self.shown + 1, len(self.sections))

    def step(self) -> None:
        """Show the rest of this turn, up to the action of the next one. After the last turn: all that is
        left.
        """
        self.advance()
        while not self.is_done and not self.sections[self.shown].is_turn and self._turn_follows():
            self.advance()
        if not self._turn_follows():
            self.shown = len(self.sections)

    def toggle(self) -> None:
        self.is_paused = not self.is_paused

    def change_speed(self, by: int) -> None:
        """The next faster (by 1) or slower (by -1) of SPEEDS."""
        near = min(range(len(SPEEDS)), key=lambda at: abs(SPEEDS[at] - self.speed))
        self.speed = SPEEDS[max(0, min(near + by, len(SPEEDS) - 1))]

    def _turn_follows(self) -> bool:
        return any(part.is_turn for part in self.sections[self.shown :])

    def __str__(self) -> str:
        state = "the end" if self.is_done else "paused" if self.is_paused else f"{self.speed:g} times as fast"
        return f"{state}, part {self.shown} of {len(self.sections)}"
