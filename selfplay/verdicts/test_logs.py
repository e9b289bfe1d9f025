"""Test logs as text: one test's failure in short, and a log without the lines that name tests. Logs are hostile."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MAX_LINE = 300
ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]")
TITLE = re.compile(r"_{2,} (.+?) _{2,}")
MAX_ODD_NAMES = 200  # names without a word in them, each looked for in every line


def without_lines_naming(log: bytes, ids: Iterable[str]) -> bytes:
    """`log` without every line that holds the last name of one of `ids` (`test_x` of `tests/test_a.py::T::test_x[1]`).

    Of names that hold no word only the first MAX_ODD_NAMES are looked for: lines and names may be very many, and both are hostile.
    """
    names: set[str] = set()
    for test_id in ids:
        words = re.findall(r"[^\W\d]\w*", test_id.partition("[")[0])
        names.add(words[-1] if words else test_id)
    odd = sorted(name for name in names if not re.fullmatch(r"\w+", name))[:MAX_ODD_NAMES]
    kept = []
    for line in log.splitlines(keepends=True):
        text = line.decode("utf-8", "replace")
        words = [*re.findall(r"[^\W\d]\w*", text), *re.findall(r"\w+", text)]
        if names.isdisjoint(words) and not any(name in text for name in odd):
            kept.append(line)
    return b"".join(kept)


# ---- a failing test's own words


def short_failure(log: bytes, test_id: str, max_lines: int = 12) -> str:
    """The end of `test_id`'s traceback in a pytest log, else the log's last lines. Escapes and control characters are taken out."""
    lines = [_harmless(line) for line in log.decode("utf-8", "replace").split("\n")]
    section = _section(lines, test_id)
    kept = [line for line in section or lines if line.strip()]
    return "\n".join(kept[-max_lines:])


def _section(lines: Sequence[str], test_id: str) -> list[str]:
    """The lines under the title of `test_id`; of several equal titles the one that names its file, else the last."""
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
    """`=== … ===`. A pattern for this takes cubic time on a line that ends otherwise."""
    return len(line) >= 6 and line.startswith("===") and line.endswith("===")


def _harmless(line: str) -> str:
    text = ESCAPE.sub("", line.rstrip())
    return "".join(char if char.isprintable() else " " if char == "\t" else "" for char in text)[:MAX_LINE]
