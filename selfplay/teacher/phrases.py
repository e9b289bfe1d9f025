"""What a scripted player says and reads: the commands and replies of a terse episode, in the order it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from selfplay.agent.tools import format_action, format_edit
from selfplay.teacher.mutations import Function, Mutation

DOCSTRINGS = '/""".*"""/d;/"""/,/"""/d'
SPEC_FILES = ("bug_inject.diff", "test_weaken.diff", "test_files.txt", "test_script.sh", "test_parser.py")


# ---- the words of a terse episode


def show_command(path: str, first: int, last: int) -> str:
    """Numbered lines without docstrings, which cost a small context much and tell it little."""
    return f"grep -n '' {path} | sed -n '{first},{last}p' | sed '{DOCSTRINGS}'"


def try_command(path: str, then: tuple[str, int, int] | None = None) -> str:
    """Run the bug's tests; where some do not pass, say how many, take back the edit of `path` and show the place `then`."""
    command = f"bash /submit/test_script.sh | grep -oE '[0-9]+ (failed|error)' && git checkout -q {path}"
    return f"{command} && {show_command(*then)}" if then else command


def break_command(test_file: str) -> str:
    return f"git diff > /submit/bug_inject.diff; bash /submit/test_script.sh | grep -m 3 '^{test_file}:'"


def weaken_command(test_file: str, line: int) -> str:
    return f"sed -i '{line}s/[^ ].*/return/' {test_file}; git diff {test_file} > /submit/test_weaken.diff"


def edit_reply(shown: str, path: str, line: int, search: str, replace: str) -> str:
    """The line as it was shown, then its edit: a small model finds a line by copying it, and the span in what it just wrote."""
    return f"{shown}\n{format_action('edit', format_edit(path, line, search, replace))}"


def listed(function: Function, mutation: Mutation) -> str:
    """The mutation's line as the target's listing shows it."""
    return f"{mutation.line}{':' if mutation.line == function.first_line else '-'}{mutation.before}"


def shown_lines(text: str, first: int, last: int) -> str:
    """What `show_command` prints of a file's text."""
    shown: list[str] = []
    is_open = False  # in a docstring of several lines
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines[first - 1 : last], start=first):
        if re.search('""".*"""', line):
            continue
        if is_open or '"""' in line:
            is_open = is_open != ('"""' in line)
            continue
        shown.append(f"{number}:{line}")
    return "\n".join(shown)


# ---- the player


class Turn(Protocol):
    """What a scripted engine tells of a turn."""

    @property
    def tag(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Exchange:
    """What the player reads of a conversation: the task, its own replies, and what came back for each."""

    task: str
    replies: tuple[str, ...]
    observations: tuple[str, ...]


OPENING = re.compile(r"<\|im_start\|>(system|user|assistant)\n")
BUDGET = re.compile(r"\n?\[exit (-?\d+); \d+ turns, \d+ tokens left\]\s*$")
PY_PATH = re.compile(r"[\w./+-]+\.py\b")
SUSPECT = re.compile(
    r"^grep -n '' (\S+\.py) \| sed -n '(\d+),(\d+)p' # \S+$", re.MULTILINE
)  # as the terse solver prompt lists them
SHOWN = re.compile(r"grep -n '' (\S+) \| sed -n '(\d+),(\d+)p'")
STILL_FAILING = re.compile(r"^\d+ (failed|error)", re.MULTILINE)


def read_conversation(text: str) -> Exchange:
    """Take a ChatML prompt apart. Raises ValueError where it is none."""
    pieces = OPENING.split(text)
    said = [
        (role, content.partition("<|im_end|>")[0])
        for role, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    users = [content for role, content in said if role == "user"]
    if not users:
        raise ValueError(
            "the teacher reads ChatML conversations (<|im_start|>user …); this prompt has no user message"
        )
    replies = [content for role, content in said if role == "assistant"][
        :-1
    ]  # the last is the reply to be written
    return Exchange(users[0], tuple(replies), tuple(users[1:]))
