"""The commands and replies of terse episodes, in the order an episode uses them.

The warm start trains on these texts, so they must not change: a changed text needs a new policy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile

from selfplay.agent.tools import STANDARD, Toolbox
from selfplay.teacher.functions import Function
from selfplay.teacher.mutations import Mutation

# (path, first line, last line) of lines to show. Lines count from 1.
Listing = tuple[str, int, int]

DOCSTRINGS = '/""".*"""/d;/"""/,/"""/d'
SPEC_FILES = ("bug_inject.diff", "test_weaken.diff", "test_files.txt", "test_script.sh", "test_parser.py")


def show_command(path: str, first: int, last: int) -> str:
    """Show numbered lines without docstrings, which fill a small context and help little."""
    return f"grep -n '' {path} | sed -n '{first},{last}p' | sed '{DOCSTRINGS}'"


def try_command(path: str, next_listing: Listing | None = None) -> str:
    """Run the bug's tests. If some fail, print how many, undo the edit of `path` and show `next_listing`."""
    command = f"bash /submit/test_script.sh | grep -oE '[0-9]+ (failed|error)' && git checkout -q {path}"
    return f"{command} && {show_command(*next_listing)}" if next_listing else command


def break_command(test_file: str) -> str:
    """Save the bug's diff, run the tests and print the first failing lines of `test_file`."""
    return f"git diff > /submit/bug_inject.diff; bash /submit/test_script.sh | grep -m 3 '^{test_file}:'"


def weaken_command(test_file: str, line: int) -> str:
    """Replace `line` of the test file by `return`, and save that diff."""
    return f"sed -i '{line}s/[^ ].*/return/' {test_file}; git diff {test_file} > /submit/test_weaken.diff"


@dataclass(frozen=True)
class LineEdit:
    """An edit of one line. shown: the line as it was shown."""

    shown: str
    path: str
    line: int
    search: str
    replace: str

    def reply(self, tools: Toolbox = STANDARD, whole_line: bool = False) -> str:
        """The call, in the format of `tools`.

        Without `whole_line` the line stands before the call, which replaces a part of it: a small policy
        finds the line by copying it, then the part in what it just wrote. With `whole_line` the call replaces
        the line: a pretrained policy copies lines well, and seldom knows how much of one occurs once. The
        number stays, since the policy finds the text behind it (docs/log.md, 2026-11-30).
        """
        if whole_line:
            return self._whole(tools, self._text.replace(self.search, self.replace, 1))
        call = tools.write("edit", path=self.path, line=self.line, search=self.search, replace=self.replace)
        return f"{self.shown}\n{call}"

    def opening(self, tools: Toolbox = STANDARD, whole_line: bool = False) -> str:
        """The part of the reply that says which line it is."""
        if whole_line:
            pairs = zip(self.reply(tools, whole_line), self._whole(tools, ""), strict=False)
            return "".join(character for character, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return f"{self.shown}\n"

    @property
    def _text(self) -> str:
        """The line as it was shown, without its number."""
        return self.shown.lstrip("0123456789")[1:]

    def _whole(self, tools: Toolbox, replace: str) -> str:
        return tools.write("edit", path=self.path, line=self.line, search=self._text, replace=replace)


def listed(function: Function, mutation: Mutation) -> str:
    """The mutation's line, without the bug, as the injector prompt lists it."""
    return f"{mutation.line}{':' if mutation.line == function.first_line else '-'}{mutation.before}"


def shown_lines(text: str, first: int, last: int) -> str:
    """What `show_command` prints for a file with this `text`."""
    shown: list[str] = []
    in_docstring = False  # of several lines
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines[first - 1 : last], start=first):
        if re.search('""".*"""', line):
            continue
        if in_docstring or '"""' in line:
            in_docstring = in_docstring != ('"""' in line)
            continue
        shown.append(f"{number}:{line}")
    return "\n".join(shown)
