"""How a tool call is written in the policy's text. What a call means is each tool's business (`tools`).

A tool-call format has the members of ToolFormat; `agent.tool_format` names it (see selfplay/parts.py). Here
is the standard one. Others are in `json_calls`, `xml_calls` and `bash_blocks`; `format_conformance` checks
any. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Argument = str | int
Span = tuple[int, int]  # characters of a text: first, one past last

# What a model may write after its last tag: a stop token that it spelled, like <|im_end|> or </s>.
_STOP = r"(?:<(?!/?tool)[^\n<> ]{1,40}>)*"
OPENING = re.compile(r"^<tool: ([^\n<>]*)>[ \t]*\r?$", re.MULTILINE)
CLOSING = re.compile(rf"^</tool>{_STOP}[ \t]*\r?$", re.MULTILINE)
# The same tags as they are read where they leave no doubt: indented, with text beside them, in XML's style,
# or with full-width brackets.
LOOSE_OPENING = re.compile(
    r"^[ \t]*[<＜]tool(?:[:：=]|[ \t]+name[ \t]*=|[ \t])[ \t]*[\"']?([\w-]+)[\"']?[ \t]*[>＞](?:[ \t]*\r?$)?",
    re.MULTILINE | re.IGNORECASE,
)
LOOSE_CLOSING = re.compile(
    rf"(?:^[ \t]*)?[<＜][/／]tool(?:[:： \t]+[\w-]+)?[>＞]{_STOP}[ \t]*\r?$", re.MULTILINE | re.IGNORECASE
)
ANY_TAG = re.compile(r"[<＜][/／]?tool\b", re.IGNORECASE)
# Between these a model thinks. What looks like a call in there is none.
REASONING = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
FENCE = "```"
REASONING_OPENING = re.compile(r"^[ \t]*(<think>|<thinking>|\[THINK\])", re.MULTILINE)
NO_CALL = "No tool call found"
EDIT_MARK = "\n=======\n"  # between the old and the new text of an edit
OTHER_FORMATS = ("<tool_call", "<function", "[TOOL_CALLS]", '"arguments"', '"parameters"')


class BadFormat(Exception):
    """The text holds no call that can be run; the message is shown to the policy."""


class CannotWrite(ValueError):
    """The format has no way to write this call. The message says what stands in the way."""


@dataclass(frozen=True)
class Call:
    """A call as it is written: the tool's name, the body, and the text before it.

    arguments: by name, in formats that name them. Such a format leaves the body to the tool.
    """

    tool: str
    body: str = ""
    thought: str = ""
    arguments: Mapping[str, Argument] | None = None


class ToolFormat(Protocol):
    """A format may have more members; each has a default.

    has_arguments   calls name their arguments, and have no body (False)
    tags            lines around a call that the vocabulary may have as control tokens (())
    marks           what a chat template writes that describes calls in this format (())
    answers_as_tool answers have the role "tool" where the chat template has that role (True)
    can_call        tools that it can call, None for all (None)
    deciding        a function of a text with a call: the spans of what chooses the tool, and of what the call
                    writes into a file (none)
    """

    def parse(self, text: str, tools: Sequence[str]) -> Call:
        """The one call that ends `text`. tools: the names that may be called.

        Raises BadFormat, whose message tells the policy what to write instead.
        """
        ...

    def format(self, call: Call) -> str:
        """The text of a call, as `parse` reads it. Raises CannotWrite."""
        ...


class TagFormat:
    """`<tool: NAME>`, the body, `</tool>`, each tag alone on its line.

    Reasoning at the start of a reply (`<think>…</think>`) is no part of the call. A reply that can be meant
    in one way only is read: with CRLF line ends, in a fence, with indented tags, or the body beside them.
    """

    def parse(self, text: str, tools: Sequence[str]) -> Call:
        rule = (
            "A reply ends with exactly one call: a line `<tool: NAME>`, the body, a line `</tool>`. "
            f"NAME is {listed(tools)}."
        )
        thinking = end_of_reasoning(text)
        rest = text[thinking:]
        openings, closings = _tags(rest)
        fault = _fault(rest, openings, closings)
        if fault and thinking and not _fault(text, *_tags(text)):  # the mark stood in the call itself
            thinking, rest, fault = 0, text, ""
            openings, closings = _tags(text)
        if openings and openings[0][0].endswith("\r"):
            return self.parse(text.replace("\r\n", "\n"), tools)
        if fault:
            raise BadFormat(f"{fault} {rule}")
        opening, closing = openings[0], closings[0]
        tool = opening[1].strip()
        if tool not in tools:
            alike = [name for name in tools if name.casefold() == tool.casefold()]
            if len(alike) != 1:
                raise BadFormat(f"There is no tool {tool[:40]!r}. {rule}")
            tool = alike[0]
        body = rest[opening.end() : closing.start()].removeprefix("\n").removesuffix("\n")
        return Call(tool, _dedented(opening, body), (text[:thinking] + rest[: opening.start()]).strip())

    def format(self, call: Call) -> str:
        if CLOSING.search(call.body) or OPENING.search(call.body):
            raise CannotWrite("a body cannot hold a line that is a tag of a call; use bash with printf")
        return _tagged(call.tool, call.body)

    def deciding(self, text: str) -> list[Span]:
        found = OPENING.search(text, end_of_reasoning(text))
        if found is None:
            return []
        mark = text.find(EDIT_MARK, found.end())
        return [found.span(), *([(mark + len(EDIT_MARK) - 1, len(text))] if mark >= 0 else [])]


TAGS = TagFormat()


def format_action(tool: str, body: str) -> str:
    """The text of a call in the standard format, even if its body makes it unreadable."""
    return _tagged(tool, body)


def _tagged(tool: str, body: str) -> str:
    return f"<tool: {tool}>\n{body}\n</tool>" if body else f"<tool: {tool}>\n</tool>"


def after_reasoning(text: str, tag: re.Pattern[str], read: Callable[[str], Call]) -> Call:
    """The call that `read` finds behind the reasoning. Drafts in there are none.

    tag: what begins a call. If the mark of the reasoning's end stands in the call itself, the whole text is
    read. Raises BadFormat.
    """
    end = end_of_reasoning(text, tag)
    try:
        call = read(text[end:])
    except BadFormat as fault:
        if end:
            try:
                call = read(text)
            except BadFormat:
                raise fault from None
            held = "\n".join([call.body, *map(str, (call.arguments or {}).values())])
            if any(mark in held for _, mark in REASONING):
                return call
            raise  # a draft
        unfinished = _open_reasoning(text, 0, tag)
        if unfinished and not tag.search(text):
            raise BadFormat(f"{NO_CALL}: the reasoning is not closed by `{_mark_of(unfinished)}`.") from None
        raise
    return Call(call.tool, call.body, (text[:end] + call.thought).strip(), call.arguments)


def place(text: str, at: int) -> str:
    """Where the character at `at` is, as messages name it."""
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"


def end_of_reasoning(text: str, tag: re.Pattern[str] = ANY_TAG) -> int:
    """Where the reasoning at the start of a reply ends; 0 without any, or if it is not closed.

    tag: what a call begins with, in the format.
    """
    end = 0
    while opened := _open_reasoning(text, end, tag):
        mark = _mark_of(opened)
        closed = text.find(mark, opened.end())
        if closed < 0:
            break
        end = closed + len(mark)
    return end


def _mark_of(opened: re.Match[str]) -> str:
    return dict(REASONING)[opened[1]]


def _open_reasoning(text: str, start: int = 0, tag: re.Pattern[str] = ANY_TAG) -> re.Match[str] | None:
    """The mark of the reasoning which begins at `start`, or after words; None without any.

    A mark behind a tag is none: the text of a call, perhaps copied from a file, must not pass for reasoning.
    """
    found = REASONING_OPENING.search(text, start)
    if found is None or tag.search(text, start, found.start()):
        return None
    return found


def _tags(text: str) -> tuple[list[re.Match[str]], list[re.Match[str]]]:
    """The tags of the calls. Loose ones count if there is no strict call, and no other tag anywhere."""
    openings, closings = list(OPENING.finditer(text)), list(CLOSING.finditer(text))
    if openings and closings and openings[0].end() <= closings[-1].start():
        return openings, closings
    loose = list(LOOSE_OPENING.finditer(text)), list(LOOSE_CLOSING.finditer(text))
    is_one_call = [len(tags) for tags in loose] == [1, 1] and len(ANY_TAG.findall(text)) == 2
    return loose if is_one_call and loose[0][0].end() <= loose[1][0].start() else (openings, closings)


def _fault(text: str, openings: Sequence[re.Match[str]], closings: Sequence[re.Match[str]]) -> str:
    """Why `text` is not one call; "" if it is."""

    def lines(tags: Sequence[re.Match[str]]) -> str:
        return "lines " + ", ".join(str(text.count("\n", 0, tag.start()) + 1) for tag in tags[:5])

    if not openings:
        if unfinished := _open_reasoning(text):
            return f"{NO_CALL}: the reasoning is not closed by `{_mark_of(unfinished)}`."
        if ANY_TAG.search(text):
            return "No tool call found: each tag stands alone on its line."
        found = next((name for name in OTHER_FORMATS if name in text), "")
        return f"No tool call found: {found!r} is of another format." if found else "No tool call found."
    if not closings or closings[-1].start() < openings[0].end():
        return f"The call is not closed: no line `</tool>` follows {openings[0][0].strip()[:60]!r}."
    if len(openings) > 1:
        return f"More than one call: {lines(openings)} of the reply open one."
    if len(closings) > 1:
        return (
            f"More than one `</tool>`: {lines(closings)} of the reply. A body cannot hold such a line; to "
            "write one into a file, use bash with printf."
        )
    after = text[closings[0].end() :].strip()
    before = text[: openings[0].start()].rstrip().rpartition("\n")[2]
    if after and not (re.fullmatch(r"`{3,}|~{3,}", after) and before.startswith(after)):
        return f"There is text after the call: {after[:40]!r}."
    return ""


def _dedented(opening: re.Match[str], body: str) -> str:
    """The body of an indented call, without the indentation if all of it has that."""
    indent = opening[0][: len(opening[0]) - len(opening[0].lstrip(" \t"))]
    rows = body.split("\n")
    if indent and all(row.startswith(indent) for row in rows if row.strip()):
        return "\n".join(row.removeprefix(indent) for row in rows)
    return body


def unfenced(body: str) -> tuple[str, str]:
    """The text within the fence that encloses all of `body`, and the word after the fence.

    Without such a fence: the body, and no word.
    """
    rows = body.strip().split("\n")
    fences = [number for number, row in enumerate(rows) if row.startswith(FENCE)]
    if fences == [0, len(rows) - 1] and len(rows) > 1 and rows[-1].rstrip() == FENCE:
        return "\n".join(rows[1:-1]), rows[0].removeprefix(FENCE).strip()
    return body, ""


def listed(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
