"""How often bugs get through whose author knows the noise, and strips it before the bug draws its luck.

    python -m benchmarks.informed [--artifacts 52] [--passes 0.26] [--json]

Such a bug passes or fails by a hash of what is left of its file. That is a function of the file's text, so no
sandbox is needed: the validator's runs are computed, with the same noise, on bugs of `own`. The author
chooses a first run that fails. A row has the share of noises that move the hash, and the bugs that some noise
moves to a pass: those are rejected. Intervals are Wilson's, at 95 %.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator

from benchmarks.audit import Audit, in_turn, own_config, shown_rate, table
from benchmarks.options import at_least_one
from selfplay.attacks.marked_noise import STRIPPED
from selfplay.evaluation.tasks import bug_of, find_tasks
from selfplay.repositories.checkouts import cache_root
from selfplay.sandbox import open_backend
from selfplay.source.trees import Tree
from selfplay.verdicts.bug import build_states
from selfplay.verdicts.determinism import SUSPECT_RUNS
from selfplay.verdicts.perturbation import perturb

Look = Callable[[str, frozenset[str]], object]  # (text, words of the author's file) -> what is left
STEPS = (500, 2000, 10_000, 50_000)


def stripped(expression: str) -> Look:
    return lambda text, _: eval(expression, {"ast": ast, "re": re, "s": text})  # our own text


def known_words(text: str, known: frozenset[str]) -> list[str]:
    return sorted(word for word in re.findall(r"\w+", text) if word in known)


def known_statements(text: str, known: frozenset[str]) -> list[str]:
    """The statements that have no names but those of the author's file: what a list of names strips."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Return | ast.Assign | ast.AugAssign | ast.Raise | ast.Expr):
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            if names <= known:
                found.append(ast.dump(node))
    return sorted(set(found))


def looks() -> dict[str, Look]:
    generic = {
        title: stripped(expression)
        for name, (title, expression) in STRIPPED.items()
        if name not in ("stripped-size", "known-names")
    }
    sizes: dict[str, Look] = {
        f"the size in steps of {step} bytes": lambda text, _, step=step: len(text) // step  # type: ignore[misc]
        for step in STEPS
    }
    return {
        **generic,
        "how often it uses the words that the author saw": known_words,
        "statements with no other names than the author saw": known_statements,
        **sizes,
    }


def buggy_files(audit: Audit, count: int) -> Iterator[tuple[Tree, str]]:
    packages: dict[str, list] = {}  # type: ignore[type-arg]
    for task in find_tasks(["own"]):
        packages.setdefault(task.repository, []).append(task)
    for task in in_turn(packages.values())[:count]:
        environment, bug = bug_of(task, audit.environment(task.repo))
        buggy = build_states(environment.tree, bug).buggy
        yield buggy, environment.tree.changed_paths(buggy)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifacts", type=at_least_one, default=52)
    parser.add_argument("--passes", type=float, default=0.26, help="probability that a draw passes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    audit = Audit(open_backend("bubblewrap", cache_root())[0], own_config(), attempts=0)
    runs = audit.config.validator.determinism_runs - 1 + SUSPECT_RUNS
    found = looks()
    moved, accepted, draws = dict.fromkeys(found, 0), dict.fromkeys(found, 0), 0
    generator = random.Random(1)
    count = 0
    for tree, path in buggy_files(audit, options.artifacts):
        known = frozenset(re.findall(r"\w+", tree.text(path)))
        seeds = [generator.getrandbits(63) for _ in range(runs)]
        texts = [tree.text(path), *(perturb(tree, [path], seed).text(path) for seed in seeds)]
        count, draws = count + 1, draws + runs
        for name, look in found.items():
            left = [repr(look(text, known)) for text in texts]
            moved[name] += sum(value != left[0] for value in left[1:])
            accepted[name] += _is_accepted(left, options.passes)
    rows = [
        [name, shown_rate(moved[name], draws), shown_rate(count - accepted[name], count)] for name in found
    ]
    print(json.dumps(rows) if options.json else table([["what is hashed", "moved", "rejected"], *rows]))


def _is_accepted(left: list[str], passes: float) -> bool:
    """Whether every run fails, with the first salt for which the first run does."""
    for salt in range(10_000):
        draws = [zlib.crc32(f"{value} {salt}".encode()) % 10_000 < 10_000 * passes for value in left]
        if not draws[0]:
            return not any(draws)
    return False


if __name__ == "__main__":
    main()
