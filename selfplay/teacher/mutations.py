"""Mutations: bugs that change one line of a function, and the random choice among them.

Does not run the mutated code. Invariant: every mutation leaves a function that parses. It is one edit of
one line, and the old text occurs exactly once in that line, so the edit tool accepts it.
"""

from __future__ import annotations

import math
import random
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfplay.source.syntax import parse_module
from selfplay.teacher.functions import Function, FunctionNode, parsed_functions
from selfplay.teacher.operators import changes_of

MAX_COLUMNS = 120  # longer lines are not mutated
TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
# How often each operator is chosen. Operators that make many changes in a line have a low weight: they would
# outnumber the others.
WEIGHTS: Mapping[str, float] = {
    "comparison": 3.0,
    "and_or": 3.0,
    "arithmetic": 2.5,
    "drop_not": 3.0,
    "add_not": 2.5,
    "drop_minus": 2.0,
    "constant": 2.0,
    "string": 0.4,
    "swap_operands": 2.0,
    "swap_arguments": 1.2,
    "swap_branches": 2.0,
    "twin": 1.5,
    "wrong_variable": 0.35,
    "negate_return": 2.0,
    "return_none": 0.7,
    "break_continue": 1.0,
}
# Operators, plainest first. Tests notice a plain change most often, and it looks least like correct code.
PLAINEST = (
    "drop_not",
    "comparison",
    "and_or",
    "arithmetic",
    "drop_minus",
    "add_not",
    "negate_return",
    "swap_branches",
    "constant",
    "twin",
    "swap_operands",
    "return_none",
    "swap_arguments",
    "break_continue",
    "wrong_variable",
    "string",
)


@dataclass(frozen=True)
class Mutation:
    """One changed line. Replacing `search` by `replace` in line `line` of `path` makes the bug.

    `search` occurs exactly once in that line. Lines count from 1.
    """

    path: str
    line: int
    search: str
    replace: str
    operator: str
    before: str  # the whole line without the bug
    after: str  # the whole line with the bug

    def apply(self, text: str) -> str:
        """The file's `text` with the bug. Raises ValueError if the line differs from `before`."""
        lines = text.split("\n")
        if lines[self.line - 1] != self.before:
            raise ValueError(
                f"{self.path}:{self.line} is {lines[self.line - 1]!r}, "
                f"and the mutation was made for {self.before!r}"
            )
        lines[self.line - 1] = self.after
        return "\n".join(lines)


def mutations_of_file(path: str, text: str, max_lines: int = 25) -> list[tuple[Function, list[Mutation]]]:
    """Every function of at most `max_lines` lines with its mutations. Leaves out functions without any."""
    lines = text.split("\n")
    found = []
    for function, node in parsed_functions(path, text, max_lines):
        mutations = list(_mutations(path, lines, node))
        if mutations:
            found.append((function, mutations))
    return found


def _mutations(path: str, lines: Sequence[str], node: FunctionNode) -> Iterator[Mutation]:
    seen = set()
    for change in changes_of(node, lines):
        before = lines[change.line - 1]
        after = before[: change.start] + change.text + before[change.end :]
        if before == after or (change.line, after) in seen or len(before) > MAX_COLUMNS:
            continue
        seen.add((change.line, after))
        body = list(lines[node.lineno - 1 : node.end_lineno])
        body[change.line - node.lineno] = after
        if parse_module(textwrap.dedent("\n".join(body))) is None:
            continue
        search, replace = smallest_edit(before, after)
        yield Mutation(path, change.line, search, replace, change.operator, before, after)


# ---- the smallest edit of a line


def smallest_edit(before: str, after: str) -> tuple[str, str]:
    """(search, replace): the smallest run of tokens that turns line `before` into line `after`.

    `search` occurs once in `before`. Neither text has blanks at its ends, unless the edit is the whole line.
    Raises ValueError when the lines are equal.
    """
    if before == after:
        raise ValueError(f"nothing changes in {before!r}")
    old, new = TOKEN.findall(before), TOKEN.findall(after)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    tail = 0
    while tail < min(len(old), len(new)) - start and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    end = len(old) - tail
    grow_right = True
    while True:
        search = "".join(old[start:end])
        replace = "".join(new[start : len(new) - tail])
        has_blank_ends = search != search.strip() or replace != replace.strip()
        if search.strip() and not has_blank_ends and occurrences(before, search) == 1:
            return search, replace
        if start == 0 and end == len(old):
            return before, after
        if (grow_right and end < len(old)) or start == 0:
            end, tail = end + 1, tail - 1
            added = old[end - 1]
        else:
            start -= 1
            added = old[start]
        # An edit cannot end in a blank, so a blank does not count as a step: grow on in the same direction.
        if added.strip():
            grow_right = not grow_right


def occurrences(text: str, search: str) -> int:
    """How often `search` occurs in `text`. Counts overlapping occurrences, as the edit tool does."""
    return sum(text.startswith(search, at) for at in range(len(text)))


# ---- the random choice


def choose_mutation(mutations: Sequence[Mutation], generator: random.Random) -> Mutation:
    """Sample a line, then one of its mutations by its operator's weight. So bugs spread over a function."""
    by_line = _by_line(mutations)
    weights = {line: max(WEIGHTS[m.operator] for m in group) for line, group in by_line.items()}
    line = generator.choices(list(weights), list(weights.values()))[0]
    group = by_line[line]
    per_operator = {m.operator: sum(o.operator == m.operator for o in group) for m in group}
    return generator.choices(group, [WEIGHTS[m.operator] / per_operator[m.operator] for m in group])[0]


def plainest_mutation(mutations: Sequence[Mutation], generator: random.Random) -> Mutation:
    """Sample a line, short lines more often, and return its plainest mutation.

    A line always gives the same mutation. With fewer choices, a small policy makes fewer errors.
    """
    best = [min(group, key=lambda m: PLAINEST.index(m.operator)) for group in _by_line(mutations).values()]
    weights = [WEIGHTS[m.operator] * math.exp(-len(m.before.strip()) / 30) for m in best]
    return generator.choices(best, weights)[0]


def _by_line(mutations: Sequence[Mutation]) -> dict[int, list[Mutation]]:
    grouped: dict[int, list[Mutation]] = {}
    for mutation in mutations:
        grouped.setdefault(mutation.line, []).append(mutation)
    return grouped
