"""All changes, in order, on the bytes of one file.

Each change reads what the one before it made. One whose text does not parse is left out.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable
from functools import lru_cache

from selfplay.source.syntax import no_collection, parse_module, source_encoding
from selfplay.verdicts.noise import expressions, layout, names, statements
from selfplay.verdicts.noise.source import Edit, Source
from selfplay.verdicts.noise.words import Vocabulary, Words

BOM = b"\xef\xbb\xbf"
DECLARES = re.compile(rb"coding[:=]")  # PEP 263
Change = Callable[[Source, Words], list[Edit]]
# Changes of one group read the same text. Of two that meet in it, the one that begins first is made.
CHANGES: tuple[tuple[Change, ...], ...] = (
    (names.reorder,),
    (expressions.exchange_branches,),
    (expressions.choose_values, expressions.mirror_comparisons, expressions.respell_constants),
    (expressions.return_through_locals, statements.in_functions),
    (
        *(names.rename_locals, statements.dead_blocks),
        *(layout.change_docstrings, layout.change_comments, layout.add_lines),
    ),
)
MAX_BYTES = 1 << 20  # of a file that gets all changes; a larger one gets a block at its end
MAX_KEPT_BYTES = 1 << 17  # of a file whose syntax tree is kept; a tree takes a hundred times the memory


@lru_cache(maxsize=64)
def with_noise(content: bytes, seed: int, vocabulary: Vocabulary) -> bytes:
    """The file with noise; as it is if it does not parse. Equal arguments give equal bytes."""
    generator = random.Random(b"%d:" % seed + content)
    changed = _with_all(content, generator, vocabulary)
    if changed is not None:
        return changed
    if parse_module(content) is None:
        return content
    longer = _with_end(content, generator, vocabulary)
    return content if parse_module(longer) is None else longer


@lru_cache(maxsize=128)
def takes_all_changes(content: bytes) -> bool:
    """Whether a file gets all changes, and not only a block at its end or none. Three draws are made."""
    vocabulary = Vocabulary.of([content])
    return all(_with_all(content, random.Random(seed), vocabulary) is not None for seed in range(3))


def _with_all(content: bytes, generator: random.Random, vocabulary: Vocabulary) -> bytes | None:
    """All changes. None if the encoding or the line ends are unusual, or if nothing changes."""
    encoding = source_encoding(".py", content)
    mark = BOM if content.startswith(BOM) else b""
    try:
        data = content.removeprefix(mark).decode(*encoding).encode()
    except UnicodeError:
        return None
    if len(data) > MAX_BYTES or data.count(b"\r") != data.count(b"\r\n"):
        return None
    source = _first(data)
    if source is None or not _is_as_declared(content):
        return None
    words = Words(generator, vocabulary, source.names)
    with no_collection():
        for group in CHANGES:
            edits = [edit for change in group for edit in change(source, words)]
            if edits:
                source = Source.parse(source.edited(edits)) or source
    try:
        changed = mark + source.data.decode().encode(*encoding)
    except UnicodeError:
        return None
    return changed if changed != content and _is_as_declared(changed) else None


def _first(data: bytes) -> Source | None:
    """The parsed file. A small one is kept, since most are changed more than once."""
    return _kept(data) if len(data) <= MAX_KEPT_BYTES else Source.parse(data)


_kept = lru_cache(maxsize=4)(Source.parse)


def _is_as_declared(content: bytes) -> bool:
    """Whether a file whose text parses does so as bytes, if it declares its encoding."""
    first_lines = content.split(b"\n", 2)[:2]
    return not any(map(DECLARES.search, first_lines)) or parse_module(content) is not None


def _with_end(content: bytes, generator: random.Random, vocabulary: Vocabulary) -> bytes:
    """A block that never runs at the end."""
    words = Words(generator, vocabulary)
    block = Source(b"", ast.Module([], []))
    added = block.edited(statements.dead_blocks(block, words))
    return content + (b"" if content.endswith(b"\n") else b"\n") + added
