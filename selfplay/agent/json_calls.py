"""The tool-call format `hermes`: a JSON object between `<tool_call>` and `</tool_call>`.

Qwen, SmolLM3, Hermes and others were trained on it; their chat templates describe it if they are given tools.
A string may hold anything, closing tags too. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from selfplay.agent.tool_format import NO_CALL, BadFormat, Call, Span, after_reasoning, listed, place
from selfplay.agent.tool_format import end_of_reasoning as end_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
OPENING = re.compile(r"^[ \t]*<tool_call>", re.MULTILINE)
STOPS = re.compile(r"(?:\s|<(?!/?tool)[^\n<> ]{1,40}>)*")  # blanks and stop tokens that were spelled out
NAME = re.compile(r'"name"\s*:\s*"[^"]*"')
REPLACE = re.compile(r'"replace"\s*:\s*"')


class HermesFormat:
    has_arguments = True
    tags = (OPEN, CLOSE)
    marks = (OPEN, '"arguments"')

    def parse(self, text: str, tools: Sequence[str]) -> Call:
        rule = (
            f'A reply ends with exactly one call: a line {OPEN}, {{"name": NAME, "arguments": {{…}}}} as '
            f"JSON, a line {CLOSE}. NAME is {listed(tools)}."
        )

        def read(rest: str) -> Call:
            opening = OPENING.search(rest)
            if opening is None:
                raise BadFormat(f"{NO_CALL}. {rule}")
            value, end = _read_json(rest, opening.end(), len(text) - len(rest), text)
            tool, arguments = _checked(value, tools, rule)
            end = STOPS.match(rest, end).end()  # type: ignore[union-attr]
            if not rest.startswith(CLOSE, end):
                fault = f"{place(text, len(text) - len(rest) + end)} has {rest[end : end + 40]!r}"
                raise BadFormat(
                    f"The call is not closed by {CLOSE}: {fault if rest[end:] else 'the reply ends'}. {rule}"
                )
            after = rest[end + len(CLOSE) :]
            after = after[STOPS.match(after).end() :]  # type: ignore[union-attr]
            if OPENING.search(after):
                raise BadFormat(f"More than one call. {rule}")
            if after:
                raise BadFormat(f"There is text after the call: {after[:40]!r}. {rule}")
            return Call(tool, "", rest[: opening.start()].strip(), arguments)

        return after_reasoning(text, OPENING, read)

    def format(self, call: Call) -> str:
        value = {"name": call.tool, "arguments": dict(call.arguments or {})}
        return f"{OPEN}\n{json.dumps(value, ensure_ascii=False)}\n{CLOSE}"

    def deciding(self, text: str) -> list[Span]:
        opening = OPENING.search(text, end_of(text, OPENING))
        name = NAME.search(text, opening.end()) if opening else None
        if name is None:
            return []
        written = REPLACE.search(text, name.end())
        return [name.span(), *([(written.end(), len(text))] if written else [])]


HERMES = HermesFormat()


def _read_json(rest: str, start: int, offset: int, text: str) -> tuple[Any, int]:
    """The JSON value that begins behind `start`, and where it ends. Raises BadFormat that names the place."""
    start += len(rest[start:]) - len(rest[start:].lstrip())
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_unique, parse_constant=_no_constant)
    try:
        value, end = decoder.raw_decode(rest, start)
    except json.JSONDecodeError as error:
        raise BadFormat(
            f"The call is not valid JSON at {place(text, offset + error.pos)} of the reply: {error.msg}. "
            'Within a string write \\" for a quote, \\\\ for a backslash and \\n for a new line.'
        ) from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        raise BadFormat(
            f"The JSON of the call, at {place(text, offset + start)} of the reply, cannot be read: "
            f"{str(error)[:80]}. Write the arguments as strings and whole numbers."
        ) from None
    return value, end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None) if len(names) < 100 else "…"
    if twice is not None:
        raise BadFormat(f"The field {twice[:40]!r} stands twice in the JSON of the call; write it once.")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no value of JSON")


def _checked(value: Any, tools: Sequence[str], rule: str) -> tuple[str, dict[str, Any]]:
    """(tool, arguments). Raises BadFormat."""
    if not isinstance(value, dict):
        raise BadFormat(f"The call is no JSON object. {rule}")
    unknown = next((name for name in value if name not in ("name", "arguments")), None)
    if unknown is not None:
        raise BadFormat(f'The call has a field {unknown[:40]!r}; it has only "name" and "arguments". {rule}')
    tool, arguments = value.get("name"), value.get("arguments")
    if tool not in tools:
        fault = f"There is no tool {str(tool)[:40]!r}" if "name" in value else 'The field "name" is missing'
        raise BadFormat(f"{fault}. {rule}")
    if not isinstance(arguments, dict):
        fault = "is missing" if "arguments" not in value else "is no JSON object"
        raise BadFormat(f'The field "arguments" {fault}. {rule}')
    return str(tool), arguments
