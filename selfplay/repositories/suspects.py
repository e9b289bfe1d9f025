"""Suspects: the functions most likely to make tests fail, ranked by which tests call them. Runs nothing.

Invariant: the lines of a suspect are those in the tree in which it was looked up. Equal input gives equal
suspects in equal order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fractions import Fraction

from selfplay.repositories.targets import Calls, function_spans
from selfplay.source.trees import Tree

# A frame of pytest's short traceback.
FRAME = re.compile(r"^(\S+\.py):(\d+): in (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Suspect:
    """A function or method that a failing test calls.

    name: qualified, "Class.method". Lines count from 1, without decorators.
    """

    path: str
    name: str
    first_line: int
    last_line: int

    @property
    def place(self) -> tuple[str, int, int]:
        """Path, first line, last line."""
        return self.path, self.first_line, self.last_line


def find_suspects(calls: Calls, failing: Collection[str], tree: Tree, limit: int) -> tuple[Suspect, ...]:
    """At most `limit` functions of `tree`, the most suspicious first, equal ones by path and line.

        calls    per test, on another version of the code; functions are found by name, if `tree` has them
    failing  ids of failing tests; without one that `calls` has there are no suspects


    The score is Ochiai's coefficient of the tests that call a function, failed / sqrt(all_failing * (failed +
    passed)). Source: Abreu, Zoeteweij and van Gemund 2006, "An evaluation of similarity coefficients for
    software fault localization".
    """
    known = set(failing) & calls.keys()
    failed = Counter(function for test in known for function in calls[test])
    callers = Counter(function for called in calls.values() for function in called)
    spans = {
        path: function_spans(tree[path].content) for path in {path for path, _ in failed} if path in tree
    }
    scored = []
    for (path, name), count in failed.items():
        # The square of the score is exact, so equal scores are ties.
        score = Fraction(count * count, len(known) * callers[path, name])
        scored += [
            (score, Suspect(path, name, s.first_line, s.last_line))
            for s in spans.get(path, ())
            if s.name == name
        ]
    scored.sort(key=lambda entry: (-entry[0], entry[1].path, entry[1].first_line))
    return tuple(suspect for _, suspect in scored[:limit])


def failure_first(suspects: Iterable[Suspect], failure: str) -> tuple[Suspect, ...]:
    """The suspects in the same order, but first the one in which the traceback of the failure ends."""
    innermost = [(path.removeprefix("./"), name) for path, _, name in FRAME.findall(failure)][-1:]
    return tuple(
        sorted(suspects, key=lambda suspect: (suspect.path, suspect.name.rpartition(".")[2]) not in innermost)
    )
