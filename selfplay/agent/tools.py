"""The policy's four tools: reading a call from its text, editing, running in the sandbox, and showing what came back.

Parsing, editing and rendering are pure; `execute` acts. Invariant: the host never opens a path that the policy named.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from selfplay.config import AgentSettings
from selfplay.sandbox.base import WORKSPACE, ExecResult, Sandbox

TOOLS = ("bash", "edit", "create", "submit")
CHANGING = ("edit", "create")  # a refused one leaves the workspace as it was
OPENING = re.compile(r"^<tool: ([^\n<>]*)>[ \t]*$", re.MULTILINE)
CLOSING = re.compile(r"^</tool>[ \t]*$", re.MULTILINE)
NUMBERED_PATH = re.compile(r"(.+?):([0-9]{1,9})")
MARKS = ("<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE")
FORMAT = "A reply ends with exactly one call: a line `<tool: NAME>`, the body, a line `</tool>`. NAME is bash, edit, create or submit."
EDIT_FORMAT = "The body of edit: `path` or `path:LINE`, `<<<<<<< SEARCH`, old text, `=======`, new text, `>>>>>>> REPLACE`, each on its own line."
FILE_TIMEOUT_S = 20.0
MAX_EDIT_BYTES = 1 << 20
SHOWN_AROUND = 3  # lines before and after an edit
MARKER_TOKENS = 26  # what the note on cut text costs where each character is a token

# Run in the sandbox: writes stdin to the file, unless that turns Python that compiles into Python that does not.
WRITE_PYTHON = """\
import sys
path, new = sys.argv[1], sys.stdin.buffer.read()
def fault(source):
    try:
        compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
import warnings
warnings.simplefilter("ignore")
found = fault(new)
with open(path, "rb") as file:
    old = file.read()
if found and not fault(old):
    print(found)
    sys.exit(9)
with open(path, "wb") as file:
    file.write(new)
"""


class BadFormat(Exception):
    """The text holds no call that can be run; the message is shown to the policy."""


class EditError(Exception):
    """An edit that does not fit the file; the message is shown to the policy."""


@dataclass(frozen=True)
class Action:
    """One call. path, line, search, replace: of edit (line None where none was named) and create (replace is the content)."""

    tool: str
    body: str
    thought: str = ""
    path: str = ""
    line: int | None = None
    search: str = ""
    replace: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The files that a submit call names."""
        return tuple(line.strip() for line in self.body.split("\n") if line.strip())


@dataclass(frozen=True)
class Observation:
    """What a call gave back. is_error: the call itself failed (a refused edit, a timeout), not the command that it ran."""

    text: str
    exit_code: int
    is_error: bool = False
    timed_out: bool = False


# ---- reading a call


def format_action(tool: str, body: str) -> str:
    """The text of a call, as `parse_action` reads it."""
    return f"<tool: {tool}>\n{body}\n</tool>" if body else f"<tool: {tool}>\n</tool>"


def format_edit(path: str, line: int | None, search: str, replace: str) -> str:
    """The body of an edit call."""
    where = path if line is None else f"{path}:{line}"
    return "\n".join([where, MARKS[0], search, MARKS[1], *([replace] if replace else []), MARKS[2]])


def parse_action(text: str) -> Action:
    """The one call that ends `text`. Raises BadFormat, whose message tells the policy what to write instead."""
    openings, closings = list(OPENING.finditer(text)), list(CLOSING.finditer(text))
    if not openings:
        raise BadFormat(f"No tool call found. {FORMAT}")
    if not closings or closings[-1].start() < openings[0].end():
        raise BadFormat(f"The call is not closed. {FORMAT}")
    if len(openings) > 1 or len(closings) > 1:
        raise BadFormat(f"More than one call. {FORMAT}")
    if text[closings[0].end() :].strip():
        raise BadFormat(f"There is text after the call. {FORMAT}")
    tool = openings[0][1].strip()
    if tool not in TOOLS:
        raise BadFormat(f"There is no tool {tool[:40]!r}. {FORMAT}")
    body = text[openings[0].end() : closings[0].start()].removeprefix("\n").removesuffix("\n")
    thought = text[: openings[0].start()].strip()
    if "\0" in body:
        raise BadFormat("The call holds a null character, which no file name or script can.")
    if tool == "edit":
        return _parse_edit(body, thought)
    if tool == "create":
        path, _, content = body.partition("\n")
        if not path.strip():
            raise BadFormat("The first line of create is the path of the file.")
        return Action(
            tool,
            body,
            thought,
            path.strip(),
            replace=content + "\n" if content and not content.endswith("\n") else content,
        )
    if tool == "bash" and not body.strip():
        raise BadFormat("The body of bash is empty; write a script.")
    return Action(tool, body, thought)


