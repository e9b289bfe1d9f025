"""Speeds of a server and of a trainer, fitted to timings by least squares. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from selfplay.errors import RunError
from selfplay.planning.hardware import ServerSpeed, TrainerSpeed, interpolation_weights

# A server's speed is linear between loads. These loads are quantiles, given as shares of all sampled tokens.
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Timing:
    """One generation: when it begins and ends (seconds), its prefilled and its sampled tokens."""

    begins: float
    ends: float
    prefill: int
    sampled: int

    @property
    def seconds(self) -> float:
        return self.ends - self.begins


def fit_server(timings: Sequence[Timing], most: int, servers: int = 1) -> ServerSpeed:
    """Fit: seconds of a generation = sampled tokens · f(n) + c · tokens prefilled on its server meanwhile.

    n is the mean number of requests on the server during the generation. f is linear between quantiles of n,
    which are weighted by sampled tokens. All coefficients are at least 0. Each generation has the weight 1 /
    sampled tokens, so that predicted seconds add up to measured seconds. With several servers, generations
    are assumed to be spread evenly.

    most: requests that a server may run. Raises RunError if no generation was timed.
    """
    timed = [timing for timing in timings if timing.ends > timing.begins and timing.sampled]
    if not timed:
        raise RunError(
            "no turn of the run has a generation time, so the speed of its engine is unknown. "
            "Give a run that was played by a model."
        )
    loads = _loads(timed, servers)
    knots = _knots(sorted((load, timing.sampled) for load, timing in zip(loads, timed, strict=True)))
    prefills = _prefills(timed, servers)
    rows = []
    for timing, load, prefill in zip(timed, loads, prefills, strict=True):
        rows.append([*(timing.sampled * share for share in interpolation_weights(knots, load)), prefill])
    *token_s, read_s = _least_squares(
        rows, [timing.seconds for timing in timed], [1.0 / timing.sampled for timing in timed]
    )
    return ServerSpeed(most=most, read_s=read_s, measured=tuple(zip(knots, token_s, strict=True)))


def _loads(timed: Sequence[Timing], servers: int) -> list[float]:
    """Mean number of requests per server during each generation, at least 1."""
    edges = sorted([(timing.begins, 1) for timing in timed] + [(timing.ends, -1) for timing in timed])
    times = [time for time, _ in edges]
    counts = list(accumulate(change for _, change in edges))
    steps = zip(counts, times, times[1:], strict=False)
    areas = [0.0, *accumulate(count * (end - begin) for count, begin, end in steps)]

    def integral(time: float) -> float:
        index = bisect_right(times, time) - 1
        return areas[index] + counts[index] * (time - times[index])

    return [
        max(1.0, (integral(timing.ends) - integral(timing.begins)) / timing.seconds / servers)
        for timing in timed
    ]


def _prefills(timed: Sequence[Timing], servers: int) -> list[float]:
    """Tokens prefilled per server during each generation, at least its own."""
    begun = sorted((timing.begins, timing.prefill) for timing in timed)
    begins = [time for time, _ in begun]
    totals = [0, *accumulate(prefill for _, prefill in begun)]
    found = []
    for timing in timed:
        first, last = bisect_left(begins, timing.begins), bisect_left(begins, timing.ends)
        found.append(max(float(timing.prefill), (totals[last] - totals[first]) / servers))
    return found


def _knots(weighted: Sequence[tuple[float, float]]) -> list[float]:
    """Quantiles of rising (value, weight) pairs, at least 1 apart."""
    total = sum(weight for _, weight in weighted)
    knots: list[float] = []
    passed = 0.0
    wanted = list(_QUANTILES)
    for value, weight in weighted:
        passed += weight
        while wanted and passed >= wanted[0] * total - 1e-9 * total:
            wanted.pop(0)
            if not knots or value >= knots[-1] + 1:
                knots.append(value)
    return knots


def fit_trainer(updates: Sequence[tuple[float, float]]) -> TrainerSpeed:
    """Fit: seconds of an update = a + b · tokens, with a and b at least 0. updates: (tokens, seconds).

    Without updates the trainer takes no time.
    """
    if not updates:
        return TrainerSpeed()
    fixed_s, token_s = _least_squares(
        [(1.0, tokens) for tokens, _ in updates], [seconds for _, seconds in updates], [1.0] * len(updates)
    )
    return TrainerSpeed(fixed_s=fixed_s, token_s=token_s)


def _least_squares(
    rows: Sequence[Sequence[float]], values: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """Weighted least squares with coefficients of at least 0.

    It sets the most negative one to 0 until none is left.
    """
    used = list(range(len(rows[0])))
    while used:
        matrix = [
            [sum(w * row[i] * row[j] for row, w in zip(rows, weights, strict=True)) for j in used]
            for i in used
        ]
        right = [
            sum(w * row[i] * value for row, value, w in zip(rows, values, weights, strict=True)) for i in used
        ]
        solved = _solve(matrix, right)
        lowest = min(range(len(used)), key=lambda index: solved[index])
        if solved[lowest] >= 0:
            found = dict(zip(used, solved, strict=True))
            return [found.get(index, 0.0) for index in range(len(rows[0]))]
        del used[lowest]
    return [0.0] * len(rows[0])


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Gaussian elimination with pivots. A direction that the data does not determine gets 0."""
    size = len(right)
    work = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    scale = [abs(matrix[index][index]) or 1.0 for index in range(size)]
    for index in range(size):
        pivot = max(range(index, size), key=lambda line: abs(work[line][index]))
        work[index], work[pivot] = work[pivot], work[index]
        if abs(work[index][index]) < 1e-12 * scale[index]:
            work[index] = [1.0 if column == index else 0.0 for column in range(size + 1)]
        for line in range(size):
            if line != index:
                factor = work[line][index] / work[index][index]
                work[line] = [a - factor * b for a, b in zip(work[line], work[index], strict=True)]
    return [work[index][size] / work[index][index] for index in range(size)]
