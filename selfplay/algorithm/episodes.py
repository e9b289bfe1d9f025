"""Which finished episodes are trained on. Pure.

An episode policy is a function from a finish reason to "train", "penalise" or "mask"; `trainer.episodes`
names it. penalise: the reward is -1, whatever the verdict or grade. mask: no token is trained on, and the
reward stays in the group's mean ("compact filtering", GRPO++). Episodes that the machine spoiled are always
masked, with their reward, before this is asked.
"""

from __future__ import annotations

from typing import Literal, get_args

from selfplay import parts
from selfplay.errors import PartError

SETTING = "trainer.episodes"
PENALTY = -1.0
Treatment = Literal["train", "penalise", "mask"]


def treatment(name: str, finish: str) -> Treatment:
    """What the policy `name` says of an episode that ended with `finish`.

    Raises PartError for any other word.
    """
    found: Treatment = parts.call(SETTING, name, finish)
    if found not in get_args(Treatment):
        raise PartError(
            f"{SETTING} = {name!r} returned {found!r} for {finish!r}; known: {', '.join(get_args(Treatment))}"
        )
    return found


def train_all(finish: str) -> Treatment:
    """Every episode counts as it is."""
    return "train"


def compact(finish: str) -> Treatment:
    """Episodes that ran into a limit are masked: they say little of what their tokens were worth."""
    return "mask" if finish in ("max_turns", "max_tokens", "command_timeouts") else "train"


def penalise_stuck(finish: str) -> Treatment:
    """Episodes that repeated themselves or wrote no readable call earn -1: masking would leave that
    unpunished.
    """
    return "penalise" if finish in ("stuck", "bad_format") else "train"