def _parse_edit(body: str, thought: str) -> Action:
    lines = body.split("\n")
    marks = [[number for number, line in enumerate(lines) if line.rstrip() == mark] for mark in MARKS]
    if not lines[0].strip() or [len(found) for found in marks] != [1, 1, 1]:
        raise BadFormat(EDIT_FORMAT)
    first, middle, last = (found[0] for found in marks)
    if not (first == 1 and first < middle < last == len(lines) - 1):
        raise BadFormat(EDIT_FORMAT)
    where = lines[0].strip()
    numbered = NUMBERED_PATH.fullmatch(where)
    path, line = (numbered[1], int(numbered[2])) if numbered else (where, None)
    search, replace = "\n".join(lines[first + 1 : middle]), "\n".join(lines[middle + 1 : last])
    if not search:
        raise BadFormat("The search text of edit is empty; to write a whole file use create.")
    return Action("edit", body, thought, path, line, search, replace)


# ---- editing


def apply_edit(text: str, search: str, replace: str, line: int | None = None) -> str:
    """`text` with the one occurrence of `search` replaced; with `line` (1-based), the one that starts in that line.

    Raises EditError saying what to do. Lines that end in CRLF are matched as they are shown, without it, and stay such.
    """
    as_shown = "\r\n" in text and "\r" not in search
    places = _shown_occurrences(text, search) if as_shown else _occurrences(text, search)
    starts = list(places)
    if line is not None:
        begin, end = _line_span(text, line)
        here = [start for start in starts if begin <= start < end]
        if not here:
            elsewhere = (
                f" It starts in line {_listed(text, starts)}." if starts else " It is nowhere in the file."
            )
            raise EditError(f"The search text does not start in line {line}.{elsewhere}")
        if len(here) > 1:
            raise EditError(
                f"The search text occurs {len(here)} times in line {line}; give more of the line."
            )
        starts = here
    if not starts:
        raise EditError("The search text is not in the file; copy it exactly, indentation included.")
    if len(starts) > 1:
        raise EditError(
            f"The search text occurs {len(starts)} times, in lines {_listed(text, starts)}; name one as path:LINE, or give more of it."
        )
    start, end = starts[0], places[starts[0]]
    if as_shown:
        replace = replace.replace("\r\n", "\n").replace("\n", _line_break(text, start))
    if text[start:end] == replace:
        raise EditError("The replacement equals the search text, so nothing would change.")
    return text[:start] + replace + text[end:]


def _occurrences(text: str, search: str) -> dict[int, int]:
    """Where `search` starts and ends, overlapping occurrences included: an edit must not depend on the direction of the search."""
    places: dict[int, int] = {}
    at = text.find(search)
    while at >= 0:
        places[at] = at + len(search)
        at = text.find(search, at + 1)
    return places


def _shown_occurrences(text: str, search: str) -> dict[int, int]:
    """The same where each line break of `search` may be CRLF in the text: files mix them, and what the policy reads does not tell."""
    pattern = r"(?:\r\n|(?<!\r)\n)".join(re.escape(part) for part in search.split("\n"))
    return {found.start(): found.end(1) for found in re.finditer(f"(?=({pattern}))", text)}


def _line_break(text: str, at: int) -> str:
    """How the line at `at` ends; the last one, if it does not, as lines do in a file that has CRLF."""
    end = text.find("\n", at)
    return "\r\n" if end < 0 or text[:end].endswith("\r") else "\n"


def _line_span(text: str, line: int) -> tuple[int, int]:
    """The characters of a line, its line break included."""
    begin = 0
    for _ in range(line - 1):
        begin = text.find("\n", begin) + 1
        if begin == 0:
            break
    if line < 1 or (begin == 0 and line > 1) or begin >= max(len(text), 1):
        last = text.removesuffix("\n").count("\n") + 1
        raise EditError(f"There is no line {line}; the last is line {last}.")
    end = text.find("\n", begin)
    return begin, len(text) if end < 0 else end + 1


def _listed(text: str, starts: Sequence[int]) -> str:
    numbers = [str(text.count("\n", 0, start) + 1) for start in starts[:5]]
    return ", ".join(numbers) + (", …" if len(starts) > 5 else "")


# ---- acting


def execute(action: Action, sandbox: Sandbox, settings: AgentSettings) -> Observation:
    """Run a bash, edit or create call. Raises what `Sandbox.run` raises; every fault of the call is an Observation."""
    if action.tool == "bash":
        result = sandbox.run(action.body, timeout_s=settings.command_timeout_s)
        return _observe(result, settings.command_timeout_s)
    if action.tool == "edit":
        return _edit(action, sandbox, shown=settings.prompt_style == "full")
    if action.tool == "create":
        path = _absolute(action.path)
        command = f"mkdir -p -- {shlex.quote(posixpath.dirname(path))} && cat > {shlex.quote(path)}"
        result = sandbox.run(
            command, timeout_s=FILE_TIMEOUT_S, stdin=action.replace.encode("utf-8", "surrogateescape")
        )
        return (
            _refused(result, f"{action.path} was not written")
            if result.exit_code
            else Observation(f"wrote {action.path}", 0)
        )
    raise ValueError(f"{action.tool!r} is not run in a sandbox")


