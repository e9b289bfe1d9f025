"""Which files get changes without meaning, in each phase of judging. `perturbation` makes the changes.

A phase is validation, first grading or second grading. Invariant: no phase can be told by its changes. All
have changes of the same kind, in files that are chosen in the same way. A run of a tree as a policy has it in
its workspace has none; validation makes one for each state too, so that no bug can hide there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from selfplay.source.path_policy import is_other_code, is_protected_path
from selfplay.source.trees import Tree
from selfplay.verdicts.perturbation import perturb
from selfplay.verdicts.randomness import Secret

# What a run's changes are derived from, first of all.
REPEAT, FIRST_GRADING, SECOND_GRADING = "repeat", "first grading", "second grading"


def noisy(original: Tree, tree: Tree, touched: Iterable[str], secret: Secret, *parts: str) -> Tree:
    """`tree` with changes without meaning in the `touched` code files and in one other of the `original`.

    parts: what the changes are derived from. Trees that are compared have the same parts.
    """
    chosen = sorted(set(touched))
    paths = [*chosen, *_one_other(original, chosen, secret, parts)]
    return perturb(tree, paths, secret.noise_seed(*parts))


def _one_other(tree: Tree, touched: Sequence[str], secret: Secret, parts: Sequence[str]) -> list[str]:
    """A code file that is not touched, preferably Python."""
    left = sorted(tree.keys() - frozenset(touched))
    untouched = [path for path in left if not is_protected_path(path, tree)]
    others = [path for path in untouched if path.endswith(".py")] or [
        path for path in untouched if is_other_code(path)
    ]
    return [secret.generator("other file", *parts).choice(others)] if others else []
