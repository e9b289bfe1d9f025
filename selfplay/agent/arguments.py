"""Named arguments of a call: their parameters, their checks, and a tool's JSON schema. Pure but for the words
of the standard tools, which are in prompts/tools.toml.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from selfplay.agent.tool_format import Argument, BadFormat, listed
from selfplay.runtime.resources import resource


@dataclass(frozen=True)
class Parameter:
    """A named argument of a tool. type: "string" or "integer"."""

    name: str
    type: str = "string"
    required: bool = True


BODY = (Parameter("body", required=False),)  # of a tool that names no parameters


def checked(tool: str, given: Mapping[str, object], parameters: Sequence[Parameter]) -> dict[str, Argument]:
    """The arguments in the order and types of the parameters. Raises BadFormat that names the argument."""
    takes = f"{tool} takes {listed([one.name for one in parameters]).replace(' or ', ' and ')}."
    unknown = next((name for name in given if name not in {one.name for one in parameters}), None)
    if unknown is not None:
        raise BadFormat(f"The argument {unknown[:40]!r} is unknown: {takes}")
    arguments: dict[str, Argument] = {}
    for one in parameters:
        value = given.get(one.name)
        if value is None and one.required:
            raise BadFormat(f"The argument {one.name} of {tool} is missing: {takes}")
        if value is None:
            continue
        if one.type == "integer":
            digits = str(value).strip()
            if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", digits):
                shown = f"not {str(value)[:40]!r}"
                raise BadFormat(f"The argument {one.name} of {tool} is to be a whole number, {shown}.")
            arguments[one.name] = int(digits)
        elif isinstance(value, str):
            arguments[one.name] = value
        else:
            raise BadFormat(f"The argument {one.name} of {tool} is to be a string, not {str(value)[:40]!r}.")
    return arguments


def one_line(arguments: Mapping[str, Argument]) -> str:
    """The argument path. Raises BadFormat unless it is one line."""
    path = str(arguments["path"]).strip()
    if not path or "\n" in path:
        raise BadFormat(f"The argument path is to be the path of one file, not {path[:40]!r}.")
    return path


@cache
def _texts() -> Mapping[str, Any]:
    """What the standard tools and their parameters are, in words."""
    return tomllib.loads((resource("prompts") / "tools.toml").read_text("utf-8"))


def schema(tool: str, description: str, parameters: Sequence[Parameter]) -> Mapping[str, Any]:
    """The tool as a JSON schema of a function. description: "" for the standard tools."""
    texts = _texts().get(tool, {})
    words = texts.get("parameters", {})
    properties = {
        one.name: {"type": one.type, "description": words.get(one.name, "The text of the call.")}
        for one in parameters
    }
    function = {
        "name": tool,
        "description": description or texts.get("description", tool),
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": [one.name for one in parameters if one.required],
        },
    }
    return {"type": "function", "function": function}
