"""The text of a chat template around the contents of a conversation, found by rendering it with placeholders.

It turns nothing into tokens; that is the job of `chat`.

Invariant: what is found here only ever grows a conversation at its end. A template that changes earlier text
when a turn is added is refused, with one exception: reasoning. Templates of thinking models open it in the
prompt (`<think>`), and most leave it out of earlier turns. An episode keeps every token as it was sampled, so
the reasoning stays; only the frame around the answers must be the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfplay.agent.tool_format import REASONING
from selfplay.errors import EngineError

SYSTEM, USER = "SELFPLAYSYSTEMTEXT", "SELFPLAYUSERTEXT"
ANSWERS = ("SELFPLAYANSWERTEXT", "SELFPLAYSECONDANSWER", "SELFPLAYTHIRDANSWER")
NEXTS = ("SELFPLAYNEXTTEXT", "SELFPLAYSECONDNEXT", "SELFPLAYTHIRDNEXT")
REASON = "SELFPLAYREASONING"
UNKNOWN_ROLE = "selfplayrole"
PROBE_TOOL = "selfplaytool"
BY_USER = ("", "", "")  # the first three observations are messages of the user
SYSTEM_REMEDY = (
    "Set policy.chat_template to one that keeps the system text at the start, or that raises an error for "
    "the role 'system': then the text opens the first user message."
)
SHOWN = 60  # characters of a difference that a message quotes

Trim = Callable[[str], str]


def _as_json(text: str) -> str:
    """`text` within a JSON string. Templates that show contents so add the quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


TRIMS: tuple[Trim, ...] = (str, str.strip, str.rstrip, str.lstrip, _as_json)


@dataclass(frozen=True)
class Frame:
    """The template's text around one observation.

    before  what follows the answer, up to the observation
    after   what follows the observation, up to where the assistant begins again
    shown   what the template does to the observation itself
    """

    before: str
    after: str
    shown: Trim = str

    def read(self, text: str) -> str:
        """The observation that is shown as `text`, but for blanks that were trimmed."""
        return str(json.loads(f'"{text}"', strict=False)) if self.shown is _as_json else text


