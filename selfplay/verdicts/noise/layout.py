"""Comments, docstrings and blank lines: what the compiler does not read, or nobody reads at run time."""

from __future__ import annotations

import ast
import math
import re
from bisect import bisect_right
from collections.abc import Iterator

from selfplay.verdicts.noise.source import (
    FUNCTIONS,
    Edit,
    Source,
    docstring,
    first_line,
)
from selfplay.verdicts.noise.words import Words

READS_DOCS = frozenset({"__doc__", "doctest", "getdoc", "inspect", "pydoc", "cleandoc"})
READ_NAME = re.compile("[tp]_|do_|test")  # of functions whose docstrings libraries read
KEPT_COMMENT = re.compile(rb"#\s*(!|type:|.*coding[:=])")
# Bytes of added text: from a line to more than a repair's own size, each scale as likely.
LEAST_ADDED, MOST_ADDED = 200, 40_000
MOST_BLANK_LINES = 61


def change_docstrings(source: Source, words: Words) -> list[Edit]:
    """Docstrings of functions changed, removed and added, if nothing in the repository reads any."""
    if words.vocabulary.reads_docs or not source.names.isdisjoint(READS_DOCS):
        return []
    edits: list[Edit] = []
    for node in source.nodes:
        if isinstance(node, FUNCTIONS) and not node.decorator_list and not READ_NAME.match(node.name):
            edits += _with_docstring(source, node, words)
    return edits


def _with_docstring(
    source: Source, node: ast.FunctionDef | ast.AsyncFunctionDef, words: Words
) -> Iterator[Edit]:
    found, share = docstring(node), words.random.random()
    text = f'"""{words.sentence()}"""'.encode()
    if found is None:
        indentation = source.indentation(node.body[0])
        if share < 0.3 and indentation is not None:
            start = source.starts[first_line(node.body[0]) - 1]
            yield Edit(start, start, indentation + text + source.end_of_line)
    elif b">>>" not in source.text(found):
        if share < 0.3 and len(node.body) > 1:
            yield Edit(*source.span(found), b"pass")
        elif share < 0.7:
            yield Edit(*source.span(found), text)


def change_comments(source: Source, words: Words) -> list[Edit]:
    """Comments changed, removed and added at the ends of lines. The first two lines may have the encoding."""
    share = words.random.uniform(0.02, 0.3)
    numbers = {bisect_right(source.starts, start): (start, end) for start, end in source.comments}
    edits: list[Edit] = []
    for number, line in enumerate(source.lines[2:], 3):
        if number in numbers:
            edits += _with_comment(source, number, numbers[number], words)
            continue
        end = source.starts[number - 1] + len(line.rstrip())
        can_end_so = line.strip() and not line.rstrip().endswith(b"\\") and not source.end_of_text(end)
        if can_end_so and words.random.random() < share:
            edits.append(Edit(end, end, f"  # {words.sentence()}".encode()))
    return edits


def _with_comment(source: Source, number: int, comment: tuple[int, int], words: Words) -> Iterator[Edit]:
    """The comment of a line, kept, changed or removed. Without it, a line of its own goes too."""
    (start, end), first = comment, source.starts[number - 1]
    chance = words.random.random()
    if KEPT_COMMENT.match(source.data[start:end]) or chance < 0.3:
        return
    if chance < 0.65:
        yield Edit(start, end, f"# {words.sentence()}".encode())
    elif not source.data[first:start].strip():
        yield Edit(first, source.starts[number], b"")
    else:
        yield Edit(start, end, b"")


def add_lines(source: Source, words: Words) -> list[Edit]:
    """Blank lines and lines of comment before statements."""
    scale = words.random.uniform(math.log(LEAST_ADDED), math.log(MOST_ADDED))
    left, blank = int(math.exp(scale)), words.random.randint(1, MOST_BLANK_LINES)
    places = [
        node
        for node in source.nodes
        if isinstance(node, ast.stmt) and source.indentation(node) is not None and first_line(node) > 2
    ]
    known = set(map(id, places))
    body = [node for node in source.module.body if id(node) in known]
    if not places:
        return []
    edits = []
    while left > 0 or blank > 0:
        # Half of them before top-level statements, so that large parts of a file keep their distances.
        place = words.random.choice(body if body and words.random.random() < 0.5 else places)
        indentation, start = source.indentation(place) or b"", source.starts[first_line(place) - 1]
        count = words.random.randint(0, min(blank, 7)) if blank > 0 else 0
        lines = [b""] * count + [
            indentation + f"# {words.sentence()}".encode()
            for _ in range(words.random.randint(1, 6) if left > 0 else 0)
        ]
        blank -= max(count, 1)
        left -= sum(len(line) for line in lines)
        edits.append(Edit(start, start, b"".join(line + source.end_of_line for line in lines)))
    return edits
