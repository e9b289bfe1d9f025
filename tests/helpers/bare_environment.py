"""An environment with a script and nothing else, for tests of code that runs scripts."""

from __future__ import annotations

from selfplay.outcomes import TestOutcomes
from selfplay.repositories.checkouts import Checkout
from selfplay.repositories.environment import Environment
from selfplay.repositories.specs import RepositorySpec
from selfplay.source.trees import FileEntry, Tree


def an_environment(script: str, parser: str = 'print(\'{"t": "passed"}\')\n') -> Environment:
    tree = Tree({"a.txt": FileEntry(b"a\n")})
    checkout = Checkout(RepositorySpec("./a", "path", "a", "/a"), "a", "0" * 40, tree, None, 1, "")
    return Environment(
        "key",
        "",
        "a",
        "0" * 40,
        "",
        tree,
        checkout,
        (),
        script,
        parser,
        TestOutcomes(),
        frozenset(),
        (),
        {},
        {},
    )
