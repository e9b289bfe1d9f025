"""Replays one recorded episode in the terminal: the policy's turns, the observations, the verdict and reward.

`episode_search` finds the episode, `outcome` makes the parts that follow its submission.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console

from selfplay.agent.episode import Episode, Turn
from selfplay.viewing.episode_record import RecordedEpisode
from selfplay.viewing.frames import Frames, harmless
from selfplay.viewing.outcome import decided, show_outcome
from selfplay.viewing.progress import duration_text

MAX_PAUSE_S = 5.0  # of a replay with `speed`


def replay(
    found: RecordedEpisode,
    console: Console,
    step: bool = False,
    speed: float | None = None,
    plain: bool = False,
    wait: Callable[[], str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show the episode from its prompt to its submission, then what was decided about it.

    What the policy did not know, as the bug of a solver, comes last.

    step    wait for Enter after each turn (q ends). Ignored if the input is not a terminal.
    speed   pause before each turn and observation: its recorded seconds / speed, at most MAX_PAUSE_S
    plain   headings instead of frames and colours. Always so if the output is not a terminal.
    wait    asks the person for a line, instead of `input`
    sleep   pauses for some seconds, instead of `time.sleep`
    """
    frames = Frames(console, plain or not console.is_terminal)
    asks = wait or (_ask if sys.stdin.isatty() else None)
    episode = found.episode
    frames.show_facts(_header(found))
    for message in episode.messages[: _prompt_length(episode)]:
        frames.show(message.get("role", ""), [harmless(message.get("content", ""))], "blue")
    for number, turn in enumerate(episode.turns, 1):
        if speed:
            sleep(min(turn.generate_s / speed, MAX_PAUSE_S))
        frames.show(_turn_title(number, len(episode.turns), turn), [harmless(turn.text)], "cyan")
        if speed:
            sleep(min(turn.act_s / speed, MAX_PAUSE_S))
        if turn.observation:
            failed = turn.is_error or bool(turn.exit_code)
            colour = "red" if failed else "green"
            frames.show(_observation_title(turn), [harmless(turn.observation)], colour)
        if step and asks is not None and asks().strip().lower() == "q":
            return
    show_outcome(found, frames)


def _prompt_length(episode: Episode) -> int:
    """How many messages precede the policy's first action."""
    roles = [message.get("role") for message in episode.messages]
    return roles.index("assistant") if "assistant" in roles else min(2, len(roles))


def _turn_title(number: int, count: int, turn: Turn) -> str:
    tokens = turn.tokens[1] - turn.tokens[0]
    rejected = f" · after {turn.rejected} rejected sample(s)" if turn.rejected else ""
    return (
        f"turn {number} of {count} · {turn.tool or 'no tool call'} · "
        f"{tokens} tokens in {turn.generate_s:.1f} s{rejected}"
    )


def _observation_title(turn: Turn) -> str:
    status = (
        f" · exit {turn.exit_code}" if turn.exit_code is not None else " · refused" if turn.is_error else ""
    )
    return f"observation{status} · {turn.act_s:.1f} s"


def _header(found: RecordedEpisode) -> list[tuple[str, str]]:
    episode = found.episode
    started = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(episode.started_at)) if episode.started_at else ""
    )
    where = f"{episode.repository}, update {episode.update}, member {episode.member}"
    if found.result is not None:  # its file says update 0, whichever weights were evaluated
        where = f"{episode.repository}, attempt {episode.member} of evaluation {found.path.parents[1].name}"
    return [
        ("episode", episode.episode_id),
        ("role", f"{episode.role} in {where}"),
        ("task", " · ".join(part for part in (episode.strategy, episode.bug_id, episode.target) if part)),
        ("played", f"{started} in {duration_text(episode.duration_s)}, {len(episode.turns)} turns"),
        ("tokens", f"{episode.action_tokens} of {len(episode.token_ids)} are the policy's"),
        ("ended", episode.finish.value + (f": {episode.error}" if episode.error else "")),
        *decided(found),
    ]


def _ask() -> str:
    try:
        return input("Enter: go on, q: end ")
    except EOFError:
        return "q"
