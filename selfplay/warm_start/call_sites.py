"""Lines of test files that call a function, real or invented, and the diffs that restore them.

Runs no test. Every random choice comes from the caller's generator.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.teacher.functions import Function

CONTEXT_LINES = 3  # of a diff, before and after the changed line
# Values in invented assertions and errors.
VALUES = (
    "None",
    "True",
    "False",
    "0",
    "1",
    "2",
    "3",
    "10",
    "-1",
    "[]",
    "['a', 'b']",
    "'abc'",
    "''",
    "'foo'",
    "(1, 2)",
    "{}",
    "12",
    "'a b'",
    "[1, 2, 3]",
)


@dataclass(frozen=True)
class CallSite:
    """One line of a test file. Lines count from 1; `lines` are all lines of the file."""

    path: str
    line: int
    lines: Sequence[str]

    @property
    def text(self) -> str:
        return self.lines[self.line - 1]


def invent_call_site(function: Function, generator: random.Random) -> CallSite:
    """A test file that asserts something about the function. All its other lines are empty."""
    module = function.path.rpartition("/")[2].removesuffix(".py")
    module = function.path.split("/")[-2] if module == "__init__" and "/" in function.path else module
    path = generator.choice(
        [f"tests/test_{module.strip('_')}.py", f"test_{module.strip('_')}.py", f"tests/{module}_test.py"]
    )
    call = f"{generator.choice(['', module + '.', 'obj.'])}{function.short_name}({generator.choice(VALUES)})"
    test = generator.choice(
        [
            f"    assert {call} == {generator.choice(VALUES)}",
            f"        self.assertEqual({call}, {generator.choice(VALUES)})",
            f"        assert {call}",
        ]
    )
    line = generator.randint(8, 400)
    lines = [""] * (line + 3)
    indent = " " * (len(test) - len(test.lstrip()) - 4)
    lines[line - 2] = f"{indent}def test_{function.short_name}({'self' if 'self' in test else ''}):"
    lines[line - 1] = test
    return CallSite(path, line, lines)


def enclosing_test(site: CallSite, generator: random.Random) -> str:
    """Name of the test function around the line; an invented name if there is none."""
    for text in reversed(site.lines[: site.line - 1]):
        found = re.match(r"\s*def (test\w*)", text)
        if found:
            return found[1]
    return "test_" + generator.choice(["basic", "simple", "values", "main"])


def specification(site: CallSite, generator: random.Random) -> str:
    """The diff that puts the line back where a weakened test has `return`."""
    indent = site.text[: len(site.text) - len(site.text.lstrip())]
    first = max(site.line - CONTEXT_LINES, 1)
    last = min(site.line + CONTEXT_LINES, len(site.lines) - 1)
    body = []
    for number in range(first, last + 1):
        if number == site.line:
            body += [f"-{indent}return", f"+{site.text}"]
        else:
            body.append(f" {site.lines[number - 1]}")
    count = last - first + 1
    context = _enclosing_class(site.lines, first) if generator.random() < 0.8 else ""
    return (
        f"diff --git a/{site.path} b/{site.path}\n--- a/{site.path}\n+++ b/{site.path}\n"
        f"@@ -{first},{count} +{first},{count} @@{context}\n" + "\n".join(body) + "\n"
    )


def _enclosing_class(lines: Sequence[str], line: int) -> str:
    """What git prints behind a hunk's header: the start of the last top-level definition above `line`."""
    for text in reversed(lines[: line - 1]):
        if re.match(r"(def|class) ", text):
            return " " + text[:60].rstrip()
    return ""
