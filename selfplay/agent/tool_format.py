"""How a tool call is written in the policy's text. What a body means is each tool's business (`tools`).

A tool-call format has the two methods of ToolFormat; `agent.tool_format` names it (see selfplay/parts.py).
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

OPENING = re.compile(r"^<tool: ([^\n<>]*)>[ \t]*$", re.MULTILINE)
CLOSING = re.compile(r"^</tool>[ \t]*$", re.MULTILINE)


class BadFormat(Exception):
    """The text holds no call that can be run; the message is shown to the policy."""


@dataclass(frozen=True)
class Call:
    """A call as it is written: the tool's name, the body, and the text before it."""

    tool: str
    body: str
    thought: str = ""


class ToolFormat(Protocol):
    def parse(self, text: str, tools: Sequence[str]) -> Call:
        """The one call that ends `text`. tools: the names that may be called.

        Raises BadFormat, whose message tells the policy what to write instead.
        """
        ...

    def format(self, tool: str, body: str) -> str:
        """The text of a call, as `parse` reads it."""
        ...


class TagFormat:
    """`<tool: NAME>`, the body, `</tool>`, each tag alone on its line."""

    def parse(self, text: str, tools: Sequence[str]) -> Call:
        rule = (
            "A reply ends with exactly one call: a line `<tool: NAME>`, the body, a line `</tool>`. "
            f"NAME is {_listed(tools)}."
        )
        openings, closings = list(OPENING.finditer(text)), list(CLOSING.finditer(text))
        if not openings:
            raise BadFormat(f"No tool call found. {rule}")
        if not closings or closings[-1].start() < openings[0].end():
            raise BadFormat(f"The call is not closed. {rule}")
        if len(openings) > 1 or len(closings) > 1:
            raise BadFormat(f"More than one call. {rule}")
        if text[closings[0].end() :].strip():
            raise BadFormat(f"There is text after the call. {rule}")
        tool = openings[0][1].strip()
        if tool not in tools:
            raise BadFormat(f"There is no tool {tool[:40]!r}. {rule}")
        body = text[openings[0].end() : closings[0].start()].removeprefix("\n").removesuffix("\n")
        return Call(tool, body, text[: openings[0].start()].strip())

    def format(self, tool: str, body: str) -> str:
        return f"<tool: {tool}>\n{body}\n</tool>" if body else f"<tool: {tool}>\n</tool>"


TAGS = TagFormat()


def format_action(tool: str, body: str) -> str:
    """The text of a call in the standard format."""
    return TAGS.format(tool, body)


def _listed(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
