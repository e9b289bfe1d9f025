"""One recorded episode as sections: the prompt, the policy's turns with their observations, the outcome.

`replay` prints them; `screens.replay_app` shows them on a full screen. `episode_search` finds the episode,
`outcome` makes the sections that follow its submission.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.text import Text

from selfplay.agent.episode import Episode, Turn
from selfplay.viewing.episode_record import RecordedEpisode
from selfplay.viewing.folding import folded_edit
from selfplay.viewing.frames import Frames, harmless, highlighted
from selfplay.viewing.outcome import decided, outcome_sections, reward_inputs
from selfplay.viewing.progress import duration_text
from selfplay.viewing.sections import Section
from selfplay.viewing.turns import action_of, budget_text, turn_details


def replay(found: RecordedEpisode, console: Console, plain: bool = False) -> None:
    """Print the episode from its prompt to its submission, then what was decided about it.

    What the policy did not know, as the bug of a solver, comes last.

    plain: headings instead of frames and colours. Always so if the output is not a terminal.
    """
    frames = Frames(console, plain or not console.is_terminal)
    for section in episode_sections(found, frames):
        frames.print(section)


def episode_sections(found: RecordedEpisode, frames: Frames, details: bool = False) -> Iterator[Section]:
    """details: a line of figures below the title of each turn."""
    episode = found.episode
    yield Section("", (frames.facts(_header(found)),), name="the beginning")
    for message in episode.messages[: _prompt_length(episode)]:
        role = message.get("role", "")
        yield Section(role, (frames.text(message.get("content", "")),), "blue", f"prompt: {role}")
    for number, turn in enumerate(episode.turns, 1):
        title = _turn_title(number, len(episode.turns), turn)
        parts = _action_parts(turn, frames)
        if details:
            parts = [Text(turn_details(found, number - 1), "dim"), *parts]
        name = f"turn {number}: {turn.tool or 'no tool call'}" + (" · refused" if turn.is_error else "")
        yield Section(title, tuple(parts), "cyan", name, pause_s=turn.generate_s, is_turn=True)
        if turn.observation:
            colour = "red" if turn.is_error or turn.exit_code else "green"
            observed = (frames.text(turn.observation),)
            yield Section(_observation_title(turn), observed, colour, pause_s=turn.act_s)
    yield from outcome_sections(found, frames)


def _action_parts(turn: Turn, frames: Frames) -> list[RenderableType]:
    """The policy's text as it is where the output is plain; else its reasoning, then its call in colours."""
    if frames.plain:
        return [harmless(turn.text)]
    action = action_of(turn)
    parts: list[RenderableType] = []
    if action.reasoning:
        parts.append(frames.text(action.reasoning, "italic bright_black"))
    if action.opening:
        parts.append(frames.text(action.opening, "bold magenta"))
        if action.body:
            is_shell = turn.tool == "bash"
            parts.append(highlighted(action.body, "bash") if is_shell else folded_edit(action.body))
    if action.closing:
        parts.append(frames.text(action.closing, "bold magenta"))
    return parts


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
    return f"observation{status} · {turn.act_s:.1f} s{budget_text(turn)}"


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
        ("reward from", reward_inputs(found)),
    ]
