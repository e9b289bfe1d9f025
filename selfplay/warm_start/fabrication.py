"""Fabricates training texts of every kind from source distributions, without a sandbox.

Leaves each role's episodes to `injector_episodes` and `solver_episodes`. Invariant: the maker's
generator makes every random choice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from selfplay.agent.chat import ChatFormat
from selfplay.agent.tool_format import CannotWrite
from selfplay.warm_start.documents import Document
from selfplay.warm_start.injector_episodes import InjectorEpisodes
from selfplay.warm_start.packages import Package
from selfplay.warm_start.sampler import FunctionSampler
from selfplay.warm_start.solver_episodes import SolverEpisodes
from selfplay.warm_start.transcripts import PlayLimits, Transcript

COPY_WEIGHT = 0.3  # of a repeated random token
CONTROL_TOKENS = 3  # the first ids of the vocabulary; random tokens leave them out


class EpisodeMaker:
    """Makes texts of one set of packages, from one random generator. new_names: see `FunctionSampler`."""

    def __init__(
        self,
        packages: Sequence[Package],
        chat: ChatFormat,
        limits: PlayLimits,
        generator: random.Random,
        new_names: float = 0.0,
    ) -> None:
        self.chat, self.limits, self.random = chat, limits, generator
        self.functions = FunctionSampler(packages, generator, new_names)
        injector = InjectorEpisodes(self.functions, chat, limits)
        solver = SolverEpisodes(self.functions, chat, limits)
        self._make: Mapping[str, Callable[[], Transcript]] = {
            "injector": injector.episode,
            "injector_drill": injector.drill,
            "solver": solver.episode,
            "solver_short": solver.short,
            "solver_drill": solver.drill,
        }

    def transcript(self, kind: str) -> Transcript:
        """An episode or drill of that kind."""
        while True:
            try:
                return self._make[kind]()
            except CannotWrite:  # a line of a package is a tag of the format
                continue

    def source(self, max_tokens: int) -> Document:
        """Up to 120 lines of a source or test file, from a random line on. Leaves out held-out functions."""
        package, function, _ = self.functions.sample()
        calls = package.tested_at(function.short_name)
        path = self.random.choice(calls)[0] if calls and self.random.random() < 0.3 else function.path
        lines = package.shown(path).split("\n")
        first = self.random.randrange(max(1, len(lines) - 10))
        ids = self.chat.encode("\n".join(lines[first : first + 120]))[:max_tokens]
        return Document(ids, [1.0] * len(ids))

    def copying(self, vocabulary: int, max_tokens: int) -> Document:
        """Random tokens, parts of which repeat.

        They keep the copying heads in use, which training on code alone would weaken.
        """
        generator = self.random

        def random_tokens(count: int) -> list[int]:
            return [generator.randint(CONTROL_TOKENS, vocabulary - 1) for _ in range(count)]

        count = generator.randint(24, max(25, max_tokens * 3 // 10))
        span = random_tokens(count)
        ids = random_tokens(generator.randint(0, 20)) + span
        weights = [0.0] * len(ids)
        length = generator.randint(count + 20, max(count + 20, min(max_tokens - 24, 3 * count + 100)))
        while len(ids) < length:
            start = generator.randint(0, count - 8)
            size = min(generator.randint(8, 64), count - start)
            between = random_tokens(generator.randint(1, 6))
            ids += [*between, *span[start : start + size]]
            # The first three tokens tell which part repeats; only the tokens after them can be predicted.
            weights += [0.0] * len(between) + [0.0] * 3 + [COPY_WEIGHT] * (size - 3)
        return Document(ids[:max_tokens], weights[:max_tokens])
