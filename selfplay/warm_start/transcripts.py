"""Fabricated conversations: the token ids that an episode would have, without an episode.

Runs nothing. Invariant: calls and observations are formatted by the code that play uses (chat, tools), so the
policy meets the same format in play.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfplay.agent.chat import ChatFormat
from selfplay.agent.observations import cap_output, make_harmless, render_observation
from selfplay.agent.tool_format import BadFormat
from selfplay.agent.tools import STANDARD
from selfplay.teacher.mutations import Mutation
from selfplay.teacher.phrases import LineEdit
from selfplay.warm_start.documents import ACTION_WEIGHT, SHOWN_WEIGHT, Document

# A drill's prompt begins with it. After an edit, a drill has more edits, which no episode should learn.
DRILL = "drill"
STATUS_TOKENS = 20  # roughly, of an observation's status line and message frame


@dataclass(frozen=True)
class PlayLimits:
    """Limits of the imitated episodes, as in a run's agent settings, and how their edits are written."""

    context_tokens: int = 3072
    observation_tokens: int = 400
    turns: int = 10
    whole_lines: bool = False  # see `LineEdit.reply`


class Transcript:
    """One conversation that grows call by call. `weight[i]` is the loss weight of `ids[i]`."""

    def __init__(self, chat: ChatFormat, limits: PlayLimits, user: str) -> None:
        self.chat, self.limits = chat, limits
        self.ids = chat.start("", user)
        self.weight = [SHOWN_WEIGHT] * len(self.ids)
        self.turns = 0
        self.called = ""  # the tool of the last reply; "" if it held no call
        self.edits: list[tuple[int, str]] = []  # each edit's first token, and its `LineEdit.opening`
        self.tried: set[Mutation] = set()  # wrong edits so far

    def act(self, text: str, counts: bool = True) -> None:
        """Add a reply. counts: whether the policy learns it."""
        ids = [*self.chat.encode_call(text), self.chat.stop_id]
        self.ids += ids
        self.weight += [ACTION_WEIGHT if counts else 0.0] * len(ids)
        self.turns += 1
        try:
            self.called = self.chat.tools.parse(text).tool
        except BadFormat:
            self.called = ""

    def observe(self, output: str, exit_code: int = 0) -> None:
        """Add a tool's output, capped as in play."""
        output = cap_output(make_harmless(output), self.limits.observation_tokens, self.chat.spans)
        tokens_left = max(self.limits.context_tokens - len(self.ids) - STATUS_TOKENS, 0)
        turns_left = self.limits.turns - self.turns
        ids = self.chat.extend(render_observation(output, exit_code, turns_left, tokens_left), self.called)
        self.ids += ids
        self.weight += [SHOWN_WEIGHT] * len(ids)

    def edit(self, edit: LineEdit, counts: bool = True) -> None:
        """Add an edit call."""
        form = (self.chat.tools, self.limits.whole_lines)
        self.edits.append((len(self.ids), edit.opening(*form)))
        self.act(edit.reply(*form), counts)

    def bash(self, command: str, counts: bool = True) -> None:
        self.act(self.chat.tools.write("bash", command=command), counts)

    def submit(self, *names: str) -> None:
        self.act(self.chat.tools.write("submit", **({"files": "\n".join(names)} if names else {})))

    def document(self) -> Document:
        return Document(self.ids, self.weight)


class CharacterChat:
    """Stands in for ChatFormat before the tokenizer exists: its tokens are characters."""

    stop_id = "\n"
    tools = STANDARD

    def start(self, system: str, user: str) -> list[str]:
        return list(f"{system}user\n{user}\nassistant\n")

    def extend(self, observation: str, tool: str = "") -> list[str]:
        return list(f"user\n{observation}\nassistant\n")

    def encode(self, text: str) -> list[str]:
        return list(text)

    def encode_call(self, text: str) -> list[str]:
        return list(text)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Counts three characters as one token, so that outputs are capped at a realistic length."""
        return [(first, min(first + 3, len(text))) for first in range(0, len(text), 3)]
