"""Where to look first for what makes tests fail: functions ranked by which tests call them. Runs nothing; the calls are the environment's.

Invariant: a suspect stands where it says in the tree that it was looked up in, and equal input gives equal suspects in equal order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fractions import Fraction

from selfplay.repositories.targets import Calls, function_spans
from selfplay.source.trees import Tree

FRAME = re.compile(r"^(\S+\.py):(\d+): in (\S+)", re.MULTILINE)  # of a short traceback


@dataclass(frozen=True)
class Suspect:
    """A function or method that a failing test calls. Lines count from 1, decorators are left out."""

    path: str
    name: str  # qualified: "Class.method"
    first_line: int
    last_line: int

    @property
    def place(self) -> tuple[str, int, int]:
        return self.path, self.first_line, self.last_line


def find_suspects(calls: Calls, failing: Collection[str], tree: Tree, limit: int) -> tuple[Suspect, ...]:
    """At most `limit` functions of `tree`, the most suspicious first, equal ones by path and line; none when no failing test is known.

    `calls` were made on another version of the code, so functions are found by name; those that `tree` lacks are left out.
    Ranked by Ochiai's coefficient, failed / sqrt(all_failing * (failed + passed)), of the tests that call a function
    (Abreu, Zoeteweij and van Gemund 2006, "An evaluation of similarity coefficients for software fault localization").
    """
    known = set(failing) & calls.keys()
    failed = Counter(function for test in known for function in calls[test])
    callers = Counter(function for called in calls.values() for function in called)
    spans = {
        path: function_spans(tree[path].content) for path in {path for path, _ in failed} if path in tree
    }
    scored = []
    for (path, name), count in failed.items():
        score = Fraction(
            count * count, len(known) * callers[path, name]
        )  # squared, and so exact: equal scores must be ties
        scored += [
            (score, Suspect(path, name, s.first_line, s.last_line))
            for s in spans.get(path, ())
            if s.name == name
        ]
    scored.sort(key=lambda entry: (-entry[0], entry[1].path, entry[1].first_line))
    return tuple(suspect for _, suspect in scored[:limit])


def failure_first(suspects: Iterable[Suspect], failure: str) -> tuple[Suspect, ...]:
    """The suspects with the one that the failure's traceback ends in before the others, whose order stays."""
    innermost = [(path.removeprefix("./"), name) for path, _, name in FRAME.findall(failure)][-1:]
    return tuple(
        sorted(suspects, key=lambda suspect: (suspect.path, suspect.name.rpartition(".")[2]) not in innermost)
    )