def _observe(result: ExecResult, timeout_s: float) -> Observation:
    text = result.text.removesuffix("\n")
    if result.truncated:
        text += "\n[more output than is kept was cut]"
    if result.timed_out:
        text += f"\n[stopped after {timeout_s:g} s; every process it started was ended]"
    return Observation(text.removeprefix("\n"), result.exit_code, result.timed_out, result.timed_out)


def _edit(action: Action, sandbox: Sandbox, shown: bool) -> Observation:
    path = _absolute(action.path)
    quoted = shlex.quote(path)
    read = sandbox.run(
        f"test -f {quoted} && cat -- {quoted}", timeout_s=FILE_TIMEOUT_S, output_bytes=MAX_EDIT_BYTES
    )
    if read.truncated:
        return Observation(
            f"{action.path} is larger than {MAX_EDIT_BYTES} bytes; change it with bash.", 1, True
        )
    if read.exit_code:
        return _refused(read, f"{action.path} is not a file that can be read")
    old = read.output.decode("utf-8", "surrogateescape")
    try:
        new = apply_edit(old, action.search, action.replace, action.line)
    except EditError as error:
        return Observation(f"{action.path} is unchanged. {error}", 1, True)
    write = (
        f"python3 -I -S -c {shlex.quote(WRITE_PYTHON)} {quoted}"
        if path.endswith(".py")
        else f"cat > {quoted}"
    )
    written = sandbox.run(write, timeout_s=FILE_TIMEOUT_S, stdin=new.encode("utf-8", "surrogateescape"))
    if written.exit_code:
        return _refused(written, f"{action.path} is unchanged")
    at = len(_common_start(old, new))
    line = new.count("\n", 0, at) + 1
    return Observation(
        _around(new, line, action.replace.count("\n")) if shown else f"edited {action.path}:{line}", 0
    )


def _absolute(path: str) -> str:
    """Paths are relative to the workspace, wherever the shell went. Nothing is resolved here: the sandbox is the boundary."""
    return posixpath.normpath(posixpath.join(WORKSPACE, path))


def _refused(result: ExecResult, what: str) -> Observation:
    reason = result.text.strip() or f"exit code {result.exit_code}"
    return Observation(f"{what}: {reason}", 1, True, result.timed_out)


def _common_start(old: str, new: str) -> str:
    return posixpath.commonprefix([old, new])


def _around(text: str, line: int, more: int) -> str:
    """The changed lines and a few around them, as `grep -n` numbers them."""
    lines = text.split("\n")
    first, last = max(line - SHOWN_AROUND, 1), min(line + more + SHOWN_AROUND, len(lines))
    return "\n".join(f"{number}:{lines[number - 1]}" for number in range(first, last + 1))


# ---- showing


def render_observation(output: str, exit_code: int, turns_left: int, tokens_left: int) -> str:
    """What the policy reads after a call: the output, then what it has left."""
    return f"{output}\n[exit {exit_code}; {turns_left} turns, {tokens_left} tokens left]"


@cache
def _is_hidden(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def make_harmless(text: str) -> str:
    """`text` with control characters, escapes and invisible format characters spelled out (\\x1b, \\u202e)."""
    text = text.replace("\r\n", "\n")
    hidden = {character for character in set(text) if _is_hidden(character)}
    if not hidden:
        return text
    return text.translate(
        {ord(c): f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in hidden}
    )


def cap_output(text: str, max_tokens: int, spans: Callable[[str], list[tuple[int, int]]]) -> str:
    """`text`, or its head and tail around a note on what was cut, in about `max_tokens` tokens.

    spans: for each token of a text, the characters (first, one past last) that it covers.
    """
    window = 16 * max_tokens  # no tokenizer here packs more characters than that into a token, on average
    if len(text) <= 2 * window and len(spans(text)) <= max_tokens:
        return text
    room = max(max_tokens - MARKER_TOKENS, 6)
    front, back = spans(text[:window]), spans(text[-window:])
    head = text[: front[min((room + 1) // 2, len(front)) - 1][1]]
    tail_start = max(len(text) - min(window, len(text)) + back[max(len(back) - room // 2, 0)][0], len(head))
    tail = text[tail_start:]
    whole_head, whole_tail = head.rpartition("\n")[0], tail.partition("\n")[2]
    if whole_head and whole_tail:
        cut = text.count("\n", len(whole_head), len(text) - len(whole_tail)) - 1
        return f"{whole_head}\n[{cut} lines cut]\n{whole_tail}"
    return f"{head}\n[{tail_start - len(head)} characters cut]\n{tail}"
