"""Statements that do nothing, and conditions whose value only the generator knows.

They read like code: names and numbers of the repository, calls, loops and branches. They use literals, their
own names and the methods of builtin types only, so they raise nothing and change nothing. A condition
depends on values that the statements before it compute; to know it, one must run them. What stands under a
condition that is false may be anything.

Invariant: the text runs on every Python 3.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfplay.verdicts.noise.words import Words

Typed = tuple[str, Any]  # the text of an expression and its value
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
MAX_VALUE = 1 << 20
MAX_TEXT = 60


@dataclass
class Snippets:
    """Makes statements for one place.

    binds     whether they may bind names: not in a class or a module, whose names others see
    builtins  those among len, abs and str that mean the builtin here
    plain     parameters of the function that are bound here, for conditions
    known     the values of the names that were made
    """

    words: Words
    binds: bool
    builtins: frozenset[str] = frozenset()
    plain: Sequence[str] = ()
    indentation: str = "    "
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def random(self) -> random.Random:
        return self.words.random

    # ---- expressions

    def number(self, depth: int = 0) -> Typed:
        numbers = [(name, value) for name, value in self.known.items() if type(value) is int]
        share = self.random.random()
        if numbers and share < 0.35:
            return self.random.choice(numbers)
        if depth > 1 or share < 0.5:
            value = self.words.number()
            return str(value), value
        if share < 0.7:
            (left, a), (right, b) = self.number(depth + 1), self.number(depth + 1)
            sign, value = self.random.choice((("+", a + b), ("-", a - b), ("*", a * b)))
            if abs(value) < MAX_VALUE:
                return f"({left} {sign} {right})", value
        text, value = self.text(depth + 1)
        if "len" in self.builtins and share < 0.85:
            return f"len({text})", len(value)
        part = value[1:3] if self.random.random() < 0.5 else self.words.part()[:2]
        method = self.random.choice(("count", "find"))
        return f"{text}.{method}({quoted(part)})", getattr(value, method)(part)

    def text(self, depth: int = 0) -> Typed:
        texts = [(name, value) for name, value in self.known.items() if isinstance(value, str)]
        share = self.random.random()
        if texts and share < 0.45:
            return self.random.choice(texts)
        if depth > 1 or share < 0.6:
            value = self.words.sentence() if self.random.random() < 0.25 else self.words.part()
            return quoted(value), value
        text, value = self.text(depth + 1)
        if share < 0.75:
            method = self.random.choice(("upper", "strip", "title", "lower"))
            return f"{text}.{method}()", getattr(value, method)()
        if share < 0.88:
            part = self.words.part()
            return f"{text}.replace({quoted(part)}, {quoted('-')})", value.replace(part, "-")
        return f"({quoted('%s')} % ({text},))", value

    def items(self) -> Typed:
        """A list of texts or of numbers."""
        if self.random.random() < 0.5:
            text, value = self.text()
            return f"{text}.split()", value.split()
        found = [self.number(1) for _ in range(self.random.randint(1, 4))]
        return f"[{', '.join(text for text, _ in found)}]", [value for _, value in found]

    def condition(self, wanted: bool) -> str:
        """An expression that is `wanted`, which no compiler folds."""
        share = self.random.random()
        if share < 0.2:
            word, other = self.words.part(), self.words.part()
            sign = "in" if (word in [other]) is wanted else "not in"
            return f"{quoted(word)} {sign} {quoted(other)}.split()"
        if share < 0.35:
            return f"not {self.simple(not wanted)}"
        if self.plain and share < 0.6:
            # The parameter's part may be anything.
            name = self.random.choice(self.plain)
            sign = self.random.choice(("is None", "is not None", "is True"))
            joint = "or" if wanted else "and"
            both = [self.simple(wanted), f"{name} {sign}"]
            self.random.shuffle(both)
            return f" {joint} ".join(both)
        return self.simple(wanted)

    def simple(self, wanted: bool) -> str:
        """One comparison of numbers that is `wanted`, in which a call or a known name has a part."""
        left, a = self.number()
        if left.lstrip("(").rstrip(")").isdigit() or not any(sign.isalpha() for sign in left):
            text, value = self.text(1)
            left, a = f"{text}.count({quoted(value[:1])})", value.count(value[:1])
        right, b = self.number(1)
        sign = self.random.choice([sign for sign, holds in COMPARISONS.items() if holds(a, b) is wanted])
        return f"{left} {sign} {right}"

    # ---- statements

    def live(self, count: int) -> list[str]:
        """Lines of about `count` statements that run and do nothing."""
        kinds = [self._branch, self._call, self._try]
        if self.binds:
            kinds += [self._assign, self._assign, self._assign, self._change, self._loop, self._function]
        lines: list[str] = []
        for _ in range(count):
            lines += self.random.choice(kinds)()
        return lines

    def simple_statement(self) -> str:
        """One statement for a line that has others."""
        return (self._assign() if self.binds and self.random.random() < 0.8 else self._call())[0]

    def dead(self, inner: Sequence[str]) -> list[str]:
        """Lines in which `inner` stands and never runs."""
        body = self._indented(inner)
        share = self.random.random()
        if share < 0.45:
            return [f"if {self.condition(False)}:", *body]
        if share < 0.6:
            return [f"if {self.condition(True)}:", *self._indented(self.live(1)), "else:", *body]
        if share < 0.75:
            return [f"while {self.condition(False)}:", *body]
        error = self.random.choice(("ValueError", "KeyError", "TypeError", "(IndexError, OSError)"))
        return ["try:", *self._indented(self.live(1)), f"except {error}:", *body]

    def _indented(self, lines: Sequence[str]) -> list[str]:
        return [self.indentation + line if line else line for line in lines]

    def _assign(self) -> list[str]:
        text, value = self.random.choice((self.number, self.text, self.items))()
        if (isinstance(value, int) and abs(value) > MAX_VALUE) or len(text) > MAX_TEXT:
            text, value = "0", 0
        name = self.words.name()
        self.known[name] = value
        return [f"{name} = {text}"]

    def _change(self) -> list[str]:
        numbers = [name for name, value in self.known.items() if type(value) is int]
        if not numbers:
            return self._assign()
        name, step = self.random.choice(numbers), self.random.randint(1, 9)
        self.known[name] += step
        return [f"{name} += {step}"]

    def _branch(self) -> list[str]:
        return [f"if {self.condition(True)}:", *self._indented(self.live(1))]

    def _call(self) -> list[str]:
        text, _ = self.text(1)
        return [f"{text}.{self.random.choice(('split', 'strip', 'lower', 'title'))}()"]

    def _try(self) -> list[str]:
        lines = ["try:", *self._indented(self.live(1))]
        if self.random.random() < 0.5:
            return [*lines, "finally:", *self._indented(self._call())]
        return [
            *lines,
            f"except {self.random.choice(('ValueError', 'KeyError'))}:",
            *self._indented(["pass"]),
        ]

    def _loop(self) -> list[str]:
        found, _ = self.items()
        item, total = self.words.name(), self.words.name()
        return [f"{total} = []", f"for {item} in {found}:", f"{self.indentation}{total}.append({item})"]

    def _function(self) -> list[str]:
        name, item = self.words.name(), self.words.name()
        return [f"{name} = lambda {item}: {item} {self.random.choice('+-*')} {self.number(2)[0]}"]


def quoted(text: str) -> str:
    """The text in quotes. It has no quotes and no backslashes."""
    return f'"{text}"'
