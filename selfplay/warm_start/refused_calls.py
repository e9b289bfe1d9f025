"""Calls that a tool refuses, with the tool's answer: what a policy reads after a mistake.

Invariant: no such call counts in training, and each answer is the text that the tool itself gives.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.agent.editing import EditError, apply_edit
from selfplay.agent.tool_format import BadFormat
from selfplay.agent.tools import Toolbox, no_such_file
from selfplay.teacher.mutations import Mutation
from selfplay.teacher.phrases import LineEdit

if TYPE_CHECKING:
    from selfplay.warm_start.transcripts import Transcript

WRONG_PATH = 0.35  # share of calls that name another file, or one that is not there
NO_CHANGE = 0.25  # share of calls whose replacement is the text itself
MISQUOTED = 0.15  # share of calls with a wrong word or a wrong indentation; the others name a wrong line
TEXT_OF_THE_LINE = 0.3  # share of calls that quote the line they mean, not the one they name
OTHER_FILE = 0.6  # share of wrong paths that name another file, where one was shown
REPEATED = 0.4  # share of refused calls that are made twice: a policy copies what it wrote last
BROKEN_OFF = 0.3  # share of calls that end early or go on in a loop


@dataclass(frozen=True)
class PossibleEdits:
    """Edits of the file at `path`. `shown` gives the line of an edit as it was shown.

    texts      the files that calls may name, by path
    mutations  what the calls mean to do, but for their fault
    unmeant    edits of lines that what follows does not edit. Calls without a change quote these lines:
               whoever finds nothing to change in a line must go on to another one
    """

    path: str
    texts: Mapping[str, str]
    mutations: Sequence[Mutation]
    unmeant: Sequence[Mutation]
    shown: Callable[[Mutation], str]


def add_refused_calls(transcript: Transcript, edits: PossibleEdits, generator: random.Random) -> None:
    """Add one or two edit calls that name a wrong file or line, change nothing or break off.

    Those that the tool would accept are left out.
    """
    for _ in range(generator.choice([1, 1, 2])):
        reply = _wrong_reply(edits, transcript, generator)
        answer = _refusal(edits, reply, transcript.chat.tools)
        if answer is None:
            continue
        for _ in range(2 if generator.random() < REPEATED else 1):
            transcript.act(reply, counts=False)
            transcript.observe(*answer)


def _refusal(edits: PossibleEdits, reply: str, tools: Toolbox) -> tuple[str, int] | None:
    """(the tool's answer, its exit code); None if the tool would accept the call."""
    try:
        action = tools.parse(reply)
    except BadFormat as fault:
        return str(fault), 2
    if action.path not in edits.texts:
        return no_such_file(action.path, edits.texts), 1
    try:
        apply_edit(edits.texts[action.path], action.search, action.replace, action.line)
    except EditError as fault:
        return f"{action.path} is unchanged. {fault}", 1
    return None


def _wrong_reply(edits: PossibleEdits, transcript: Transcript, generator: random.Random) -> str:
    meant, other = generator.choice(edits.mutations), generator.choice(edits.mutations)
    kind = generator.random()
    is_without_change = WRONG_PATH <= kind < WRONG_PATH + NO_CHANGE and bool(edits.unmeant)
    if is_without_change:
        meant = generator.choice(edits.unmeant)
    path, line, replace, shown = edits.path, meant.line, meant.replace, edits.shown(meant)
    search = meant.search
    if kind < WRONG_PATH:
        others = sorted(edits.texts.keys() - {path})
        is_other = bool(others) and generator.random() < OTHER_FILE
        path = generator.choice(others) if is_other else _misspelt(path, generator)
    elif is_without_change:
        replace = search
    elif kind < WRONG_PATH + NO_CHANGE + MISQUOTED:
        search, shown = _misquoted(search, generator), _misquoted(shown, generator)
    else:
        line = other.line if other.line != line else max(1, line + generator.choice([-3, -2, -1, 1, 2, 3]))
        if generator.random() >= TEXT_OF_THE_LINE:
            shown = re.sub(r"^\d+", str(line), shown)
    edit = LineEdit(shown, path, line, search, replace)
    reply = edit.reply(transcript.chat.tools, transcript.limits.whole_lines)
    if generator.random() < BROKEN_OFF:
        end = generator.randint(4, len(reply) - 8)
        reply = reply[:end] + generator.choice(["", search * generator.randint(1, 9), "\n"])
    return reply


def _misquoted(shown: str, generator: random.Random) -> str:
    """The text with one word changed for another one, or indented by one level more."""
    number, text = re.fullmatch(r"(\d+[:-])?(.*)", shown, re.DOTALL).groups("")  # type: ignore[union-attr]
    words = list(re.finditer(r"[A-Za-z_]\w*", text))
    if len(words) < 2 or generator.random() < 0.5:
        return f"{number}    {text}"
    wrong, right = generator.sample(words, 2)
    return f"{number}{text[: wrong.start()]}{right[0]}{text[wrong.end() :]}"


def _misspelt(path: str, generator: random.Random) -> str:
    """The path with one letter left out or doubled."""
    at = generator.choice([place for place, character in enumerate(path) if character.isalpha()])
    return path[:at] + path[at] * generator.choice([0, 2]) + path[at + 1 :]
