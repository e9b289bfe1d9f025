"""Choices of what to play next: bugs for solvers; strategies, targets and thresholds for injectors.

Pure functions of rows and a random generator. Invariant: equal rows and an equally seeded generator give
equal choices. Rows of one age may have been recorded in any order.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfplay import parts
from selfplay.curriculum.rows import BugRow
from selfplay.engines.base import derive_seed
from selfplay.errors import PartError

# Replay weight of a bug that every attempt repaired, or none. It has no gradient now, but the policy changes.
SETTLED_WEIGHT = 0.02


@dataclass(frozen=True)
class Candidates:
    """Bugs that solvers may play next, and how many are wanted.

    fresh               bugs that no group has played, in any order
    measured            bugs with a solve rate
    slots               how many different bugs are wanted at most
    second_order_share  share of the slots for bugs of order two; 0 excludes them
    replay_share        share of the slots for measured bugs of mixed results, even while fresh bugs wait
    """

    fresh: Sequence[BugRow]
    measured: Sequence[BugRow]
    slots: int
    second_order_share: float
    replay_share: float = 0.0


def choose_solver_bugs(sampler: str, candidates: Candidates, rng: random.Random) -> list[BugRow]:
    """The bugs that the part `sampler` chooses.

    Raises PartError if it chooses too many, one twice, or another.
    """
    chosen: list[BugRow] = parts.call("curriculum.sampler", sampler, candidates, rng)
    ids = [bug.bug_id for bug in chosen]
    there = {bug.bug_id for bug in (*candidates.fresh, *candidates.measured)}
    if len(ids) > candidates.slots or len(set(ids)) < len(ids) or not there.issuperset(ids):
        raise PartError(
            f"curriculum.sampler = {sampler!r} chose {ids}; "
            f"it must choose at most {candidates.slots} different bugs of those it is given"
        )
    return chosen


def by_solve_rate(candidates: Candidates, rng: random.Random) -> list[BugRow]:
    """Fresh bugs first, the oldest of them first, then measured bugs by `replay_weight`.

    First, each slot becomes a replay with probability `replay_share`: a measured bug that some attempts
    repaired and some did not. Then each other slot is of order two with probability `second_order_share`. If
    one order has too few bugs, the other fills its slots.
    """
    slots, share = candidates.slots, candidates.second_order_share
    measured = candidates.measured
    replays: list[BugRow] = []
    if candidates.replay_share > 0:
        wanted = sum(rng.random() < candidates.replay_share for _ in range(slots))
        mixed = [bug for bug in measured if bug.solve_rate is not None and 0 < bug.solve_rate < 1]
        orders = (1, 2) if share > 0 else (1,)
        replays = [bug for order in orders for bug in _queue((), mixed, order, rng)][:wanted]
        taken = {bug.bug_id for bug in replays}
        measured = [bug for bug in measured if bug.bug_id not in taken]
        slots -= len(replays)
    second_slots = sum(rng.random() < share for _ in range(slots))
    first = _queue(candidates.fresh, measured, 1, rng)
    second = _queue(candidates.fresh, measured, 2, rng) if share > 0 else []
    taken_second = max(min(second_slots, len(second)), min(slots - len(first), len(second)))
    taken_first = min(slots - taken_second, len(first))
    return replays + first[:taken_first] + second[:taken_second]


def uniformly(candidates: Candidates, rng: random.Random) -> list[BugRow]:
    """Any bugs, each with the same chance: a baseline without a curriculum."""
    bugs = sorted((*candidates.fresh, *candidates.measured), key=lambda bug: bug.bug_id)
    allowed = [bug for bug in bugs if bug.order == 1 or candidates.second_order_share > 0]
    return rng.sample(allowed, min(candidates.slots, len(allowed)))


def _queue(
    fresh: Sequence[BugRow], measured: Sequence[BugRow], order: int, rng: random.Random
) -> list[BugRow]:
    """All bugs of one order: fresh ones by age, then measured ones at random, by replay weight."""
    waiting = sorted(
        (bug for bug in fresh if bug.order == order),
        key=lambda bug: (bug.created_update, bug.created_at, bug.bug_id),
    )
    replayable = sorted((bug for bug in measured if bug.order == order), key=lambda bug: bug.bug_id)
    # Efraimidis and Spirakis (2006): sorting by u^(1/w), with u uniform on [0, 1], samples without
    # replacement with probabilities proportional to w.
    sampled = sorted(replayable, key=lambda bug: rng.random() ** (1 / replay_weight(bug)), reverse=True)
    return waiting + sampled


def replay_weight(bug: BugRow) -> float:
    """How strongly a measured bug is preferred for a replay: 4s(1-s) / (1 + plays), for solve rate s.

    The weight peaks at a solve rate of one half. A bug without a rate, since too few attempts were graded,
    counts as one half.
    """
    rate = 0.5 if bug.solve_rate is None else bug.solve_rate
    return max(4 * rate * (1 - rate), SETTLED_WEIGHT) / (1 + bug.plays)


def choose_strategy(weights: Mapping[str, float], rng: random.Random) -> str:
    """A strategy, with probability proportional to its weight. The order of the mapping does not matter."""
    names = sorted(name for name, weight in weights.items() if weight > 0)
    return rng.choices(names, [weights[name] for name in names])[0]


def choose_target(targets: Sequence[str], uses: Mapping[str, int], rng: random.Random) -> str:
    """One of the least used targets, so that bugs spread over a repository.

    Raises ValueError if there are no targets.
    """
    if not targets:
        raise ValueError("there are no targets to choose from")
    least = min(uses.get(target, 0) for target in targets)
    return rng.choice([target for target in targets if uses.get(target, 0) == least])


def sample_threshold(bounds: tuple[int, int], seed: int, name: str) -> int:
    """A whole number within `bounds`, both included. It depends only on the seed and the threshold's name."""
    low, high = bounds
    return low + derive_seed(seed, name) % (high - low + 1)
