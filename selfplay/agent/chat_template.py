"""The text of a chat template around the contents of a conversation, found by rendering it with placeholders.

It turns nothing into tokens; that is the job of `chat`.

Invariant: what is found here only ever grows a conversation at its end. A template that changes earlier text
when a turn is added is refused, with one exception: reasoning. Templates of thinking models open it in the
prompt (`<think>`), and most leave it out of earlier turns. An episode keeps every token as it was sampled, so
the reasoning stays; only the frame around the answers must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from selfplay.agent.tool_format import REASONING
from selfplay.errors import EngineError

SYSTEM, USER = "SELFPLAYSYSTEMTEXT", "SELFPLAYUSERTEXT"
ANSWERS = ("SELFPLAYANSWERTEXT", "SELFPLAYSECONDANSWER", "SELFPLAYTHIRDANSWER")
NEXTS = ("SELFPLAYNEXTTEXT", "SELFPLAYSECONDNEXT", "SELFPLAYTHIRDNEXT")
REASON = "SELFPLAYREASONING"
SYSTEM_REMEDY = (
    "Use a template that keeps the system text at the start, or one that raises an error for the role "
    "'system': then the text opens the first user message."
)
SHOWN = 60  # characters of a difference that a message quotes

Trim = Callable[[str], str]


class ChatTemplate:
    """The pieces of one tokenizer's template. Raises EngineError, with the reason, if it cannot be used.

    first        (before, after) the first user text, up to where the assistant begins
    with_system  (before the system text, between, after the user text); None if the template has no such role
    closing      what follows an answer, up to the next user text
    bridge_end   what follows that text, up to where the assistant begins again
    opened       the mark of reasoning that the prompt opens, like "<think>\\n"; "" without one
    trim_system, trim_user  what the template does to blanks around these texts
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._has_parts = False
        self._has_parts = self._needs_parts()
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
        self.closing, self.bridge_end = self._split(rest, NEXTS[0])
        if not self.bridge_end.endswith(self._generation):
            raise self._not_append_only("the prompt of a later turn ends otherwise than the first one")
        self.with_system = self._system_pieces()
        self.trim_user = self._trim(lambda text: self._render("", text), USER)
        self.trim_system: Trim = str
        if self.with_system:
            self.trim_system = self._trim(lambda text: self._render(text, USER), SYSTEM)

    def check(self) -> None:
        """Raise EngineError unless a conversation of several turns only grows at its end."""
        for count in range(1, len(ANSWERS) + 1):
            self._check_growth("", count)
        for count in range(1, len(ANSWERS) + 1) if self.with_system else ():
            self._check_growth(SYSTEM, count)
        self._check_reasoning()

    # ---- finding the pieces

    def _render(self, system: str, *texts: str) -> str:
        """The template's text around a system text (left out if empty), then user and assistant in turn."""
        roles = ("system", *("user", "assistant") * len(texts))
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if self._has_parts else text}
            for role, text in zip(roles, (system, *texts), strict=False)
            if text
        ]
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise EngineError(
                f"the chat template of {self._name} cannot be rendered: {type(error).__name__}: {error}"
            ) from error

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

    def _trim(self, render: Callable[[str], str], text: str) -> Trim:
        """How the template trims `text`. render: the template's text around it."""
        padded = f" \n{text}\n "
        before, after = self._split(render(text), text)
        got = render(padded)
        trims: tuple[Trim, ...] = (str, str.strip, str.rstrip, str.lstrip)
        return next((trim for trim in trims if got == before + trim(padded) + after), str)

    # ---- checking several turns

    def _turns(self, answers: Sequence[str]) -> str:
        """What is expected after the first user text of a conversation with these answers."""
        bridge = self.bridge_end.removesuffix(self._generation)
        turns = "".join(
            f"{self._shown}{answer}{self.closing}{following}{bridge}"
            for answer, following in zip(answers, NEXTS, strict=False)
        )
        return turns + self._generation

    def _check_growth(self, system: str, count: int) -> None:
        answers = ANSWERS[:count]
        texts = [text for pair in zip(answers, NEXTS, strict=False) for text in pair]
        got = self._render(system, USER, *texts)
        if system and self.with_system:
            before, between, after = self.with_system
            head = f"{before}{SYSTEM}{between}{USER}{after}"
        else:
            head = USER.join(self.first)
        expected = head.removesuffix(self._generation) + self._turns(answers)
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

    def _check_reasoning(self) -> None:
        """Reasoning in the answers may be kept or left out; nothing else may change."""
        mark, end = next((marks for marks in REASONING if marks[0] in self.opened), REASONING[0])
        answers = [f"{mark}\n{REASON}\n{end}\n\n{answer}" for answer in ANSWERS]
        texts = [text for pair in zip(answers, NEXTS, strict=True) for text in pair]
        got = self._render("", USER, *texts)
        expected = USER.join(self.first).removesuffix(self._generation) + self._turns(ANSWERS)
        # The text between two answers begins with the end of one and ends with the prompt of the next.
        around = list(zip(_around(got, ANSWERS), _around(expected, ANSWERS), strict=True))
        for found, wanted in around:
            is_last = wanted is around[-1][1]
            if found != wanted if is_last else not found.startswith(_split_reasoning(wanted)[0]):
                raise self._not_append_only(
                    f"reasoning in an answer changes the text around it: {_difference(wanted, found)}"
                )

    def _not_append_only(
        self, how: str, remedy: str = "Use a template that leaves past messages alone."
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
