"""What a stage trains on: texts drawn by a mix, fabricated or played, packed into batches.

Leaves fabricating to training.fabrication and playing to `executed`. Invariant: a batch is a pure function of settings, seed and step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfplay.warm_start.settings import EXECUTED, WarmStartSettings

if TYPE_CHECKING:
    from selfplay.warm_start.fabrication import EpisodeMaker, Package, Transcript
    from selfplay.warm_start.sft import Document, PackedBatch

Played = Mapping[
    str, "Sequence[Document]"
]  # the kept episodes by kind (EXECUTED), for the stages that draw them


class Batches:
    """batch_at(step) over texts of a mix: a pure function of the step, made a chunk of steps at a time."""

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
        from selfplay.warm_start.sft import pack

        chunk = step // self.STEPS
        if chunk != self._chunk:
            settings = self._settings
            room = settings.rows * settings.sequence_tokens * self.STEPS
            documents = list[Any]()
            for document in drawn(
                self._maker(hash((self._seed, chunk)) & 0x7FFFFFFF), self._mix, settings, self._played
            ):
                documents.append(document)
                room -= len(document.token_ids)
                if room <= 0:
                    break
            self._batches = pack(documents, settings.rows, settings.sequence_tokens, seed=chunk)
            self._chunk = chunk
        batch: PackedBatch = self._batches[step % self.STEPS % len(self._batches)]
        return batch


def drawn(
    maker: EpisodeMaker, mix: Mapping[str, float], settings: WarmStartSettings, played: Played
) -> Iterator[Document]:
    """Texts without end, of the kinds of `mix`; those too long for a row are left out."""
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
    return (
        maker.source(settings.sequence_tokens) if kind == "source" else transcript_of(maker, kind).document()
    )


def transcript_of(maker: EpisodeMaker, kind: str) -> Transcript:
    """A fabricated episode or drill of that kind."""
    if kind == "solver_short":
        return maker.solver(short=True)
    made: Transcript = getattr(maker, kind)()
    return made


def tokenizer_texts(
    packages: Sequence[Package], limits: Any, count: int, generator: random.Random
) -> Iterator[str]:
    """A quarter source files, the rest fabricated episodes as text. Plain ASCII only: 1,024 tokens have no room for more."""
    from selfplay.warm_start.fabrication import EpisodeMaker, PlainChat

    maker = EpisodeMaker(packages, PlainChat(), limits, generator)  # type: ignore[arg-type]
    for number in range(count):
        package, function, _ = maker.draw()
        text = (
            package.shown(function.path)[:5000]
            if number % 4 == 0
            else "".join(map(str, transcript_of(maker, ("injector", "solver")[number % 2]).ids))
        )
        if text.isascii():
            yield text
