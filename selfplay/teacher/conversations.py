"""Takes a prompt apart, as the scripted player reads it: the task, its replies, their observations.

Does not decide on a reply.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from selfplay.agent.chat import ChatFormat

OPENING = re.compile(r"<\|im_start\|>(system|user|assistant)\n")
BUDGET = re.compile(r"\n?\[exit (-?\d+); \d+ turns, \d+ tokens left\]\s*$")
PY_PATH = re.compile(r"[\w./+-]+\.py\b")
# A suspect, as the terse solver prompt lists it.
SUSPECT = re.compile(r"^grep -n '' (\S+\.py) \| sed -n '(\d+),(\d+)p' # \S+$", re.MULTILINE)
# A call that shows lines of a file.
SHOWN = re.compile(r"grep -n '' (\S+) \| sed -n '(\d+),(\d+)p'")
# The output of a test run in which tests fail.
STILL_FAILING = re.compile(r"^\d+ (failed|error)", re.MULTILINE)


class Turn(Protocol):
    """A request for one reply, as the scripted engine makes it."""

    @property
    def tag(self) -> str:
        """Names the turn: role/group/member/turn."""

    @property
    def text(self) -> str:
        """The whole prompt."""

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Exchange:
    """One conversation. `observations[i]` is the answer to `replies[i]`."""

    task: str
    replies: tuple[str, ...]
    observations: tuple[str, ...]

    @property
    def last_reply(self) -> str:
        """An empty text before the first reply."""
        return self.replies[-1] if self.replies else ""

    @property
    def last_output(self) -> str:
        """The last observation without its budget line; an empty text before the first."""
        return BUDGET.sub("", self.observations[-1]) if self.observations else ""


def read_conversation(text: str, chat: ChatFormat | None = None) -> Exchange:
    """Take a prompt apart: one of `chat`, or without that one in ChatML. Raises ValueError for another."""
    if chat is not None:
        task, turns = chat.read(text)
        return Exchange(task, tuple(answer for answer, _ in turns), tuple(shown for _, shown in turns))
    pieces = OPENING.split(text)
    messages = [
        (role, content.partition("<|im_end|>")[0])
        for role, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    users = [content for role, content in messages if role == "user"]
    if not users:
        raise ValueError(
            "the teacher reads ChatML conversations (<|im_start|>user …); this prompt has no user message"
        )
    replies = [content for role, content in messages if role == "assistant"]
    # The last assistant message is the reply to be written.
    return Exchange(users[0], tuple(replies[:-1]), tuple(users[1:]))