@dataclass(frozen=True)
class Listing:
    """What a template is given besides messages.

    arguments  names and values of the template's own, like enable_thinking
    names      tools whose answers are messages of the role "tool"; none: all observations are the user's
    schemas    the tools for the template's argument `tools`, each as a JSON schema of a function
    marks      what the template must write of a call if it is to list the tools: without these it describes
               another format than the one that is played
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    schemas: tuple[Mapping[str, Any], ...] = ()
    marks: tuple[str, ...] = ()


class ChatTemplate:
    """The pieces of one tokenizer's template. Raises EngineError, with the reason, if it cannot be used.

    first        (before, after) the first user text, up to where the assistant begins
    with_system  (before the system text, between, after the user text); None if the template has no such role
    user         the frame of an observation that is a message of the user
    tools        tool name -> the frame of its answer in the role "tool"; empty if the template has no such
                 role of its own, or one that cannot be only extended
    lists_tools  the template describes the tools, and calls in the format that is played
    opened       the mark of reasoning that the prompt opens, like "<think>\\n"; "" without one
    trim_system, trim_user  what the template does to these texts, mostly to blanks around them
    """

    def __init__(self, tokenizer: Any, name: str, listing: Listing = Listing()) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._arguments = dict(listing.arguments)
        self._check_arguments()
        self._has_parts = False
        self._has_parts = self._needs_parts()
        self.lists_tools = bool(listing.schemas) and self._can_list(listing.marks)
        if self.lists_tools:
            self._arguments["tools"] = [dict(schema) for schema in listing.schemas]
        opening = self._render("", USER)
        begin, rest = self._split(self._render("", USER, ANSWERS[0], NEXTS[0]), ANSWERS[0])
        # A prompt is base + generation. In a later prompt, base + shown is what stands before the answer.
        self._base, self._generation = _split_reasoning(opening)
        base, self._shown = _split_reasoning(begin)
        has_marks = any(mark in self._generation + self._shown for mark, _ in REASONING)
        if base != self._base or not (has_marks or self._shown.startswith(self._generation)):
            raise self._not_append_only(
                "an assistant message does not continue the generation prompt: " + _difference(opening, begin)
            )
        is_open = any(self._generation.rstrip().endswith(mark) for mark, _ in REASONING)
        self.opened = self._generation.lstrip() if is_open else ""
        self.first = self._split(opening, USER)
        before, after = self._split(rest, NEXTS[0])
        if not after.endswith(self._generation):
            raise self._not_append_only("the prompt of a later turn ends otherwise than the first one")
        self.with_system = self._system_pieces()
        self.trim_user = self._trim(lambda text: self._render("", text), USER) or str
        self.trim_system: Trim = str
        if self.with_system:
            self.trim_system = self._trim(lambda text: self._render(text, USER), SYSTEM) or str
        self.user = Frame(before, after, self.trim_user)
        self.tools = self._tool_frames(listing.names)

    def check(self) -> None:
        """Raise EngineError unless a conversation of several turns only grows at its end."""
        for count in range(1, len(ANSWERS) + 1):
            self._check_growth("", BY_USER[:count])
        for count in range(1, len(ANSWERS) + 1) if self.with_system else ():
            self._check_growth(SYSTEM, BY_USER[:count])
        self._check_reasoning(BY_USER)

    # ---- finding the pieces

    def _check_arguments(self) -> None:
        """Raise EngineError for an argument that the template does not use: it may be misspelled."""
        template = str(self._tokenizer.chat_template)
        for name in self._arguments:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise EngineError(
                    f"policy.template_args has {name!r}, which the chat template of {self._name} does not "
                    "use. Correct the name, or leave it out."
                )

    def _render(self, system: str, *texts: str, answered: Sequence[str] = (), role: str = "tool") -> str:
        """The template's text around a system text (left out if empty), then user and assistant in turn.

        answered: for each observation, the tool that answers; "": it is a message of the user. role: of the
        tools' answers.
        """
        contents: list[Any] = [
            [{"type": "text", "text": text}] if self._has_parts else text for text in (system, *texts)
        ]
        messages = [{"role": "system", "content": contents[0]}] if system else []
        for number, content in enumerate(contents[1:]):
            tool = answered[number // 2 - 1] if number and number % 2 == 0 and answered else ""
            if tool:
                messages.append({"role": role, "name": tool, "content": content})
            else:
                messages.append({"role": ("user", "assistant")[number % 2], "content": content})
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **self._arguments
                )
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise EngineError(
                f"the chat template of {self._name} cannot be rendered: {type(error).__name__}: {error}"
            ) from error

    def _can_list(self, marks: Sequence[str]) -> bool:
        """True if the template lists the tools that it is given, and calls in the format of `marks`."""
        function = {"name": PROBE_TOOL, "description": PROBE_TOOL}
        parameters = {"type": "object", "properties": {}, "required": []}
        probe = {"type": "function", "function": {**function, "parameters": parameters}}
        plain = self._arguments
        self._arguments = {**plain, "tools": [probe]}
        try:
            shown = self._render("", USER)
        except EngineError:
            return False
        finally:
            self._arguments = plain
        return all(mark in shown for mark in (PROBE_TOOL, *marks))

    def _tool_frames(self, names: Sequence[str]) -> dict[str, Frame]:
        """The frames of answers in the role "tool"; {} if they are to be messages of the user.

        A template that writes any role's name into one frame has no such role: its model never met one.
        """
        frames: dict[str, Frame] = {}
        talk = ("", USER, ANSWERS[0], NEXTS[0])
        try:
            for name in names:
                text = self._render(*talk, answered=(name,))
                before, after = self._split(self._split(text, ANSWERS[0])[1], NEXTS[0])
                shown = self._trim(
                    lambda text, name=name: self._render(*talk[:-1], text, answered=(name,)),  # type: ignore[misc]
                    NEXTS[0],
                )
                if shown is None or not after.endswith(self._generation):
                    return {}
                frames[name] = Frame(before, after, shown)
            if not frames or self._passes_roles_through(talk, names[0]):
                return {}
            self.tools = frames
            for answered in ((names[0],) * 3, (names[0], "", names[-1]), ("", names[-1], "")):
                self._check_growth("", answered)
                self._check_reasoning(answered)
        except EngineError:
            return {}
        return frames

    def _passes_roles_through(self, talk: tuple[str, ...], name: str) -> bool:
        try:
            unknown = self._render(*talk, answered=(name,), role=UNKNOWN_ROLE)
        except EngineError:
            return False
        return unknown.replace(UNKNOWN_ROLE, "tool") == self._render(*talk, answered=(name,))

    def _needs_parts(self) -> bool:
        """True if contents must be lists of parts, as templates of models that also read images have them."""
        try:
            if USER in self._render("", USER):
                return False
            fault = None
        except EngineError as error:
            fault = error
        self._has_parts = True
        try:
            if USER in self._render("", USER):
                return True
        except EngineError as error:
            fault = fault or error
        raise fault or EngineError(
            f"the chat template of {self._name} does not show the user's text, neither as a string nor as a "
            'list of {"type": "text"}. Use an instruction-tuned model\'s template.'
        )

    def _split(self, text: str, placeholder: str) -> tuple[str, str]:
        before, found, after = text.partition(placeholder)
        if placeholder in after:
            raise self._not_append_only("it does not show each message exactly once, but one of them twice")
        if not found:
            raise EngineError(
                f"the chat template of {self._name} does not show each message exactly once: one is missing. "
                "Use a template that shows every user and assistant message."
            )
        return before, after

    def _system_pieces(self) -> tuple[str, str, str] | None:
        try:
            text = self._render(SYSTEM, USER)
        except EngineError:
            return None
        if SYSTEM not in text:
            return None
        before, after = self._split(text, USER)
        if SYSTEM in after:
            raise self._not_append_only("the system text follows the user's", SYSTEM_REMEDY)
        return *self._split(before, SYSTEM), after

    def _trim(self, render: Callable[[str], str], text: str) -> Trim | None:
        """What the template does to `text`; None if that is not known. render: the template's text around
        it.
        """
        padded = f' \n{text} "é\\"\n '
        before, after = self._split(render(text), text)
        got = render(padded)
        return next((trim for trim in TRIMS if got == before + trim(padded) + after), None)

    # ---- checking several turns

    def _turns(self, answers: Sequence[str], answered: Sequence[str]) -> str:
        """What is expected after the first user text of a conversation with these answers."""
        frames = [self.tools[name] if name else self.user for name in answered]
        turns = "".join(
            f"{self._shown}{answer}{frame.before}{following}{frame.after.removesuffix(self._generation)}"
            for answer, frame, following in zip(answers, frames, NEXTS, strict=False)
        )
        return turns + self._generation

    def _check_growth(self, system: str, answered: Sequence[str]) -> None:
        """answered: for each of the turns, the tool that answers; "": the user."""
        answers = ANSWERS[: len(answered)]
        texts = [text for pair in zip(answers, NEXTS, strict=False) for text in pair]
        got = self._render(system, USER, *texts, answered=answered)
        if system and self.with_system:
            before, between, after = self.with_system
            head = f"{before}{SYSTEM}{between}{USER}{after}"
        else:
            head = USER.join(self.first)
        expected = head.removesuffix(self._generation) + self._turns(answers, answered)
        if got == expected:
            return
        if system and expected.find(SYSTEM) != got.find(SYSTEM):
            raise self._not_append_only("the system text moves when a turn is added", SYSTEM_REMEDY)
        said = expected[: expected.index(answers[-1]) + len(answers[-1])]
        if got.startswith(said):
            how = "the second observation is framed otherwise than the first"
        else:
            how = "a later turn changes what came before it"
        raise self._not_append_only(f"{how}: {_difference(expected, got)}")

    def _check_reasoning(self, answered: Sequence[str]) -> None:
        """Reasoning in the answers may be kept or left out; nothing else may change."""
        mark, end = next((marks for marks in REASONING if marks[0] in self.opened), REASONING[0])
        answers = [f"{mark}\n{REASON}\n{end}\n\n{answer}" for answer in ANSWERS]
        texts = [text for pair in zip(answers, NEXTS, strict=True) for text in pair]
        got = self._render("", USER, *texts, answered=answered)
        expected = USER.join(self.first).removesuffix(self._generation) + self._turns(ANSWERS, answered)
        # The text between two answers begins with the end of one and ends with the prompt of the next.
        around = list(zip(_around(got, ANSWERS), _around(expected, ANSWERS), strict=True))
        for found, wanted in around:
            is_last = wanted is around[-1][1]
            if found != wanted if is_last else not found.startswith(_split_reasoning(wanted)[0]):
                raise self._not_append_only(
                    f"reasoning in an answer changes the text around it: {_difference(wanted, found)}"
                )

    def _not_append_only(
        self, how: str, remedy: str = "Set policy.chat_template to one that leaves past messages alone."
    ) -> EngineError:
        return EngineError(
            f"the chat template of {self._name} is not append-only: {how}; "
            f"so log-probabilities of earlier turns would not hold. {remedy}"
        )


def _split_reasoning(text: str) -> tuple[str, str]:
    """`text` without blanks and a mark of reasoning (opened, or empty and closed) at its end, and those."""
    base = text.rstrip()
    for mark, end in REASONING:
        inner = base.removesuffix(end).rstrip()
        if inner.endswith(mark):
            base = inner.removesuffix(mark).rstrip()
            break
    return base, text[len(base) :]


def _around(text: str, answers: Sequence[str]) -> list[str]:
    """The text before, between and after the answers."""
    pieces = []
    for answer in answers:
        before, _, text = text.partition(answer)
        pieces.append(before)
    return [*pieces, text]


def _difference(expected: str, got: str) -> str:
    """Where two texts part."""
    at = next(
        (at for at, (one, other) in enumerate(zip(expected, got, strict=False)) if one != other),
        min(len(expected), len(got)),
    )
    start = max(at - SHOWN // 3, 0)
    return f"{expected[start : start + SHOWN]!r} becomes {got[start : start + SHOWN]!r}"
