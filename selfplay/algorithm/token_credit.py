"""Which tokens of an episode its advantage counts for, and the per-call reward. Pure.

`tools`: those that the episode was played with; they say which calls change files.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from selfplay.agent.episode import Episode, Turn
from selfplay.agent.tool_format import BadFormat
from selfplay.agent.tools import STANDARD, Toolbox
from selfplay.errors import SelfplayError
from selfplay.settings.learning import TrainerSettings
from selfplay.source.diffs import diff_bytes, parse_patch

Decode = Callable[[Sequence[int]], str]


def token_advantages(
    episode: Episode,
    advantage: float,
    settings: TrainerSettings,
    expected: float,
    decode: Decode,
    tools: Toolbox = STANDARD,
) -> list[float]:
    """The advantage of each token, (tokens,); 0 where nothing is trained on.

    advantage  the episode's. It counts for every action token, multiplied by `negative_weight` if it is
               negative. With credit "kept_edits" a positive one skips calls that failed, and edits that the
               submission does not hold: what was undone did not earn it.
    expected   with `call_reward_weight`: the mean per-call reward of the group. A call that should change a
               file, and a reply without a call, adds weight · (1 if it changed something new, else 0, minus
               `expected`). The tokens of `deciding_tokens` are left out: with them this term taught the
               policy to stop editing (docs/log.md).
    decode     token ids -> text
    """
    advantage *= settings.negative_weight if advantage < 0 else 1.0
    values = [advantage * is_action for is_action in episode.loss_mask]
    if settings.credit == "kept_edits" and advantage > 0:
        added = _added_lines(episode)
        for turn in episode.turns:
            if turn.is_error or not _is_kept(turn, added, tools):
                values[slice(*turn.tokens)] = [0.0] * (turn.tokens[1] - turn.tokens[0])
    if settings.call_reward_weight:
        in_vain = turns_in_vain(episode, tools)
        for number in changing_turns(episode, tools):
            extra = settings.call_reward_weight * ((number not in in_vain) - expected)
            extra *= settings.negative_weight if extra < 0 else 1.0
            first, end = episode.turns[number].tokens
            deciding = deciding_tokens(episode.token_ids[first:end], decode, tools)
            for index in range(first, end):
                if index - first not in deciding:
                    values[index] += extra
    return values


def changing_turns(episode: Episode, tools: Toolbox = STANDARD) -> list[int]:
    """Numbers of the turns that called a tool that changes files, or called nothing: most of those tried
    to.
    """
    return [
        number for number, turn in enumerate(episode.turns) if tools.changes_files(turn.tool) or not turn.tool
    ]


def success_of_calls(episodes: Sequence[Episode], tools: Toolbox = STANDARD) -> float:
    """Share of the `changing_turns` that changed something new; 0 if there are none."""
    tried = done = 0
    for episode in episodes:
        numbers, in_vain = changing_turns(episode, tools), turns_in_vain(episode, tools)
        tried += len(numbers)
        done += len(numbers) - len(in_vain.intersection(numbers))
    return done / tried if tried else 0.0


def deciding_tokens(ids: Sequence[int], decode: Decode, tools: Toolbox = STANDARD) -> set[int]:
    """Indices of the tokens of one turn that do not decide whether its call can be carried out.

    These are the choice of the tool (the first token, and those that name the tool), and what an edit writes.
    """
    spans = tools.deciding(decode(ids))

    def token_of(position: int) -> int:
        """Index of the token that holds the character at `position`."""
        return bisect_left(range(len(ids) + 1), position + 1, key=lambda count: len(decode(ids[:count]))) - 1

    found = {0}
    for first, end in spans:
        found.update(range(token_of(first), min(token_of(end - 1) + 1, len(ids))))
    return found


def turns_in_vain(episode: Episode, tools: Toolbox = STANDARD) -> set[int]:
    """Numbers of the turns whose call failed, was unreadable, or repeats an earlier change."""
    found: set[int] = set()
    made: set[str] = set()
    for number, turn in enumerate(episode.turns):
        changes = tools.changes_files(turn.tool) and not turn.is_error
        call = tools.parse(turn.text).body if changes else ""
        if turn.is_error or (changes and call in made):
            found.add(number)
        made.add(call)
    return found


def _added_lines(episode: Episode) -> dict[str, list[str]] | None:
    """Lines that the submission adds, by file; None if it cannot be read as a diff."""
    text = episode.submission.get("patch") or episode.submission.get("bug_inject.diff") or ""
    try:
        files = parse_patch(text, len(diff_bytes(text))).files
    except SelfplayError:
        return None
    return {
        file.path: [line[1:] for hunk in file.hunks for line in hunk.lines if line.startswith("+")]
        for file in files
    }


def _is_kept(turn: Turn, added: dict[str, list[str]] | None, tools: Toolbox) -> bool:
    """True if the submission holds every line that an edit wrote. Other calls are always kept."""
    if turn.tool != "edit" or added is None:
        return True
    try:
        action = tools.parse(turn.text)
    except BadFormat:
        return True
    lines = added.get(action.path.removeprefix("/testbed/").removeprefix("./"), [])
    return bool(lines) and any(
        all(any(_holds(line, part) for line in lines) for part in replacement.split("\n"))
        for _, replacement in action.readings
    )


def _holds(line: str, part: str) -> bool:
    """Whether an added line holds a line that an edit wrote.

    A line that is not UTF-8 has bytes in the diff and characters in the edit, so their ASCII is compared.
    """
    if any("\udc80" <= character <= "\udcff" for character in line):
        line, part = (text.encode("ascii", "ignore").decode() for text in (line, part))
    return part in line
