"""What is played next: bugs for solvers, strategies, targets and thresholds for injectors. Pure: rows and randomness in, choices out.

Invariant: equal rows and an equally seeded generator give equal choices, whatever order rows of one age were recorded in.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from selfplay.curriculum.rows import BugRow
from selfplay.engines.base import derive_seed

SETTLED_WEIGHT = (
    0.02  # of a bug that all or none repaired: it teaches little now, and the policy may have moved since
)


def choose_solver_bugs(
    fresh: Sequence[BugRow],
    measured: Sequence[BugRow],
    slots: int,
    second_order_share: float,
    rng: random.Random,
    replay_share: float = 0.0,
) -> list[BugRow]:
    """At most `slots` different bugs. Each slot is of order two with the given probability, then fresh ones go first, oldest first.

    When one order has too few bugs the other fills its slots, except that a share of 0 keeps order two out. Before that, each slot is
    a replay with probability `replay_share`: a measured bug that some attempts repaired and some did not, fresh ones waiting or not.
    """
    if replay_share > 0:
        wanted = sum(rng.random() < replay_share for _ in range(slots))
        mixed = [bug for bug in measured if bug.solve_rate is not None and 0 < bug.solve_rate < 1]
        replays = [
            bug
            for order in (1, 2)
            if order == 1 or second_order_share > 0
            for bug in _queue((), mixed, order, rng)
        ][:wanted]
        taken = {bug.bug_id for bug in replays}
        others = [bug for bug in measured if bug.bug_id not in taken]
        return replays + choose_solver_bugs(fresh, others, slots - len(replays), second_order_share, rng)
    second_slots = sum(rng.random() < second_order_share for _ in range(slots))
    first = _queue(fresh, measured, 1, rng)
    second = _queue(fresh, measured, 2, rng) if second_order_share > 0 else []
    taken_second = max(min(second_slots, len(second)), min(slots - len(first), len(second)))
    taken_first = min(slots - taken_second, len(first))
    return first[:taken_first] + second[:taken_second]


def _queue(
    fresh: Sequence[BugRow], measured: Sequence[BugRow], order: int, rng: random.Random
) -> list[BugRow]:
    """All bugs of one order: the fresh ones by age, then the measured ones drawn without replacement by preference."""
    waiting = sorted(
        (bug for bug in fresh if bug.order == order),
        key=lambda bug: (bug.created_update, bug.created_at, bug.bug_id),
    )
    replayable = sorted((bug for bug in measured if bug.order == order), key=lambda bug: bug.bug_id)
    # Efraimidis and Spirakis: sorting by u^(1/w) draws without replacement with probabilities proportional to w.
    drawn = sorted(replayable, key=lambda bug: rng.random() ** (1 / replay_weight(bug)), reverse=True)
    return waiting + drawn


def replay_weight(bug: BugRow) -> float:
    """How much a measured bug is wanted again: 4s(1-s), which peaks at a solve rate of one half, shared among its plays.

    A bug without a rate (too few attempts were graded) counts like one of one half: nothing is known against it.
    """
    rate = 0.5 if bug.solve_rate is None else bug.solve_rate
    return max(4 * rate * (1 - rate), SETTLED_WEIGHT) / (1 + bug.plays)


def choose_strategy(weights: Mapping[str, float], rng: random.Random) -> str:
    """A strategy with probability proportional to its weight. Names are sorted first: a mapping's order decides nothing."""
    names = sorted(name for name, weight in weights.items() if weight > 0)
    return rng.choices(names, [weights[name] for name in names])[0]


def choose_target(targets: Sequence[str], uses: Mapping[str, int], rng: random.Random) -> str:
    """One of the targets used least, so that bugs spread over a repository. Raises ValueError when there are none."""
    if not targets:
        raise ValueError("there are no targets to choose from")
    least = min(uses.get(target, 0) for target in targets)
    return rng.choice([target for target in targets if uses.get(target, 0) == least])


def sample_threshold(bounds: tuple[int, int], seed: int, name: str) -> int:
    """A whole number within `bounds`, both included, that depends on the seed and the threshold's name alone."""
    low, high = bounds
    return low + derive_seed(seed, name) % (high - low + 1)
