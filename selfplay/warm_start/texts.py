"""The training texts of a stage, sampled from its mix and packed into batches.

Leaves fabricated texts to `fabrication` and played ones to `executed`. Invariant: a batch depends only on the
settings, the seed and the step (and on PYTHONHASHSEED, see `packages`), so a resumed stage repeats none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfplay.warm_start.settings import EXECUTED, WarmStartSettings

if TYPE_CHECKING:
    from selfplay.warm_start.documents import Document
    from selfplay.warm_start.fabrication import EpisodeMaker
    from selfplay.warm_start.packages import Package
    from selfplay.warm_start.sft import PackedBatch

# Played episodes by kind (EXECUTED), for the stages whose mix has that kind.
Played = Mapping[str, "Sequence[Document]"]


class Batches:
    """Batches of texts from a mix; call it with a step, from 0. Makes the texts of STEPS steps at a time.

    maker: makes an EpisodeMaker from a seed.
    mix: relative frequency of each kind of text.
    """

    STEPS = 12

    def __init__(
        self,
        maker: Callable[[int], EpisodeMaker],
        mix: Mapping[str, float],
        settings: WarmStartSettings,
        seed: int,
        played: Played,
    ) -> None:
        self._maker, self._mix, self._settings, self._seed, self._played = maker, mix, settings, seed, played
        self._chunk, self._batches = -1, list[Any]()

    def __call__(self, step: int) -> PackedBatch:
        chunk = step // self.STEPS
        if chunk != self._chunk:
            self._batches = self._pack(chunk)
            self._chunk = chunk
        batch: PackedBatch = self._batches[step % self.STEPS % len(self._batches)]
        return batch

    def _pack(self, chunk: int) -> list[PackedBatch]:
        """Enough texts for STEPS batches, packed."""
        from selfplay.warm_start.sft import pack

        settings = self._settings
        room = settings.rows * settings.sequence_tokens * self.STEPS
        documents = list[Any]()
        maker = self._maker(hash((self._seed, chunk)) & 0x7FFFFFFF)
        for document in sampled_documents(maker, self._mix, settings, self._played):
            documents.append(document.with_shown_weight(settings.shown_weight))
            room -= len(document.token_ids)
            if room <= 0:
                break
        return pack(documents, settings.rows, settings.sequence_tokens, seed=chunk)


def sampled_documents(
    maker: EpisodeMaker, mix: Mapping[str, float], settings: WarmStartSettings, played: Played
) -> Iterator[Document]:
    """An endless sequence of texts from a mix. Leaves out texts that are longer than a row."""
    kinds, shares = list(mix), list(mix.values())
    while True:
        kind = maker.random.choices(kinds, shares)[0]
        document = (
            maker.random.choice(played[kind]) if kind in EXECUTED else _fabricated(maker, kind, settings)
        )
        if len(document.token_ids) <= settings.sequence_tokens:
            yield document


def _fabricated(maker: EpisodeMaker, kind: str, settings: WarmStartSettings) -> Document:
    if kind == "copy":
        return maker.copying(settings.shape.vocabulary, settings.sequence_tokens)
    if kind == "source":
        return maker.source(settings.sequence_tokens)
    return maker.transcript(kind).document()


def tokenizer_texts(
    packages: Sequence[Package], limits: Any, count: int, generator: random.Random
) -> Iterator[str]:
    """Up to `count` texts: a quarter source files, the others episodes.

    Leaves out texts that are not ASCII: a vocabulary of 1,024 tokens has no room for other characters.
    """
    from selfplay.warm_start.fabrication import EpisodeMaker
    from selfplay.warm_start.transcripts import CharacterChat

    maker = EpisodeMaker(packages, CharacterChat(), limits, generator)  # type: ignore[arg-type]
    for number in range(count):
        package, function, _ = maker.functions.sample()
        if number % 4 == 0:
            text = package.shown(function.path)[:5000]
        else:
            text = "".join(map(str, maker.transcript(("injector", "solver")[number % 2]).ids))
        if text.isascii():
            yield text
