"""Draft tokens for speculative decoding, by n-gram lookup: agents often repeat commands, paths and lines.

The engine verifies every draft token. A wrong draft costs time and never changes a token.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 3  # on recorded episodes 2, 3 and 4 gave equally good drafts
_MAX_ENTRIES = 1 << 18  # of the shared table, which is emptied when it is full

Gram = tuple[int, ...]


class RowDrafts:
    """Drafts for one row, from its own tokens first and from the shared table second."""

    def __init__(self, table: DraftTable, token_ids: list[int]) -> None:
        """token_ids: the row's list, which the engine appends to."""
        self._table = table
        self._ids = token_ids
        self._indexed = GRAM  # grams that end before this index are in `_ends`
        self._ends: dict[Gram, int] = {}  # gram -> index of the token after it

    def guess(self, max_tokens: int) -> list[int]:
        """Return at most `max_tokens` tokens that may follow."""
        ids = self._ids
        for end in range(self._indexed, len(ids)):  # the last gram has no continuation yet
            self._ends[tuple(ids[end - GRAM : end])] = end
        self._indexed = max(self._indexed, len(ids))
        gram = tuple(ids[-GRAM:])
        first = self._ends.get(gram)
        return ids[first : first + max_tokens] if first is not None else self._table.guess(gram, max_tokens)


class DraftTable:
    """What followed each gram in the latest finished text that contained it. Shared by all rows."""

    def __init__(self) -> None:
        self._ends: dict[Gram, tuple[Sequence[int], int]] = {}  # gram -> text, index of the token after it

    def guess(self, gram: Gram, max_tokens: int) -> list[int]:
        text, end = self._ends.get(gram, ((), 0))
        return list(text[end : end + max_tokens])

    def learn(self, token_ids: Sequence[int], first: int = 0) -> None:
        """Add `token_ids` from index `first` on. Earlier turns of a conversation are in the table already."""
        if len(self._ends) > _MAX_ENTRIES:
            self._ends.clear()
        text = tuple(token_ids[max(first - GRAM, 0) :])
        for end in range(GRAM, len(text)):
            self._ends[text[end - GRAM : end]] = (text, end)
