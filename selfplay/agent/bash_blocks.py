"""The tool-call format `bash-block`: one fenced block of bash in each reply, as mini-swe-agent has it.

It calls bash and submit only: a block that holds nothing but the command `submit` and names ends the episode.
Text may stand before and after the block, and blocks of other languages too. Pure.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from selfplay.agent.tool_format import FENCE, NO_CALL, BadFormat, Call, CannotWrite, after_reasoning

OPENING = re.compile(r"^(`{3,})(?:bash|sh|shell)[ \t]*\r?$", re.MULTILINE)
ANY_FENCE = re.compile(r"^(`{3,})([^\n`]*)$", re.MULTILINE)
RULE = (
    f"A reply holds exactly one block: a line {FENCE}bash, a script, a line {FENCE}. To end your work the "
    "script is `submit`, with the names of files if the task asks for them."
)


class BashBlockFormat:
    can_call = ("bash", "submit")
    answers_as_tool = False  # in transcripts of this format the user shows what a block printed

    def parse(self, text: str, tools: Sequence[str]) -> Call:
        def read(rest: str) -> Call:
            offset = text.count("\n", 0, len(text) - len(rest))
            blocks = _blocks(rest, offset)
            if not blocks:
                raise BadFormat(f"{NO_CALL}. {RULE}")
            if len(blocks) > 1:
                lines = ", ".join(str(rest.count("\n", 0, start) + 1 + offset) for start, _ in blocks[:5])
                raise BadFormat(f"More than one block of bash: lines {lines} of the reply open one. {RULE}")
            start, script = blocks[0]
            tool, body = _meant(script)
            if tool not in tools:
                raise BadFormat(f"There is no tool {tool!r}. {RULE}")
            return Call(tool, body, rest[:start].strip())

        return after_reasoning(text, OPENING, read)

    def format(self, call: Call) -> str:
        if call.tool not in self.can_call:
            raise CannotWrite(f"agent.tool_format = 'bash-block' calls bash and submit only, not {call.tool}")
        script = call.body
        if call.tool == "submit":
            script = shlex.join(["submit", *(name for name in call.body.split("\n") if name.strip())])
        elif _is_submit(script):
            raise CannotWrite("a script of bash cannot begin with the command `submit`")
        longest = max((len(fence[1]) for fence in ANY_FENCE.finditer(script)), default=0)
        fence = "`" * max(len(FENCE), longest + 1)
        return f"{fence}bash\n{script}\n{fence}"


BASH_BLOCK = BashBlockFormat()


def _blocks(text: str, offset: int) -> list[tuple[int, str]]:
    """(where it begins, script) of each block of bash. Raises BadFormat for a block that is not closed."""
    found = []
    at = 0
    while opening := ANY_FENCE.search(text, at):
        closing = re.compile(rf"^`{{{len(opening[1])},}}[ \t]*\r?$", re.MULTILINE).search(text, opening.end())
        if closing is None:
            line = text.count("\n", 0, opening.start()) + 1 + offset
            raise BadFormat(
                f"The block that line {line} of the reply opens is not closed by {opening[1]}. If the script "
                f"itself holds such a line, open and close the block with more backticks. {RULE}"
            )
        if OPENING.match(text, opening.start()):
            found.append(
                (opening.start(), text[opening.end() + 1 : max(closing.start() - 1, opening.end() + 1)])
            )
        at = closing.end()
    return found


def _is_submit(script: str) -> bool:
    return re.match(r"\s*submit(?:\s|$)", script) is not None


def _meant(script: str) -> tuple[str, str]:
    """(tool, body). Raises BadFormat."""
    if not _is_submit(script):
        return "bash", script
    if "\n" in script.strip():
        raise BadFormat(f"`submit` stands alone in its block; run other commands before, in another. {RULE}")
    try:
        return "submit", "\n".join(shlex.split(script)[1:])
    except ValueError as error:
        raise BadFormat(f"The names after `submit` cannot be read: {error}. {RULE}") from None
