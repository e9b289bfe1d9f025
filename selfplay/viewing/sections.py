"""What a viewer shows, as a list of sections: printed below each other, or as a page of a full screen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import RenderableType


@dataclass(frozen=True)
class Section:
    """A title with what stands below it. Without a title the parts stand alone.

    title    may be text of the policy: who shows it makes it harmless
    name     what the list of jumps calls it; "": it is not in the list
    opens    the id of the episode or bug that it is about, which a full screen can open; "" for none
    pause_s  seconds that it took in the episode, for a play-back
    is_turn  True for the action of the policy that begins a turn
    """

    title: str
    parts: tuple[RenderableType, ...]
    colour: str = "blue"
    name: str = ""
    opens: str = ""
    pause_s: float = 0.0
    is_turn: bool = False


def section(title: str, parts: Iterable[RenderableType], colour: str, name: str | None = None) -> Section:
    """A section that the list of jumps calls by its title."""
    return Section(title, tuple(parts), colour, title if name is None else name)
