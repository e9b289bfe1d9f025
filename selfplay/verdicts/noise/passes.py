"""All changes, in order, on the bytes of one file.

Each change reads what the one before it made. One whose text does not parse is left out.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable

from selfplay.source.syntax import parse_module, source_encoding
from selfplay.verdicts.noise import expressions, layout, names, statements
from selfplay.verdicts.noise.source import Edit, Source
from selfplay.verdicts.noise.words import Vocabulary, Words

BOM = b"\xef\xbb\xbf"
Change = Callable[[Source, Words], list[Edit]]
# Changes of one group read the same text. Of two that meet in it, the one that begins first is made.
CHANGES: tuple[tuple[Change, ...], ...] = (
    (names.reorder,),
    (expressions.exchange_branches,),
    (expressions.choose_values, expressions.mirror_comparisons, expressions.respell_constants),
    (expressions.return_through_locals, statements.in_functions),
    (names.rename_locals, statements.dead_blocks, layout.change_docstrings),
    (layout.change_comments, layout.add_lines),
)
MAX_BYTES = 1 << 20  # of a file that gets all changes; a larger one gets a block at its end


def with_noise(content: bytes, seed: int, vocabulary: Vocabulary) -> bytes:
    """The file with noise; as it is if it does not parse. Equal arguments give equal bytes."""
    if parse_module(content) is None:
        return content
    generator = random.Random(b"%d:" % seed + content)
    for change in (_with_all, _with_end):
        changed = change(content, generator, vocabulary)
        if changed is not None and changed != content and parse_module(changed) is not None:
            return changed
    return content


def takes_all_changes(content: bytes) -> bool:
    """Whether a file gets all changes, and not only a block at its end or none. Three draws are made."""
    vocabulary = Vocabulary.of([content])
    drawn = (_with_all(content, random.Random(seed), vocabulary) for seed in range(3))
    return all(new is not None and new != content and parse_module(new) is not None for new in drawn)


def _with_all(content: bytes, generator: random.Random, vocabulary: Vocabulary) -> bytes | None:
    """All changes. None if the encoding or the line ends are unusual."""
    encoding = source_encoding(".py", content)
    mark = BOM if content.startswith(BOM) else b""
    try:
        data = content.removeprefix(mark).decode(*encoding).encode()
    except UnicodeError:
        return None
    if len(data) > MAX_BYTES or data.count(b"\r") != data.count(b"\r\n"):
        return None
    source = Source.parse(data)
    if source is None:
        return None
    words = Words(generator, vocabulary)
    for group in CHANGES:
        words.taken = source.names
        edits = [edit for change in group for edit in change(source, words)]
        source = Source.parse(source.edited(edits)) or source
    try:
        return mark + source.data.decode().encode(*encoding)
    except UnicodeError:
        return None


def _with_end(content: bytes, generator: random.Random, vocabulary: Vocabulary) -> bytes | None:
    """A block that never runs at the end."""
    words = Words(generator, vocabulary)
    block = Source(b"", ast.Module([], []))
    added = block.edited(statements.dead_blocks(block, words))
    return content + (b"" if content.endswith(b"\n") else b"\n") + added
