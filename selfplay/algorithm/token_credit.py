"""Which tokens of an episode its advantage counts for. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from selfplay.agent.episode import Episode, Turn
from selfplay.agent.tools import CHANGING, MARKS, OPENING, BadFormat, parse_action
from selfplay.config import TrainerSettings
from selfplay.errors import SelfplayError
from selfplay.source.diffs import parse_patch

Decode = Callable[[Sequence[int]], str]


def token_advantages(
    episode: Episode, advantage: float, settings: TrainerSettings, expected: float, decode: Decode
) -> list[float]:
    """Each token's advantage; (tokens,), 0 where nothing is learned.

    advantage: the episode's, from its group's rewards. It counts for all actions, a negative one `negative_weight` times. With credit
    "kept_edits" a positive one leaves out calls that failed and edits of which the submission holds nothing: what was taken back did not earn it.

    `call_reward_weight` adds to each call that was to change a file (or was none): 1 if it changed something new, else 0, less `expected`, what
    its group's calls came to in the mean; `negative_weight` counts here too. Not to `deciding_tokens`: with them it teaches to change
    nothing where changing is hard (docs/log.md). decode: the text of a turn's tokens.
    """
    advantage *= settings.negative_weight if advantage < 0 else 1.0
    values = [advantage * is_action for is_action in episode.loss_mask]
    if settings.credit == "kept_edits" and advantage > 0:
        added = _added_lines(episode)
        for turn in episode.turns:
            if turn.is_error or not _is_kept(turn, added):
                values[slice(*turn.tokens)] = [0.0] * (turn.tokens[1] - turn.tokens[0])
    if settings.call_reward_weight:
        in_vain = turns_in_vain(episode)
        for number in changing_turns(episode):
            extra = settings.call_reward_weight * ((number not in in_vain) - expected)
            extra *= settings.negative_weight if extra < 0 else 1.0
            first, end = episode.turns[number].tokens
            deciding = deciding_tokens(episode.token_ids[first:end], decode)
            for place in range(first, end):
                if place - first not in deciding:
                    values[place] += extra
    return values


def changing_turns(episode: Episode) -> list[int]:
    """The numbers of turns whose call was to change a file, or that held none: a failed attempt at one, as often as not."""
    return [number for number, turn in enumerate(episode.turns) if turn.tool in CHANGING or not turn.tool]


def success_of_calls(episodes: Sequence[Episode]) -> float:
    """Which share of the calls that were to change a file changed something new; 0 where there was none."""
    tried = done = 0
    for episode in episodes:
        numbers, in_vain = changing_turns(episode), turns_in_vain(episode)
        tried += len(numbers)
        done += len(numbers) - len(in_vain.intersection(numbers))
    return done / tried if tried else 0.0


def deciding_tokens(ids: Sequence[int], decode: Decode) -> set[int]:
    """The places in a turn's tokens that decide other things than whether its call can be done: which tool it is (the first, and those of
    the line that names the tool) and what an edit writes (those after the mark between its old and its new text)."""
    text = decode(ids)
    found = OPENING.search(text)
    if found is None:
        return {0}

    def token_of(position: int) -> int:
        """The place of the token that spells a character."""
        return bisect_left(range(len(ids) + 1), position + 1, key=lambda count: len(decode(ids[:count]))) - 1

    named = range(token_of(found.start()), token_of(found.end() - 1) + 1)
    mark = text.find(f"\n{MARKS[1]}\n", found.end())
    written = range(token_of(mark + len(MARKS[1]) + 1), len(ids)) if mark >= 0 else range(0)
    return {0, *named, *written}


def turns_in_vain(episode: Episode) -> set[int]:
    """The numbers of turns whose call failed, was none, or repeats a change that was made before."""
    found: set[int] = set()
    made: set[str] = set()
    for number, turn in enumerate(episode.turns):
        changes = turn.tool in CHANGING and not turn.is_error
        call = parse_action(turn.text).body if changes else ""
        if turn.is_error or (changes and call in made):
            found.add(number)
        made.add(call)
    return found


def _added_lines(episode: Episode) -> dict[str, list[str]] | None:
    """By file; None where the submission cannot be read as a diff."""
    text = episode.submission.get("patch") or episode.submission.get("bug_inject.diff") or ""
    try:
        files = parse_patch(text, len(text.encode()) + 1).files
    except SelfplayError:
        return None
    return {
        file.path: [line[1:] for hunk in file.hunks for line in hunk.lines if line.startswith("+")]
        for file in files
    }


def _is_kept(turn: Turn, added: dict[str, list[str]] | None) -> bool:
    if turn.tool != "edit" or added is None:
        return True
    try:
        action = parse_action(turn.text)
    except BadFormat:
        return True
    lines = added.get(action.path.removeprefix("/testbed/").removeprefix("./"), [])
    return bool(lines) and all(any(part in line for line in lines) for part in action.replace.split("\n"))
