"""Prompts: finds a template, renders it strictly, hashes what it was made from. What goes into one is decided in roles.

Invariant: equal hashes mean equal template texts (included ones too) and equal style, whatever the variables were.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateNotFound,
    meta,
)

from selfplay.errors import PromptError
from selfplay.runtime.resources import resource

STYLES = ("full", "terse")
NAMES = ("system", "injector/direct", "injector/removal", "injector/history", "solver/repair")
HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")


@dataclass(frozen=True)
class Prompt:
    text: str
    hash: str


def render(name: str, style: str = "full", **variables: object) -> Prompt:
    """The prompt `name` ("system", "injector/removal", "solver/repair") in `style` ("full" or "terse").

    Raises PromptError for a missing template and for a variable that the template uses and was not given.
    """
    try:
        text = _template(name, style).render(**variables)
    except TemplateError as error:
        raise PromptError(
            f"prompt {name} ({style}): {error}. Variables given: {', '.join(sorted(variables)) or 'none'}."
        ) from error
    return Prompt(text.strip("\n"), prompt_hash(name, style))


@cache
def prompt_hash(name: str, style: str) -> str:
    """SHA-256 over the style and every template text that `name` is made of."""
    pending, seen = [_file(name, style)], dict[str, str]()
    environment = _environment()
    while pending:
        file = pending.pop()
        if file in seen:
            continue
        try:
            seen[file] = _source(file)
            pending += [
                found for found in meta.find_referenced_templates(environment.parse(seen[file])) if found
            ]
        except TemplateError as error:
            raise PromptError(f"prompt {name} ({style}): {file}: {error}") from error
    parts = [style, *(part for file in sorted(seen) for part in (file, seen[file]))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def check_prompts() -> None:
    """Load every template in every style, so that a broken one stops a run before it starts. Raises PromptError."""
    for name in NAMES:
        for style in STYLES:
            _template(name, style)
            prompt_hash(name, style)


def compact_diff(diff: str) -> str:
    """A unified diff for a reader who counts tokens: each file's name alone in place of its header lines, the hunks as they are."""
    lines: list[str] = []
    old, new = 0, 0  # lines of the hunk still to come: a removed "-- x" looks like a header otherwise
    for line in diff.split("\n"):
        hunk = HUNK.match(line)
        if old > 0 or new > 0:
            lines.append(line)
            old -= line[:1] in (" ", "-", "")
            new -= line[:1] in (" ", "+", "")
        elif hunk:
            lines.append(line)
            old, new = (1 if count is None else int(count) for count in hunk.groups())
        elif line.startswith("+++ "):
            lines.append(line.removeprefix("+++ ").removeprefix("b/"))
    return "\n".join(lines)


def _file(name: str, style: str) -> str:
    if style not in STYLES:
        raise PromptError(f"prompt style {style!r} is not one of {', '.join(STYLES)}")
    return f"{name}.md.j2" if style == "full" else f"{name}.{style}.md.j2"


@cache
def _environment() -> Environment:
    try:
        folder = resource("prompts")
    except FileNotFoundError as error:
        raise PromptError(str(error)) from error
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["compact_diff"] = compact_diff
    return environment


def _source(file: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, file)[0]


@cache
def _template(name: str, style: str) -> Template:
    file = _file(name, style)
    try:
        return _environment().get_template(file)
    except TemplateNotFound as error:
        known = ", ".join(
            sorted(
                found.relative_to(resource("prompts")).as_posix()
                for found in Path(resource("prompts")).rglob("*.j2")
            )
        )
        raise PromptError(
            f"there is no prompt {name!r} in style {style!r} (prompts/{error.name}); there are: {known}"
        ) from error
    except TemplateError as error:
        raise PromptError(f"prompts/{file}: {error}") from error
