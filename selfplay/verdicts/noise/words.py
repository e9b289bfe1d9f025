"""The words that noise is made of: names, words and numbers as the repository has them.

A name is put together as the repository's own names are, from their parts. Some parts are common words and
some are invented, so that neither a list of the repository's words nor a dictionary tells noise from code.
"""

from __future__ import annotations

import builtins
import random
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from keyword import iskeyword, issoftkeyword

IDENTIFIER = re.compile(rb"(?<![\w])[A-Za-z_][A-Za-z0-9_]{1,30}(?![\w])")
PART = re.compile(r"[A-Z]?[a-z]{2,14}|[A-Z]{2,8}(?![a-z])")
MAX_READ = 4 << 20  # bytes of a tree that are read for its words
MAX_WORDS = 6000
# Words that programs of any subject have.
COMMON_TEXT = """
    active align amount base batch block bound buffer cache chain change check child chunk code column
    count current data default delta depth digit done edge empty entry error extra field first flag found
    frame group guard head height index inner input item key kind label last left length level limit line
    link list local lower main margin mark match middle mode name next node number offset old option order
    other outer output owner pair parent part path pending place point position prefix previous process
    queue range rate ready record remaining result right root row rule scale score seen shape shift side
    size slot source space span stack stage start state status step stop store suffix sum table tail
    target temp text token total tree upper used valid value view weight width window word
"""
COMMON = tuple(COMMON_TEXT.split())
LINKS = ("the", "of", "for", "a", "in", "and", "with", "to", "is", "on", "if", "when", "no", "from", "by")
SYLLABLES = ("ba", "co", "den", "el", "fi", "gra", "hu", "ist", "jo", "ka", "lu", "mer", "no", "or")


@dataclass(frozen=True)
class Vocabulary:
    """The words of a repository. names: its identifiers. parts: the words that they are made of.

    reads_docs: whether some file of it reads docstrings.
    """

    names: tuple[str, ...]
    parts: tuple[str, ...]
    reads_docs: bool = False

    @classmethod
    def of(cls, texts: Iterable[bytes]) -> Vocabulary:
        names: dict[str, None] = {}
        read, reads_docs = 0, False
        for text in texts:
            read += len(text)
            if read > MAX_READ:
                break
            found, reads = _words_of(text)
            names.update(found)
            reads_docs = reads_docs or reads
        parts = sorted({part.lower() for name in names for part in PART.findall(name)})
        return cls(tuple(sorted(names)[:MAX_WORDS]), tuple(parts[:MAX_WORDS]), reads_docs)


@lru_cache(maxsize=2048)
def _words_of(text: bytes) -> tuple[dict[str, None], bool]:
    """The identifiers of a file, and whether it reads docstrings."""
    names = {match.decode(): None for match in IDENTIFIER.findall(text)}
    reads = not names.keys().isdisjoint(("__doc__", "doctest", "getdoc", "pydoc"))
    return {name: None for name in names if not iskeyword(name)}, reads


@dataclass
class Words:
    """Draws names, words and numbers from a vocabulary. taken: names that a new name must not have."""

    random: random.Random
    vocabulary: Vocabulary
    taken: Collection[str] = ()
    made: set[str] = field(default_factory=set)

    def part(self) -> str:
        """One word of a name, in small letters."""
        share = self.random.random()
        if share < 0.12:
            return "".join(self.random.choices(SYLLABLES, k=self.random.randint(2, 3)))
        known = self.vocabulary.parts if share < 0.8 else COMMON
        return self.random.choice(known or COMMON)

    def name(self) -> str:
        """A name that the file does not have. It is no keyword and no builtin."""
        for _ in range(40):
            share = self.random.random()
            if share < 0.25 and self.vocabulary.names:
                name = self.random.choice(self.vocabulary.names)
            elif share < 0.33:
                name = self.random.choice("abcdefghijkmnpqrstuvwxyz") + self.random.choice(("", "1", "2"))
            else:
                name = "_".join(self.part() for _ in range(self.random.choice((1, 1, 2, 2, 3))))
            if self._is_new(name):
                break
        else:
            while not self._is_new(name):
                name = f"{self.part()}_{self.random.randint(2, 999)}"
        self.made.add(name)
        return name

    def _is_new(self, name: str) -> bool:
        return (
            name not in self.taken
            and name not in self.made
            and not name.startswith("_")
            and not (iskeyword(name) or issoftkeyword(name) or hasattr(builtins, name))
        )

    def number(self) -> int:
        """A number as programs have it: small numbers are frequent."""
        return self.random.choice(
            (self.random.randint(0, 5), self.random.randint(0, 20), self.random.randint(10, 300))
        )

    def sentence(self) -> str:
        """Some words, as in a comment."""
        words = [
            self.random.choice(LINKS) if self.random.random() < 0.35 else self.part()
            for _ in range(self.random.randint(2, 11))
        ]
        if self.random.random() < 0.5:
            words[0] = words[0].capitalize()
        return " ".join(words) + self.random.choice(("", "", "."))
