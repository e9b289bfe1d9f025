"""Calls that a tool refuses, with the tool's answer: what a policy reads after a mistake.

Invariant: no such call counts in training, and each answer is the text that the tool itself gives.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.agent.editing import EditError, apply_edit
from selfplay.agent.tool_format import BadFormat
from selfplay.teacher.mutations import Mutation
from selfplay.teacher.phrases import LineEdit

if TYPE_CHECKING:
    from selfplay.warm_start.transcripts import Transcript

TEXT_OF_THE_LINE = 0.3  # share of calls that quote the line they mean, not the one they name
BROKEN_OFF = 0.3  # share of calls that end early or go on in a loop


@dataclass(frozen=True)
class PossibleEdits:
    """Edits of one file. `text` is the file; `shown` gives the line of an edit as it was shown."""

    path: str
    text: str
    mutations: Sequence[Mutation]
    shown: Callable[[Mutation], str]


def add_refused_calls(transcript: Transcript, edits: PossibleEdits, generator: random.Random) -> None:
    """Add one or two edit calls that name a wrong line or break off, unless the tool accepts them."""
    for _ in range(generator.choice([1, 1, 2])):
        reply = _wrong_reply(edits, transcript, generator)
        try:
            action = transcript.chat.tools.parse(reply)
            apply_edit(edits.text, action.search, action.replace, action.line)
        except BadFormat as fault:
            transcript.act(reply, counts=False)
            transcript.observe(str(fault), 2)
        except EditError as fault:
            transcript.act(reply, counts=False)
            transcript.observe(f"{edits.path} is unchanged. {fault}", 1)


def _wrong_reply(edits: PossibleEdits, transcript: Transcript, generator: random.Random) -> str:
    meant, other = generator.choice(edits.mutations), generator.choice(edits.mutations)
    wrong_line = other.line
    if other.line == meant.line:
        wrong_line = max(1, meant.line + generator.choice([-3, -2, -1, 1, 2, 3]))
    shown = edits.shown(meant)
    if generator.random() >= TEXT_OF_THE_LINE:
        shown = re.sub(r"^\d+", str(wrong_line), shown)
    edit = LineEdit(shown, edits.path, wrong_line, meant.search, meant.replace)
    reply = edit.reply(transcript.chat.tools, transcript.limits.whole_lines)
    if generator.random() < BROKEN_OFF:
        end = generator.randint(4, len(reply) - 8)
        reply = reply[:end] + generator.choice(["", meant.search * generator.randint(1, 9), "\n"])
    return reply
