"""The tools that a policy may call: what a call's body means, running it in the sandbox, what it gave back.

How a call is written is `tool_format`, how its output is shown `observations`. A tool has the members of
Tool, and `agent.tools` names it (see selfplay/parts.py). Invariant: the host never opens a path that the
policy named.

A call has one text, its body, or named arguments: that is the format's choice. A tool says how its arguments
become a body, so that it reads only bodies, but for edit: its arguments are clear where a body may not be.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

from selfplay import parts
from selfplay.agent.arguments import BODY, Parameter, checked, one_line, schema
from selfplay.agent.editing import EditError, apply_one_of
from selfplay.agent.tool_format import (
    FENCE,
    Argument,
    BadFormat,
    Call,
    CannotWrite,
    Span,
    ToolFormat,
    listed,
    unfenced,
)
from selfplay.errors import PartError
from selfplay.sandbox.base import WORKSPACE, ExecResult, Sandbox
from selfplay.settings.playing import AgentSettings
from selfplay.source.syntax import source_encoding

NUMBERED_PATH = re.compile(r"(.+?):([0-9]{1,9})")
MARKS = ("<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE")
EDIT_FORMAT = (
    "The body of edit: `path` or `path:LINE`, `<<<<<<< SEARCH`, old text, `=======`, new text, "
    "`>>>>>>> REPLACE`, each on its own line."
)
FILE_TIMEOUT_S = 20.0
MAX_EDIT_BYTES = 1 << 20
MAX_READINGS = 8
SHELLS = ("", "bash", "sh", "shell", "console")
SHOWN_AROUND = 3  # lines before and after an edit

# Runs in the sandbox: writes stdin to the file, except if the file compiles as Python and the new text does
# not.
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


SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Action:
    """One call.

    Of edit: path, line (None if none was named), search, replace. Of create: path, and the content in
    `replace`.
    others: further readings (search, replace) of an edit whose texts hold a line `=======`, like the mark
    between them. The file decides which one is meant.
    """

    tool: str
    body: str
    thought: str = ""
    path: str = ""
    line: int | None = None
    search: str = ""
    replace: str = ""
    others: tuple[tuple[str, str], ...] = ()

    @property
    def readings(self) -> tuple[tuple[str, str], ...]:
        return ((self.search, self.replace), *self.others)

    @property
    def names(self) -> tuple[str, ...]:
        """The files that a submit call names."""
        return tuple(line.strip() for line in self.body.split("\n") if line.strip())


@dataclass(frozen=True)
class Observation:
    """A call's output. is_error: the call itself failed (a refused edit, a timeout), not the command that
    it ran.
    """

    text: str
    exit_code: int
    is_error: bool = False
    timed_out: bool = False


class Tool(Protocol):
    """One tool. `changes_files`: it only changes files, and a refused call leaves the workspace as it was.

    A tool may have two more members: `parameters`, a tuple of Parameter, and `body`, a function of the
    arguments by name that returns the body or raises BadFormat. Without them its only argument is the body.
    """

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str:
        """Shown in the prompt; "" for the tools that the prompts describe already."""
        ...

    @property
    def changes_files(self) -> bool: ...

    def read(self, call: Call) -> Action:
        """What the call asks for. Raises BadFormat, whose message tells the policy what to write instead."""
        ...

    def run(self, action: Action, sandbox: Sandbox, settings: AgentSettings) -> Observation:
        """Do it. Raises what `Sandbox.run` raises; every fault of the call is an Observation."""
        ...


# ---- the standard tools


@dataclass(frozen=True)
class Bash:
    name: str = "bash"
    description: str = ""
    changes_files: bool = False
    parameters: tuple[Parameter, ...] = (Parameter("command"),)

    def body(self, arguments: Mapping[str, Argument]) -> str:
        return str(arguments["command"])

    def read(self, call: Call) -> Action:
        script, language = unfenced(call.body)
        if language not in SHELLS:
            raise BadFormat(
                f"The body of bash is a fenced block of {language[:20]!r}; write a script for bash."
            )
        if not script.strip():
            raise BadFormat("The body of bash is empty; write a script.")
        return Action(call.tool, script, call.thought)

    def run(self, action: Action, sandbox: Sandbox, settings: AgentSettings) -> Observation:
        result = sandbox.run(action.body, timeout_s=settings.command_timeout_s)
        return _observe(result, settings.command_timeout_s)


@dataclass(frozen=True)
class Edit:
    name: str = "edit"
    description: str = ""
    changes_files: bool = True
    parameters: tuple[Parameter, ...] = (
        Parameter("path"),
        Parameter("line", "integer", required=False),
        Parameter("search"),
        Parameter("replace"),
    )

    def body(self, arguments: Mapping[str, Argument]) -> str:
        line = arguments.get("line")
        texts = (str(arguments["search"]), str(arguments["replace"]))
        return format_edit(one_line(arguments), int(line) if line is not None else None, *texts)

    def read(self, call: Call) -> Action:
        if call.arguments is not None:
            return self._read_arguments(call, call.arguments)
        where, lines = _edit_lines(call.body)
        inner = [line.rstrip() for line in lines[1:-1]]
        if len(lines) < 2 or (lines[0].rstrip(), lines[-1].rstrip()) != (MARKS[0], MARKS[2]):
            raise BadFormat(
                f"The lines after the path must begin with `{MARKS[0]}` and end with `{MARKS[2]}`. "
                f"{EDIT_FORMAT}"
            )
        if MARKS[0] in inner or MARKS[2] in inner:
            raise BadFormat(
                f"More than one `{MARKS[0]}` or `{MARKS[2]}`: a call holds one edit. To write such a line "
                f"into a file, use bash. {EDIT_FORMAT}"
            )
        middles = [number for number, line in enumerate(inner, 1) if line == MARKS[1]]
        if not middles:
            raise BadFormat(f"No line `{MARKS[1]}` is between the old and the new text. {EDIT_FORMAT}")
        if len(middles) > MAX_READINGS:
            raise BadFormat(
                f"{len(middles)} lines are `{MARKS[1]}`, so where the old text ends is not clear; "
                f"change this file with bash. {EDIT_FORMAT}"
            )
        readings = [("\n".join(lines[1:at]), "\n".join(lines[at + 1 : -1])) for at in middles]
        readings = [reading for reading in readings if reading[0]]
        if not readings:
            raise BadFormat("The search text of edit is empty; to write a whole file use create.")
        # With as many such lines before as after: a heading that is replaced by one.
        search, replace = readings.pop((len(readings) - 1) // 2 if len(readings) % 2 else 0)
        path, line = _numbered(where)
        return Action("edit", call.body, call.thought, path, line, search, replace, tuple(readings))

    def _read_arguments(self, call: Call, arguments: Mapping[str, Argument]) -> Action:
        search, replace = str(arguments["search"]), str(arguments["replace"])
        if not search:
            raise BadFormat("The argument search of edit is empty; to write a whole file use create.")
        path, line = str(arguments["path"]).strip(), arguments.get("line")
        if line is None:
            path, line = _numbered(path)
        at = None if line is None else int(line)
        return Action("edit", call.body, call.thought, path, at, search, replace)

    def run(self, action: Action, sandbox: Sandbox, settings: AgentSettings) -> Observation:
        return _edit(action, sandbox, shown=settings.prompt_style == "full")


@dataclass(frozen=True)
class Create:
    name: str = "create"
    description: str = ""
    changes_files: bool = True
    parameters: tuple[Parameter, ...] = (Parameter("path"), Parameter("content"))

    def body(self, arguments: Mapping[str, Argument]) -> str:
        return f"{one_line(arguments)}\n{arguments['content']}"

    def read(self, call: Call) -> Action:
        path, _, content = call.body.partition("\n")
        if not path.strip():
            raise BadFormat("The first line of create is the path of the file.")
        content = content + "\n" if content and not content.endswith("\n") else content
        return Action(call.tool, call.body, call.thought, path.strip(), replace=content)

    def run(self, action: Action, sandbox: Sandbox, settings: AgentSettings) -> Observation:
        path = _absolute(action.path)
        command = f"mkdir -p -- {shlex.quote(posixpath.dirname(path))} && cat > {shlex.quote(path)}"
        content = action.replace.encode("utf-8", "surrogateescape")
        result = sandbox.run(command, timeout_s=FILE_TIMEOUT_S, stdin=content)
        if result.exit_code:
            return _refused(result, f"{action.path} was not written")
        return Observation(f"wrote {action.path}", 0)


@dataclass(frozen=True)
class Submit:
    """Ends the episode; the agent does that itself."""

    name: str = "submit"
    description: str = ""
    changes_files: bool = False
    parameters: tuple[Parameter, ...] = (Parameter("files", required=False),)

    def body(self, arguments: Mapping[str, Argument]) -> str:
        return str(arguments.get("files", ""))

    def read(self, call: Call) -> Action:
        return Action(call.tool, call.body, call.thought)

    def run(self, action: Action, sandbox: Sandbox, settings: AgentSettings) -> Observation:
        raise ValueError("submit is not run in a sandbox")


BASH, EDIT, CREATE, SUBMIT = Bash(), Edit(), Create(), Submit()


# ---- the tools of an episode


@dataclass(frozen=True)
class Toolbox:
    """The tools that an episode may use, by name, and how calls are written."""

    format: ToolFormat
    tools: Mapping[str, Tool]
    settings: Mapping[str, str]  # tool name -> its name in `agent.tools`

    def parse(self, text: str) -> Action:
        """The one call that ends `text`.

        Raises BadFormat; its message tells the policy what to write instead.
        """
        call = self.format.parse(text, tuple(self.tools))
        if call.arguments is not None:
            arguments = checked(call.tool, call.arguments, _parameters(self.tools[call.tool]))
            with parts.blamed("agent.tools", self.settings[call.tool], BadFormat):
                call = replace(call, arguments=arguments, body=_body(self.tools[call.tool], arguments))
        if "\0" in call.body:
            raise BadFormat("The call holds a null character, which no file name or script can.")
        if SURROGATE.search(call.body):
            raise BadFormat("The call holds half of a surrogate pair; write the character itself.")
        with parts.blamed("agent.tools", self.settings[call.tool], BadFormat):
            return self.tools[call.tool].read(call)

    def write(self, tool: str, **arguments: Argument) -> str:
        """The text of a call in this format. Raises CannotWrite where the format has no way to write it."""
        named = arguments if self._of_format("has_arguments", False) else None
        call = Call(tool, _body(self.tools[tool], arguments), arguments=named)
        if named is None:
            try:
                self.tools[tool].read(call)
            except BadFormat as fault:
                raise CannotWrite(f"the tool would not read it: {fault}") from fault
        return self.format.format(call)

    def deciding(self, text: str) -> list[Span]:
        """The characters of `text` that choose the tool, and those that its call writes into a file."""
        found: list[Span] = self._of_format("deciding", lambda _: [])(text)
        return found

    def execute(self, action: Action, sandbox: Sandbox, settings: AgentSettings) -> Observation:
        """Run a call. Raises what `Sandbox.run` raises; every fault of the call is an Observation."""
        with parts.blamed("agent.tools", self.settings[action.tool]):
            return self.tools[action.tool].run(action, sandbox, settings)

    def changes_files(self, tool: str) -> bool:
        return tool in self.tools and self.tools[tool].changes_files

    @property
    def descriptions(self) -> str:
        """What the prompts do not say about these tools; "" if they say all."""
        return "\n\n".join(tool.description for tool in self.tools.values() if tool.description)

    @property
    def schemas(self) -> tuple[Mapping[str, Any], ...]:
        """Each tool as a JSON schema of a function, in formats whose calls name their arguments."""
        if not self._of_format("has_arguments", False):
            return ()
        return tuple(schema(tool.name, tool.description, _parameters(tool)) for tool in self.tools.values())

    @property
    def marks(self) -> tuple[str, ...]:
        """What a chat template writes that describes calls in this format."""
        return tuple(self._of_format("marks", ()))

    @property
    def tags(self) -> tuple[str, ...]:
        """Lines around a call that may be control tokens."""
        return tuple(self._of_format("tags", ()))

    @property
    def answering(self) -> tuple[str, ...]:
        """The tools whose answers have the role "tool", where the chat template has it."""
        return tuple(self.tools) if self._of_format("answers_as_tool", True) else ()

    def _of_format(self, member: str, default: Any) -> Any:
        return getattr(self.format, member, default)


def toolbox(settings: AgentSettings) -> Toolbox:
    """The tools and the format that the settings name. Raises PartError if the format cannot call a tool."""
    return _toolbox(settings.tool_format, settings.tools)


@cache
def _toolbox(tool_format: str, names: tuple[str, ...]) -> Toolbox:
    tools: dict[str, Tool] = {}
    origins = {}
    for name in names:
        tool: Tool = parts.load("agent.tools", name)
        tools[tool.name] = tool
        origins[tool.name] = name
    box = Toolbox(parts.load("agent.tool_format", tool_format), tools, origins)
    can_call = getattr(box.format, "can_call", None)
    missing = [name for name in tools if can_call is not None and name not in can_call]
    if missing:
        left = ", ".join(f'"{origins[name]}"' for name in tools if name not in missing)
        raise PartError(
            f"agent.tool_format = {tool_format!r} has no way to call {listed(missing)}. "
            f"Set agent.tools = [{left}], or choose another format."
        )
    return box


def _parameters(tool: Tool) -> tuple[Parameter, ...]:
    return getattr(tool, "parameters", BODY)


def _body(tool: Tool, arguments: Mapping[str, Argument]) -> str:
    body: str = tool.body(arguments) if hasattr(tool, "body") else str(arguments.get("body", ""))
    return body


def _numbered(where: str) -> tuple[str, int | None]:
    """(path, line) of `path` or `path:LINE`."""
    found = NUMBERED_PATH.fullmatch(where)
    return (found[1], int(found[2])) if found else (where, None)


STANDARD = toolbox(AgentSettings())


def parse_action(text: str) -> Action:
    """The one call that ends `text`, of the standard tools in the standard format. Raises BadFormat."""
    return STANDARD.parse(text)


def format_edit(path: str, line: int | None, search: str, replace: str) -> str:
    """The body of an edit call."""
    where = path if line is None else f"{path}:{line}"
    return "\n".join([where, MARKS[0], search, MARKS[1], *([replace] if replace else []), MARKS[2]])


def _edit_lines(body: str) -> tuple[str, list[str]]:
    """The path of an edit, and the lines from its first mark to its last: blank lines and a fence around them
    are left out.

    Raises BadFormat.
    """
    where, _, rest = unfenced(body.strip())[0].strip().partition("\n")
    if not where.strip() or where.startswith((FENCE, MARKS[0])):
        raise BadFormat(f"The path of the file is missing. {EDIT_FORMAT}")
    rest = rest.strip("\n")
    if rest.startswith(FENCE) and rest.rstrip().endswith(f"\n{FENCE}"):
        rest = rest.partition("\n")[2].rstrip().removesuffix(FENCE)
    return where.strip(), rest.strip("\n").split("\n")


# ---- acting


def _observe(result: ExecResult, timeout_s: float) -> Observation:
    text = result.text.removesuffix("\n")
    if result.truncated:
        text += "\n[more output than is kept was cut]"
    if result.timed_out:
        text += f"\n[stopped after {timeout_s:g} s; every process it started was ended]"
    return Observation(text.removeprefix("\n"), result.exit_code, result.timed_out, result.timed_out)


def _edit(action: Action, sandbox: Sandbox, shown: bool) -> Observation:
    path, at_line = _absolute(action.path), action.line
    read = _read_file(path, sandbox)
    if read.exit_code and at_line is not None:  # the name of the file itself may end with a number
        whole = f"{path}:{at_line}"
        again = _read_file(whole, sandbox)
        if not again.exit_code:
            read, path, at_line = again, whole, None
    quoted = shlex.quote(path)
    if read.truncated:
        return Observation(
            f"{action.path} is larger than {MAX_EDIT_BYTES} bytes; change it with bash.", 1, True
        )
    if read.exit_code:
        if read.timed_out or read.text.strip():
            return _refused(read, f"{action.path} cannot be read")
        return Observation(no_such_file(action.path, _files(sandbox)), 1, True)
    encoding = source_encoding(path, read.output)
    old = read.output.decode(*encoding)
    try:
        new, replacement = apply_one_of(old, action.readings, at_line)
        content = new.encode(*encoding)
    except EditError as error:
        return Observation(f"{action.path} is unchanged. {error}", 1, True)
    except UnicodeEncodeError as error:
        missing = f"Its encoding, {encoding[0]}, has no {new[error.start]!r}."
        return Observation(f"{action.path} is unchanged. {missing}", 1, True)
    write = (
        f"python3 -I -S -c {shlex.quote(WRITE_PYTHON)} {quoted}"
        if path.endswith(".py")
        else f"cat > {quoted}"
    )
    written = sandbox.run(write, timeout_s=FILE_TIMEOUT_S, stdin=content)
    if written.exit_code:
        return _refused(written, f"{action.path} is unchanged")
    at = len(_common_start(old, new))
    line = new.count("\n", 0, at) + 1
    return Observation(
        _around(new, line, replacement.count("\n")) if shown else f"edited {action.path}:{line}", 0
    )


def _read_file(path: str, sandbox: Sandbox) -> ExecResult:
    quoted = shlex.quote(path)
    return sandbox.run(
        f"test -f {quoted} && cat -- {quoted}", timeout_s=FILE_TIMEOUT_S, output_bytes=MAX_EDIT_BYTES
    )


def _absolute(path: str) -> str:
    """Relative to the workspace, wherever the shell is.

    Nothing is resolved here: the sandbox is the boundary.
    """
    return posixpath.normpath(posixpath.join(WORKSPACE, path))


def _files(sandbox: Sandbox) -> list[str]:
    """Files of the workspace by name, as many as fit, without those in hidden folders."""
    found = sandbox.run(
        f"cd {WORKSPACE} && find . -name '.?*' -prune -o -type f -print 2>/dev/null | LC_ALL=C sort",
        timeout_s=FILE_TIMEOUT_S,
        output_bytes=MAX_EDIT_BYTES,
    )
    return [line.removeprefix("./") for line in found.text.split("\n")]


def no_such_file(path: str, files: Iterable[str]) -> str:
    """The answer to an edit of a file that is not there. It names the one of `files` whose name is nearest:
    the one with the longest common beginning and end, if they are half of the path or more.
    """
    wanted = posixpath.relpath(_absolute(path), WORKSPACE)

    def common(file: str) -> int:
        start = len(_common_start(wanted, file))
        return start + len(_common_start(wanted[start:][::-1], file[start:][::-1]))

    nearest = max(files, key=common, default="")
    hint = f" The nearest name is {nearest}" if 2 * common(nearest) >= len(wanted) else ""
    return f"{path} is not a file that can be read.{hint}"


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
