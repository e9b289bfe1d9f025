"""Rates, their standard errors and the difference of two policies on the same bugs. Pure: takes numbers, knows nothing of attempts.

A bug is the unit that was sampled: its attempts are averaged first, and errors come from the spread between bugs alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
# A sign test on fewer bugs that changed cannot reach 5 %: 2 · 0.5^5 = 0.063, 2 · 0.5^6 = 0.031.
MIN_CHANGED = 6


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; None where a single value leaves it unknown."""

    mean: float
    error: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """Second minus first, over `count` bugs of which `changed` differ. low, high: the interval, None where it is unknown."""

    mean: float
    error: float | None
    low: float | None
    high: float | None
    count: int
    changed: int

    @property
    def direction(self) -> int:
        """1 or -1 where the interval leaves out 0 and enough bugs changed, else 0: no difference shown."""
        if self.low is None or self.high is None or self.changed < MIN_CHANGED:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of one value a bug, which is the standard error clustered by bug (Miller 2024, arXiv 2411.00640).

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("a mean of no values")
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, None, count)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count), count)


def paired_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Difference:
    """Second minus first, bug by bug, with Student's t interval over bugs (paired differences: Miller 2024, arXiv 2411.00640).

    Raises ValueError for none, or where the lengths differ.
    """
    changes = [b - a for a, b in zip(first, second, strict=True)]
    found = estimate(changes)
    changed = sum(change != 0 for change in changes)
    if found.error is None:
        return Difference(found.mean, None, None, None, found.count, changed)
    reach = t_quantile((1 + confidence) / 2, found.count - 1) * found.error
    return Difference(found.mean, found.error, found.mean - reach, found.mean + reach, found.count, changed)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k from c passes in n attempts, 1 - C(n-c, k)/C(n, k) (Chen et al. 2021, arXiv 2107.03374).

    Raises ValueError where fewer than k attempts say nothing of it.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(
            f"no pass@{k} from {c} passes in {n} attempts: needs 0 <= passes <= attempts and 1 <= k <= attempts"
        )
    return 1.0 if n - c < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def t_quantile(share: float, freedom: int) -> float:
    """The t below which `share` (0.5 to 1) of Student's distribution with `freedom` degrees lies, by bisection."""
    if not 0.5 <= share < 1 or freedom < 1:
        raise ValueError(
            f"no quantile for share {share} and {freedom} degrees of freedom: needs 0.5 <= share < 1 and at least 1"
        )
    low, high = 0.0, 1.0
    while _t_share(high, freedom) < share:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _t_share(t: float, freedom: int) -> float:
    """P(T < t) for t >= 0: the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    squared = math.cos(angle) ** 2
    if freedom % 2:
        term, total = math.cos(angle), 0.0
        for step in range(1, freedom - 1, 2):
            total += term
            term *= squared * (step + 1) / (step + 2)
        inside = (2 / math.pi) * (angle + math.sin(angle) * total)
    else:
        term, total = 1.0, 0.0
        for step in range(0, freedom, 2):
            total += term
            term *= squared * (step + 1) / (step + 2)
        inside = math.sin(angle) * total
    return (1 + inside) / 2
