"""The tool-call format `qwen-xml`: `<function=NAME>` and a `<parameter=NAME>` for each argument.

Qwen3-Coder and later Qwen models were trained on it. Nothing is escaped, so a value can hold no line that is
one of these tags. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfplay.agent.tool_format import (
    NO_CALL,
    BadFormat,
    Call,
    CannotWrite,
    Span,
    after_reasoning,
    listed,
)
from selfplay.agent.tool_format import end_of_reasoning as end_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
END_FUNCTION, END_PARAMETER = "</function>", "</parameter>"
# A call begins with <tool_call>. Models leave that line out now and then, and the call is clear all the same.
OPENING = re.compile(r"^[ \t]*<(?:tool_call>|function=)", re.MULTILINE)
FUNCTION = re.compile(r"[ \t]*<function=([^\n<>]*)>[ \t]*")
PARAMETER = re.compile(r"[ \t]*<parameter=([^\n<>]*)>[ \t]*")
ON_ONE_LINE = re.compile(r"[ \t]*<parameter=([^\n<>]*)>(.*)</parameter>[ \t]*")
TAG = re.compile(
    r"[ \t]*(?:</?tool_call>|<function=[^\n<>]*>|</function>|<parameter=[^\n<>]*>|</parameter>)[ \t]*"
)
STOP = re.compile(r"<(?!/?(?:tool_call|function|parameter)\b)[^\n<> ]{1,40}>$")  # that was spelled out
FUNCTION_LINE = re.compile(rf"^{FUNCTION.pattern}$", re.MULTILINE)
REPLACE_LINE = re.compile(r"^[ \t]*<parameter=replace>", re.MULTILINE)
EXAMPLE = (
    f"{OPEN}, <function=NAME>, for each argument <parameter=NAME>, its value, {END_PARAMETER}; then "
    f"{END_FUNCTION}, {CLOSE}, each tag alone on its line"
)


class QwenXmlFormat:
    has_arguments = True
    tags = (OPEN, CLOSE)
    marks = ("<function=", "<parameter=")

    def parse(self, text: str, tools: Sequence[str]) -> Call:
        rule = f"A reply ends with exactly one call: {EXAMPLE}. The name of the function is {listed(tools)}."

        def read(rest: str) -> Call:
            opening = OPENING.search(rest)
            if opening is None:
                raise BadFormat(f"{NO_CALL}. {rule}")
            first = text.count("\n", 0, len(text) - len(rest) + opening.start()) + 1
            lines = _without_stops(rest[opening.start() :]).split("\n")
            tool, arguments = _Reader(lines, first, rule).call()
            if tool not in tools:
                raise BadFormat(f"There is no tool {tool[:40]!r}. {rule}")
            return Call(tool, "", rest[: opening.start()].strip(), arguments)

        return after_reasoning(text, OPENING, read)

    def format(self, call: Call) -> str:
        lines = [OPEN, f"<function={call.tool}>"]
        for name, value in (call.arguments or {}).items():
            bad = next((line for line in str(value).split("\n") if TAG.fullmatch(line)), None)
            if bad is not None:
                raise CannotWrite(f"the value of {name} cannot hold the line {bad!r}; use bash with printf")
            lines += [f"<parameter={name}>", str(value), END_PARAMETER]
        return "\n".join([*lines, END_FUNCTION, CLOSE])

    def deciding(self, text: str) -> list[Span]:
        named = FUNCTION_LINE.search(text, end_of(text, OPENING))
        if named is None:
            return []
        written = REPLACE_LINE.search(text, named.end())
        return [named.span(), *([(written.end(), len(text))] if written else [])]


QWEN_XML = QwenXmlFormat()


def _without_stops(text: str) -> str:
    text = text.rstrip()
    while stop := STOP.search(text[-42:]):
        text = text[: len(text) - len(stop[0])].rstrip()
    return text


class _Reader:
    """Reads the lines of a reply from where its call begins. first: the number of the first one."""

    def __init__(self, lines: Sequence[str], first: int, rule: str) -> None:
        self._lines, self._first, self._rule = lines, first, rule
        self._at = 0

    def call(self) -> tuple[str, dict[str, str]]:
        """(tool, arguments). Raises BadFormat that names the line."""
        is_wrapped = self._line.strip() == OPEN
        if is_wrapped:
            self._next()
        function = FUNCTION.fullmatch(self._line)
        if function is None:
            raise self._fault("is to be <function=NAME>")
        self._next()
        arguments: dict[str, str] = {}
        while self._line.strip() != END_FUNCTION:
            name, value = self._argument()
            if name in arguments:
                raise self._fault(f"ends a second parameter {name[:40]!r}; give each once", back=1)
            arguments[name] = value
        self._next()
        if is_wrapped:
            if self._line.strip() != CLOSE:
                raise self._fault(f"is to be {CLOSE}")
            self._next()
        rest = "\n".join(self._lines[self._at :]).strip()
        if OPENING.search(rest):
            raise self._fault("begins another call; write one in each reply")
        if rest:
            raise self._fault("is text after the call")
        return function[1].strip(), arguments

    def _argument(self) -> tuple[str, str]:
        if whole := ON_ONE_LINE.fullmatch(self._line):
            self._next()
            return whole[1].strip(), whole[2]
        opening = PARAMETER.fullmatch(self._line)
        if opening is None:
            raise self._fault(f"is to be <parameter=NAME> or {END_FUNCTION}")
        self._next()
        value: list[str] = []
        while self._line.strip() != END_PARAMETER:
            if TAG.fullmatch(self._line):
                raise self._fault(
                    f"stands in the value of {opening[1][:40]!r}, which no {END_PARAMETER} has ended; "
                    "a value cannot hold such a line. To write one into a file, use bash with printf"
                )
            value.append(self._line)
            self._next()
        self._next()
        return opening[1].strip(), "\n".join(value)

    @property
    def _line(self) -> str:
        return self._lines[self._at] if self._at < len(self._lines) else ""

    def _next(self) -> None:
        self._at += 1
        # Beyond the last line there is one that is empty, for what may follow a call.
        if self._at > len(self._lines):
            raise BadFormat(f"The call is not finished when the reply ends. {self._rule}")

    def _fault(self, what: str, back: int = 0) -> BadFormat:
        at = self._at - back
        shown = self._lines[at].strip()[:60] if at < len(self._lines) else ""
        line = f"Line {self._first + at} of the reply, {shown!r}," if shown else "The end of the reply"
        return BadFormat(f"{line} {what}. {self._rule}")
