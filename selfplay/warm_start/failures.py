"""Invented output of failing tests, as `pytest --tb=short` prints it.

Runs no test: the traceback follows from where the bug is, the error itself is a random choice.
"""

from __future__ import annotations

import random
import re

from selfplay.teacher.functions import Function
from selfplay.warm_start.call_sites import VALUES, CallSite, enclosing_test
from selfplay.warm_start.packages import Bug

EXCEPTIONS = 0.4  # share of failures by an exception; the others are failed assertions
AT_THE_BUG = 0.6  # share of exceptions that name the mutated line
IN_THE_FUNCTION = 0.55  # share of exceptions whose last frame is in the mutated function
WITHOUT_MARKS = 0.45  # share of frames without "^^^" under the line


class FailureWriter:
    """Invents failures from one random generator."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator

    def write(self, bug: Bug, site: CallSite, caller: Function | None = None) -> str:
        """The failure of the test at `site`. caller: a function between that test and the mutated one."""
        lines = [
            f"{site.path}:{site.line}: in {enclosing_test(site, self.random)}",
            *self._source_line(site.text),
        ]
        if self.random.random() < EXCEPTIONS:
            lines += self._exception(bug, caller)
        else:
            lines += self._assertion(bug.function, site)
        return "\n".join(lines)

    def _exception(self, bug: Bug, caller: Function | None) -> list[str]:
        """The frames below the test's, and the error."""
        generator, function, buggy = self.random, bug.function, bug.text.split("\n")
        body = [n for n in range(function.first_line + 1, function.last_line + 1) if buggy[n - 1].strip()]
        is_at_bug = generator.random() < AT_THE_BUG
        line = bug.mutation.line if is_at_bug or not body else generator.choice(body)
        frames = self._caller_frame(bug, caller) if caller else []
        if generator.random() < IN_THE_FUNCTION:
            frames += [
                f"{function.path}:{line}: in {function.short_name}",
                *self._source_line(buggy[line - 1]),
            ]
        else:
            frames += self._other_frame(bug)
        name = generator.choice(re.findall(r"[A-Za-z_]\w*", buggy[line - 1]) or ["x"])
        return [*frames, f"E   {self._error(name)}"]

    def _caller_frame(self, bug: Bug, caller: Function) -> list[str]:
        source = bug.package.lines(caller.path)
        calls = (
            n
            for n in range(caller.first_line + 1, caller.last_line + 1)
            if f"{bug.function.short_name}(" in source[n - 1]
        )
        line = next(calls, caller.last_line)
        return [f"{caller.path}:{line}: in {caller.short_name}", *self._source_line(source[line - 1])]

    def _other_frame(self, bug: Bug) -> list[str]:
        """A frame of another function, which failed on the value that the mutated one returned."""
        other = self.random.choice([s for some in bug.package.neighbours.values() for s in some])
        line = self.random.randint(min(other.first_line + 1, other.last_line), other.last_line)
        text = bug.package.lines(other.path)[line - 1]
        return [f"{other.path}:{line}: in {other.name.rpartition('.')[2]}", *self._source_line(text)]

    def _error(self, name: str) -> str:
        choice = self.random.choice
        return choice(
            [
                "TypeError: 'NoneType' object is not iterable",
                "TypeError: unsupported operand type(s) for -: 'str' and "
                f"'{choice(['int', 'str', 'NoneType'])}'",
                f"AttributeError: '{choice(['int', 'str', 'list', 'NoneType', 'dict'])}' object has no "
                f"attribute '{name}'",
                "IndexError: list index out of range",
                f"KeyError: {choice(VALUES)}",
                f"ValueError: invalid literal for int() with base 10: {choice(VALUES)}",
                f"UnboundLocalError: cannot access local variable '{name}' where it is not associated "
                "with a value",
                f"TypeError: '{choice(['int', 'str', 'bool'])}' object is not callable",
                f"ValueError: {name}",
            ]
        )

    def _assertion(self, function: Function, site: CallSite) -> list[str]:
        choice = self.random.choice
        want, got = choice(VALUES), choice(VALUES)
        expected = re.search(r"== ?([\w.'\"\[\]-]{1,30})\s*$", site.text)
        want = expected[1] if expected else want
        return choice(
            [
                [f"E   assert {got} == {want}"],
                [f"E   AssertionError: assert {got} == {want}", f"E     - {want}", f"E     + {got}"],
                [f"E   AssertionError: {got} != {want}"],
                [f"E   AssertionError: assert {got} == {want}"],
                ["E   AssertionError: False is not true"],
                [f"E   assert {got}"],
                [
                    f"E   AssertionError: assert {got} == {want}",
                    f"E    +  where {got} = {function.short_name}({choice(VALUES)})",
                ],
            ]
        )

    def _source_line(self, line: str) -> list[str]:
        """A frame's source line, often with marks under the part that failed."""
        text = line.strip()
        if self.random.random() < WITHOUT_MARKS or len(text) < 4:
            return [f"    {text}"]
        first = self.random.randrange(len(text) - 2)
        return [f"    {text}", " " * (4 + first) + "^" * self.random.randint(2, len(text) - first)]
