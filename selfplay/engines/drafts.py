"""Guesses the next tokens from where the last ones came before: agents repeat commands, paths and lines more than they invent.

Leaves checking to the engine, so a guess can cost time but never change a token (prompt lookup decoding with exact verification).
"""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 3  # measured on recorded episodes: 2, 3 and 4 guess alike
_MOST_PLACES = 1 << 18  # of all texts together; then the table starts anew

Gram = tuple[int, ...]


class RowDrafts:
    """What followed each run of GRAM tokens in one text, and in the texts that the table has seen."""

    def __init__(self, table: DraftTable, token_ids: list[int]) -> None:
        self._table = table
        self._ids = token_ids  # grows outside; indexed as far as `_indexed`
        self._indexed = GRAM
        self._places: dict[Gram, int] = {}

    def guess(self, most: int) -> list[int]:
        """At most `most` tokens that may follow."""
        ids = self._ids
        for end in range(self._indexed, len(ids)):  # the last run has no continuation yet
            self._places[tuple(ids[end - GRAM : end])] = end
        self._indexed = max(self._indexed, len(ids))
        gram = tuple(ids[-GRAM:])
        place = self._places.get(gram)
        return ids[place : place + most] if place is not None else self._table.guess(gram, most)


class DraftTable:
    """What followed each run of GRAM tokens in the latest text that held it."""

    def __init__(self) -> None:
        self._places: dict[Gram, tuple[Sequence[int], int]] = {}

    def guess(self, gram: Gram, most: int) -> list[int]:
        text, place = self._places.get(gram, ((), 0))
        return list(text[place : place + most])

    def learn(self, token_ids: Sequence[int], first: int = 0) -> None:
        """Remember `token_ids` from index `first` on."""
        if len(self._places) > _MOST_PLACES:
            self._places.clear()
        text = tuple(
            token_ids[max(first - GRAM, 0) :]
        )  # not the whole: a conversation comes again with each of its turns
        for end in range(GRAM, len(text)):
            self._places[text[end - GRAM : end]] = (text, end)
