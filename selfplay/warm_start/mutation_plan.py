"""The order in which the warm start plays the mutations of its repositories.

Plays none. Invariant: equal settings and seed give an equal plan, so a killed collection can continue by the
numbers of its attempts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.repositories.environment import Environment
from selfplay.repositories.targets import Target, usable_targets
from selfplay.teacher.mutations import Mutation, choose_mutation, mutations_of_file
from selfplay.warm_start.settings import ExecuteSettings


@dataclass(frozen=True)
class PlannedMutation:
    """A mutation to play. `number` is its position in the plan, from 0."""

    number: int
    environment: Environment
    target: Target
    mutation: Mutation


def plan_mutations(
    environments: Sequence[Environment], settings: ExecuteSettings, min_passing_tests: int, seed: int
) -> list[PlannedMutation]:
    """Every mutation of every usable function, once.

    The plan consists of rounds: each takes one mutation of each function, in random order.
    """
    generator = random.Random(seed)
    functions: list[tuple[Environment, Target, list[Mutation]]] = []
    for environment in environments:
        known: dict[str, dict[int, list[Mutation]]] = {}
        for target in usable_targets(
            environment.targets, environment.baseline.passed, settings.max_lines, min_passing_tests
        ):
            if target.path not in known:
                text = environment.tree.text(target.path)
                found = mutations_of_file(target.path, text, settings.max_lines)
                known[target.path] = {function.first_line: mutations for function, mutations in found}
            mutations = known[target.path].get(target.first_line, ())
            functions.append((environment, target, _in_random_order(mutations, generator)))
    planned: list[tuple[Environment, Target, Mutation]] = []
    for turn in range(max((len(mutations) for _, _, mutations in functions), default=0)):
        turn_mutations = [
            (environment, target, mutations[turn])
            for environment, target, mutations in functions
            if turn < len(mutations)
        ]
        generator.shuffle(turn_mutations)
        planned += turn_mutations
    return [PlannedMutation(number, *what) for number, what in enumerate(planned)]


def _in_random_order(mutations: Sequence[Mutation], generator: random.Random) -> list[Mutation]:
    left, order = list(mutations), list[Mutation]()
    while left:
        order.append(choose_mutation(left, generator))
        left.remove(order[-1])
    return order
