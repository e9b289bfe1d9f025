"""One episode as a part of the page: the prompt, the turns, the submission, all text shown as it is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from selfplay.agent.episode import Episode
from selfplay.viewing.report.html import cut, tag

if TYPE_CHECKING:
    from selfplay.viewing.report.picks import Pick

MOST_CHARACTERS = 6000  # of one text
MOST_TURNS = 40


def transcript(run: Path, anchor: str, title: str, pick: Pick, command: str) -> Markup:
    """A folded section with the episode. anchor: its name in the page. command: shows the episode in full."""
    row = pick.row
    try:
        episode = Episode.read(run / row.path)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        body: Iterable[Markup] = [tag("p", f"Its file cannot be read: {error}")]
    else:
        body = _body(episode, f"see: {command}")
    head = tag("summary", tag("b", title), f" {row.role}, update {row.update}: {pick.result}, {pick.why}")
    return tag("details", head, tag("div", tag("p", tag("code", command)), body, id=anchor, class_="episode"))


def _body(episode: Episode, more: str) -> Iterable[Markup]:
    facts = [episode.repository, episode.strategy, episode.bug_id, episode.target, episode.finish.value]
    yield tag("p", " · ".join(fact for fact in facts if fact))
    roles = [message.get("role") for message in episode.messages]
    prompt = roles.index("assistant") if "assistant" in roles else min(2, len(roles))
    for message in episode.messages[:prompt]:
        yield _text(message.get("role", ""), message.get("content", ""), more, "prompt")
    shown = episode.turns[:MOST_TURNS]
    for number, turn in enumerate(shown, 1):
        name = f"turn {number} of {len(episode.turns)}: {turn.tool or 'no tool call'}"
        yield _text(name, turn.text, more, "action")
        if turn.observation:
            status = f", exit {turn.exit_code}" if turn.exit_code is not None else ""
            yield _text(f"observation{status}", turn.observation, more, "observation")
    if left := len(episode.turns) - len(shown):
        yield tag("p", f"{left} more turns; {more}")
    for name, text in episode.submission.items():
        yield _text(f"submitted {name}", text, more, "action")


def _text(name: str, text: str, more: str, kind: str) -> Markup:
    return tag("h4", name, class_=kind) + tag("pre", cut(text.strip("\n"), MOST_CHARACTERS, more))
