"""The corpus: source distributions with functions to mutate, their callers, and tests that call them.

Reads files and runs none. Invariant: `functions`, `neighbours` and `shown` leave out the functions that
are held out for evaluation. With `held_out`, `functions` are those instead.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from selfplay.repositories.suspects import Suspect
from selfplay.repositories.targets import function_spans, is_held_out
from selfplay.source.path_policy import is_protected_path, is_test_path
from selfplay.source.trees import Tree
from selfplay.teacher.functions import Function
from selfplay.teacher.mutations import Mutation, mutations_of_file
from selfplay.warm_start.call_sites import CallSite

SKIPPED = ("docs/", "doc/", "examples/", "benchmarks/", "setup.py", "bench/", "profiling/")
MAX_FILE_BYTES = 200_000  # longer files are not mutated
MAX_TEST_COLUMNS = 120  # longer test lines are left out
CALL = re.compile(r"(\w+)\(")
# Places where Python code binds a name: definitions, loops, imports, assignments and parameters.
BOUND = re.compile(
    r"\b(?:def|class|for|as|lambda)\s+([A-Za-z_]\w*)"
    r"|([A-Za-z_]\w*)\s*=(?!=)"
    r"|[(,]\s*\*{0,2}([A-Za-z_]\w*)\s*(?=[,):=])"
)


@dataclass(frozen=True)
class Package:
    """One source distribution.

    max_lines: of a function that can be mutated.
    max_functions: functions that can be mutated, chosen at random from all.
    share: how often the package is sampled, relative to others with as many functions.
    held_out: use the functions that are held out for evaluation, instead of all others.
    """

    name: str
    licence: str
    tree: Tree
    max_lines: int
    max_functions: int
    share: float = 1.0
    held_out: bool = False

    @cached_property
    def sources(self) -> list[str]:
        """Paths of Python files that are neither tests nor documentation."""
        return [
            path
            for path in sorted(self.tree)
            if path.endswith(".py")
            and not is_protected_path(path, self.tree)
            and not path.startswith(SKIPPED)
        ]

    @cached_property
    def functions(self) -> list[tuple[Function, list[Mutation]]]:
        """Functions with their mutations. Leaves out special methods such as `__init__`."""
        found = []
        for path in self.sources:
            if len(self.tree[path].content) < MAX_FILE_BYTES:
                found += mutations_of_file(path, self.text(path), self.max_lines)
        random.Random(0).shuffle(found)
        return [
            (function, mutations)
            for function, mutations in found
            if is_held_out(function.name) == self.held_out
            and not (function.short_name.startswith("__") and function.short_name.endswith("__"))
        ][: self.max_functions]

    @cached_property
    def neighbours(self) -> dict[str, list[Suspect]]:
        """Functions that may be shown, of any length, by the file of a function that can be mutated."""
        # The order of this set, and so of some random choices, depends on PYTHONHASHSEED.
        return {
            path: [
                Suspect(path, span.name, span.first_line, span.last_line)
                for span in function_spans(self.tree[path].content)
                if not is_held_out(span.name)
            ]
            for path in {function.path for function, _ in self.functions}
        }

    def mutations_in(self, path: str, name: str) -> list[Mutation]:
        """The mutations of one function; none if it cannot be mutated."""
        return [
            mutation
            for function, mutations in self.functions
            if (function.path, function.name) == (path, name)
            for mutation in mutations
        ]

    @cached_property
    def own_words(self) -> frozenset[str]:
        """Names that the sources bind, and the parts of their paths."""
        found: set[str] = set()
        for path in self.sources:
            found.update(path.removesuffix(".py").split("/"))
            found.update(name for names in BOUND.findall(self.text(path)) for name in names if name)
        return frozenset(found)

    def callers_of(self, name: str) -> list[Function]:
        """Functions that can be mutated and call `name`."""
        return self._callers.get(name, [])

    @cached_property
    def _callers(self) -> dict[str, list[Function]]:
        found: dict[str, list[Function]] = {}
        for function, _ in self.functions:
            text = "\n".join(self.lines(function.path)[function.first_line : function.last_line])
            for name in set(CALL.findall(text)) - {function.short_name}:
                found.setdefault(name, []).append(function)
        return found

    def tested_at(self, name: str) -> list[tuple[str, int]]:
        """(test file, line) of each call of `name` in bodies of tests. Lines count from 1."""
        return self._test_calls.get(name, [])

    @cached_property
    def _test_calls(self) -> dict[str, list[tuple[str, int]]]:
        found: dict[str, list[tuple[str, int]]] = {}
        for path in sorted(self.tree):
            if is_test_path(path) and path.endswith(".py"):
                for number, line in enumerate(self.lines(path), start=1):
                    if line.startswith("    ") and len(line) < MAX_TEST_COLUMNS:
                        # The order of this set depends on PYTHONHASHSEED, and so does that of `_assertions`.
                        for name in set(CALL.findall(line)):
                            found.setdefault(name, []).append((path, number))
        return found

    def assertions_in(self, path: str) -> list[int]:
        """Lines of that test file with a call and an assertion, in bodies of tests."""
        return self._assertions.get(path, [])

    @cached_property
    def _assertions(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for calls in self._test_calls.values():
            for path, line in calls:
                if "assert" in self.lines(path)[line - 1]:
                    found.setdefault(path, []).append(line)
        return found

    def call_site(self, path: str, line: int) -> CallSite:
        return CallSite(path, line, self.lines(path))

    def shown(self, path: str) -> str:
        """The file without the functions that are held out."""
        hidden = {
            number
            for span in function_spans(self.tree[path].content)
            if is_held_out(span.name)
            for number in range(span.code_line, span.last_line + 1)
        }
        lines = enumerate(self.lines(path), start=1)
        return "\n".join(line for number, line in lines if number not in hidden)

    def text(self, path: str) -> str:
        return self.tree.text(path)

    def lines(self, path: str) -> list[str]:
        if path not in self._lines:
            self._lines[path] = self.text(path).split("\n")
        return self._lines[path]

    @cached_property
    def _lines(self) -> dict[str, list[str]]:
        return {}


@dataclass(frozen=True)
class Bug:
    """A function with one of its mutations. `text` is the whole file with the bug."""

    package: Package
    function: Function
    mutations: Sequence[Mutation]
    mutation: Mutation
    text: str
