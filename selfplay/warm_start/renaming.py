"""A package whose names are made up, so that a text about it can only be copied, not recited.

Runs nothing, so the code need not work. Invariant: every line keeps its number, equal words get equal names
in all files, and different words get different names.
"""

from __future__ import annotations

import builtins
import keyword
import random
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Self

from selfplay.repositories.suspects import Suspect
from selfplay.teacher.functions import Function
from selfplay.teacher.mutations import Mutation, smallest_edit
from selfplay.warm_start.packages import Package

WORD = re.compile(r"[A-Za-z_]\w*")
PART = re.compile(r"[A-Z]?[a-z]{3,}")
TEST = "test_"  # a test keeps it, and the rest of its name is that of the module or function
CONSONANTS, VOWELS = "bcdfghklmnprstvwz", "aeiou"
LEAST_LETTERS = 3  # shorter names are nobody's
MOST_PARTS = 3  # of a name
BORROWED = 0.5  # share of a name's parts that are words of another package; the others are syllables
# Words that mean something to Python, or to whoever reads a path.
KEPT = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *sys.stdlib_module_names}
    | {name for kind in (str, bytes, list, dict, set, int, float, BaseException) for name in dir(kind)}
    | {"self", "cls", "args", "kwargs", "test", "tests", "__tests__", "conftest", "src", "lib"}
)


class NewNames:
    """Gives each of `words` a new name, made of syllables and of parts of `borrowed`. `seed` decides."""

    def __init__(self, words: Collection[str], borrowed: Collection[str], seed: int) -> None:
        self._words = {word for word in words if len(word) >= LEAST_LETTERS} - KEPT
        parts: set[str] = {part.lower() for word in borrowed for part in PART.findall(word)}
        self._parts = sorted(parts) or ["name"]
        self._random = random.Random(seed)
        self._new: dict[str, str] = {}
        self._old: dict[str, str] = {}
        self._kept: set[str] = set()  # words that were met and are not renamed

    def __call__(self, text: str) -> str:
        """`text` with the new names."""
        return WORD.sub(lambda found: self._renamed(found[0]), text)

    def old(self, text: str) -> str:
        """What became `text`."""
        return WORD.sub(lambda found: self._former(found[0]), text)

    def _renamed(self, word: str) -> str:
        if word in self._new:
            return self._new[word]
        if word not in self._words and word not in self._old:
            self._kept.add(word)
            is_test = word.startswith(TEST) and word != TEST
            return TEST + self._renamed(word.removeprefix(TEST)) if is_test else word
        new = self._invented(word)
        while new in self._words or new in self._old or new in KEPT or new in self._kept:
            new = self._invented(word)
        self._new[word], self._old[new] = new, word
        return new

    def _former(self, word: str) -> str:
        is_test = word.startswith(TEST) and word not in self._old
        return TEST + self._former(word.removeprefix(TEST)) if is_test else self._old.get(word, word)

    def _invented(self, word: str) -> str:
        """A new name in the style of `word`: its underscores at both ends, and its upper case."""
        core = word.strip("_") or word
        count = min(max(len(PART.findall(core)), 1), MOST_PARTS)
        parts = [self._part() for _ in range(count)]
        if core.isupper():
            name = "_".join(parts).upper()
        elif core[0].isupper():
            name = "".join(part.capitalize() for part in parts)
        else:
            name = "_".join(parts)
        start, end = len(word) - len(word.lstrip("_")), len(word) - len(word.rstrip("_"))
        return "_" * start + name + "_" * end

    def _part(self) -> str:
        generator = self._random
        if generator.random() < BORROWED:
            return generator.choice(self._parts)
        syllables = range(generator.randint(2, 4))
        return "".join(generator.choice(CONSONANTS) + generator.choice(VOWELS) for _ in syllables)


@dataclass(frozen=True)
class RenamedPackage(Package):
    """`original` under new names. Its `tree` still has the old ones; `text` does not."""

    original: Package = field(kw_only=True)
    names: NewNames = field(kw_only=True)

    @classmethod
    def of(cls, original: Package, names: NewNames) -> Self:
        same = {each.name: getattr(original, each.name) for each in fields(Package)}
        return cls(**same, original=original, names=names)

    def function(self, function: Function) -> Function:
        """A function of the original, under its new name."""
        return replace(function, path=self.names(function.path), name=self.names(function.name))

    def mutation(self, mutation: Mutation) -> Mutation:
        """A mutation of the original, under its new names."""
        before, after = self.names(mutation.before), self.names(mutation.after)
        search, new = smallest_edit(before, after)
        path = self.names(mutation.path)
        return replace(mutation, path=path, search=search, replace=new, before=before, after=after)

    @cached_property
    def neighbours(self) -> dict[str, list[Suspect]]:
        return {
            self.names(path): [
                replace(suspect, path=self.names(suspect.path), name=self.names(suspect.name))
                for suspect in suspects
            ]
            for path, suspects in self.original.neighbours.items()
        }

    def mutations_in(self, path: str, name: str) -> list[Mutation]:
        found = self.original.mutations_in(self.names.old(path), self.names.old(name))
        return [self.mutation(mutation) for mutation in found]

    def callers_of(self, name: str) -> list[Function]:
        return [self.function(caller) for caller in self.original.callers_of(self.names.old(name))]

    def tested_at(self, name: str) -> list[tuple[str, int]]:
        return [(self.names(path), line) for path, line in self.original.tested_at(self.names.old(name))]

    def assertions_in(self, path: str) -> list[int]:
        return self.original.assertions_in(self.names.old(path))

    def shown(self, path: str) -> str:
        return self.names(self.original.shown(self.names.old(path)))

    def text(self, path: str) -> str:
        return self.names(self.original.text(self.names.old(path)))
