"""The text of test logs: the short failure of one test, and a log without the lines that name given tests.

Outcomes are not read here but by an artifact's parser. Invariant: logs and ids are hostile input. The work
for a line is bounded, and no control character gets into a short failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MAX_LINE = 300  # characters
MAX_ODD_NAMES = 200  # names without a word in them: each is looked for in every line
ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]")
TITLE = re.compile(r"_{2,} (.+?) _{2,}")


def without_lines_naming(log: bytes, ids: Iterable[str]) -> bytes:
    """`log` without the lines that hold the last name of one of `ids`.

    The last name of `tests/test_a.py::T::test_x[1]` is `test_x`. Of names without a word in them, only the
    first MAX_ODD_NAMES count: a hostile log may have very many lines and names.
    """
    names: set[str] = set()
    for test_id in ids:
        words = re.findall(r"[^\W\d]\w*", test_id.partition("[")[0])
        names.add(words[-1] if words else test_id)
    odd = sorted(name for name in names if not re.fullmatch(r"\w+", name))[:MAX_ODD_NAMES]
    kept = []
    for line in log.split(b"\n"):
        text = line.decode("utf-8", "replace")
        words = [*re.findall(r"[^\W\d]\w*", text), *re.findall(r"\w+", text)]
        if names.isdisjoint(words) and not any(name in text for name in odd):
            kept.append(line)
    return b"\n".join(kept)


def short_failure(log: bytes, test_id: str, max_lines: int = 12) -> str:
    """The end of the traceback of `test_id` in a pytest log, or the last lines of the log if there is none.

    Escape sequences and control characters are removed.
    """
    lines = [_harmless(line) for line in log.decode("utf-8", "replace").split("\n")]
    section = _section(lines, test_id)
    kept = [line for line in section or lines if line.strip()]
    return "\n".join(kept[-max_lines:])


def _section(lines: Sequence[str], test_id: str) -> list[str]:
    """The lines below the title of `test_id`.

    If titles are equal, the section that names the test's file, else the last one.
    """
    path, _, name = test_id.partition("::")
    titles = {
        name.replace("::", "."),
        f"ERROR collecting {path}",
        f"ERROR at setup of {name.replace('::', '.')}",
    }
    found: list[list[str]] = []
    current: list[str] | None = None
    for line in lines:
        title = TITLE.fullmatch(line.strip())
        if title:
            current = [] if title[1] in titles or title[1].partition(" [")[0] in titles else None
            if current is not None:
                found.append(current)
        elif _is_rule(line.strip()):
            current = None
        elif current is not None:
            current.append(line)
    named = [section for section in found if any(path in line for line in section)]
    return (named or found or [[]])[-1]


def _is_rule(line: str) -> bool:
    """True for `=== … ===`. A regular expression takes cubic time on a line that ends differently."""
    return len(line) >= 6 and line.startswith("===") and line.endswith("===")


def _harmless(line: str) -> str:
    text = ESCAPE.sub("", line.rstrip())
    return "".join(char if char.isprintable() else " " if char == "\t" else "" for char in text)[:MAX_LINE]
