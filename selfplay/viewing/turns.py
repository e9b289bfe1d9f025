"""What there is to say of one turn: its reasoning and call, what was left of the budget, its tokens. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from selfplay.agent.episode import Episode, Turn
from selfplay.agent.tool_format import CLOSING, LOOSE_OPENING, OPENING
from selfplay.viewing.episode_record import RecordedEpisode

# How `render_observation` ends an observation.
BUDGET = re.compile(r"\[exit -?\d+; (\d+) turns, (\d+) tokens left\]\s*$")


@dataclass(frozen=True)
class ActionText:
    """The policy's text in its parts. Another format than the standard one is all `reasoning`."""

    reasoning: str
    opening: str = ""
    body: str = ""
    closing: str = ""


def action_of(turn: Turn) -> ActionText:
    """The reasoning before the last opening tag, the call's tags and body."""
    openings = list(OPENING.finditer(turn.text)) or list(LOOSE_OPENING.finditer(turn.text))
    if not turn.tool or not openings:
        return ActionText(turn.text)
    opening = openings[-1]
    rest = turn.text[opening.end() :]
    closing = CLOSING.search(rest)
    end = closing.start() if closing else len(rest)
    return ActionText(
        turn.text[: opening.start()].strip("\n"),
        opening[0].strip("\n"),
        rest[:end].strip("\n"),
        rest[end:].strip("\n"),
    )


def budget(turn: Turn) -> tuple[int, int] | None:
    """(turns, tokens) that were left after this turn; None if the observation does not say."""
    found = BUDGET.search(turn.observation)
    return (int(found[1]), int(found[2])) if found else None


def budget_text(turn: Turn) -> str:
    left = budget(turn)
    return f" · left: {left[0]} turns, {left[1]:,} tokens" if left else ""


def turn_details(found: RecordedEpisode, index: int) -> str:
    """The figures of turn `index` (from 0) on one line."""
    episode, turn = found.episode, found.episode.turns[index]
    first, end = turn.tokens
    logprobs = [
        value
        for value, is_action in zip(episode.logprobs[first:end], episode.loss_mask[first:end], strict=True)
        if is_action
    ]
    parts = [
        f"tokens {first}–{max(first, end - 1)}",
        f"mean log-probability {sum(logprobs) / len(logprobs):.3f}" if logprobs else "",
        f"weights {', '.join(map(str, weight_versions(episode, first, end)))}",
        f"sampled in {turn.generate_s:.2f} s, the tool ran {turn.act_s:.2f} s",
        f"{turn.rejected} rejected sample(s)" if turn.rejected else "",
    ]
    return " · ".join(part for part in parts if part)


def weight_versions(episode: Episode, first: int, end: int) -> list[int]:
    """The versions of the weights that sampled tokens `first` to `end`, in their order."""
    spans = [*episode.weight_versions, (len(episode.token_ids), -1)]
    return [version for (start, version), (stop, _) in pairwise(spans) if start < end and stop > first]


def version_at(episode: Episode, index: int) -> int | None:
    """The version of the weights that sampled token `index`; None for a token that was not sampled."""
    if not episode.loss_mask[index]:
        return None
    earlier = [version for start, version in episode.weight_versions if start <= index]
    return earlier[-1] if earlier else None
