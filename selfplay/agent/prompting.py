"""Prompts: finds a template, renders it, hashes the texts that it was made from. Roles decide what goes into
it.

Invariant: equal hashes mean equal template texts, included ones too, and equal style. Variables do not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
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

from selfplay import parts
from selfplay.agent.tools import STANDARD, Toolbox
from selfplay.errors import PromptError
from selfplay.runtime.resources import resource

STYLES = ("full", "terse")
FORMATS = ("hermes", "qwen-xml", "bash-block")  # formats of calls with a system prompt of their own
NAMES = ("system", "solver/repair", *(f"system/{name}" for name in FORMATS))  # and one for each strategy
NEED_HISTORY = ("history",)  # strategies that read the project's commits
HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")


@dataclass(frozen=True)
class Prompt:
    text: str
    hash: str


@dataclass(frozen=True)
class Strategy:
    """How an injector is asked for a bug: a pair of templates, and what it finds in the workspace.

    `folder` holds NAME.md.j2 and NAME.terse.md.j2. They may include templates of prompts/. None:
    prompts/injector/. needs_history: the workspace's git repository has the project's commits.
    """

    name: str
    folder: Path | None = None
    needs_history: bool = False

    @property
    def template(self) -> str:
        return self.name if self.folder else f"injector/{self.name}"


def find_strategy(name: str) -> Strategy:
    """The strategy that `injector.strategies` names. Raises PartError if one's own cannot be loaded."""
    if parts.is_own(name):
        found: Strategy = parts.load("injector.strategies", name)
        return found
    return Strategy(name, needs_history=name in NEED_HISTORY)


def render(name: str, style: str = "full", folder: Path | None = None, **variables: object) -> Prompt:
    """The prompt `name` ("system", "injector/removal", "solver/repair") in `style` ("full" or "terse").

    folder: where templates are besides prompts/. Raises PromptError for a missing template, and for a
    variable that the template uses and was not given. `call(TOOL, ARGUMENT=TEXT)` writes a call; unless it is
    given, in the standard format.
    """
    try:
        text = _template(name, style, folder).render({"call": STANDARD.write} | variables)
    except TemplateError as error:
        raise PromptError(
            f"prompt {name} ({style}): {error}. Variables given: {', '.join(sorted(variables)) or 'none'}."
        ) from error
    return Prompt(text.strip("\n"), prompt_hash(name, style, folder))


def system_prompt(style: str, tool_format: str, tools: Toolbox, is_listed: bool = False) -> Prompt:
    """The system prompt, which describes the tools and how they are called.

    is_listed: the chat template describes them already, from the tools' schemas.
    """
    name = f"system/{tool_format}" if tool_format in FORMATS else "system"
    schemas = [json.dumps(schema, ensure_ascii=False) for schema in tools.schemas]
    prompt = render(
        name, style, schemas=schemas, is_listed=is_listed, names=tuple(tools.tools), call=tools.write
    )
    described = tools.descriptions
    if described and not tools.schemas:  # of tools of one's own
        prompt = replace(prompt, text=f"{prompt.text}\n\n{described}".strip("\n"))
    given = [described] if described else []
    if tools.schemas:
        given = [*schemas, str(is_listed)]
    if not given:
        return prompt
    return replace(prompt, hash=hashlib.sha256("\0".join([prompt.hash, *given]).encode()).hexdigest())


@cache
def prompt_hash(name: str, style: str, folder: Path | None = None) -> str:
    """SHA-256 over the style and every template text that `name` is made of."""
    pending, seen = [_file(name, style)], dict[str, str]()
    environment = _environment(folder)
    while pending:
        file = pending.pop()
        if file in seen:
            continue
        try:
            seen[file] = _source(file, folder)
            pending += [
                found for found in meta.find_referenced_templates(environment.parse(seen[file])) if found
            ]
        except TemplateError as error:
            raise PromptError(f"prompt {name} ({style}): {file}: {error}") from error
    parts = [style, *(part for file in sorted(seen) for part in (file, seen[file]))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def check_prompts(strategies: Iterable[str] = ()) -> None:
    """Load every template in every style, so that a missing or broken one stops a run before it starts.

    strategies: names of the run's, one's own among them. Raises PromptError.
    """
    known = [Strategy(name) for name in parts.names_of("injector.strategies")]
    own = [find_strategy(name) for name in strategies if parts.is_own(name)]
    wanted = [(name, None) for name in NAMES] + [(one.template, one.folder) for one in (*known, *own)]
    for name, folder in wanted:
        for style in STYLES:
            _template(name, style, folder)
            prompt_hash(name, style, folder)


def compact_diff(diff: str) -> str:
    """A unified diff in fewer tokens: each file's header lines become its name; hunks stay as they are."""
    lines: list[str] = []
    # Lines of the hunk that are still to come. Without them a removed line "-- x" looks like a header.
    old, new = 0, 0
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
def _environment(folder: Path | None = None) -> Environment:
    try:
        folders = [*([folder] if folder else []), resource("prompts")]
    except FileNotFoundError as error:
        raise PromptError(str(error)) from error
    environment = Environment(
        loader=FileSystemLoader(folders),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["compact_diff"] = compact_diff
    return environment


def _source(file: str, folder: Path | None) -> str:
    environment = _environment(folder)
    assert environment.loader is not None
    return environment.loader.get_source(environment, file)[0]


@cache
def _template(name: str, style: str, folder: Path | None = None) -> Template:
    file = _file(name, style)
    try:
        return _environment(folder).get_template(file)
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
