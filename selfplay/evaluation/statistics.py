"""Means with standard errors, paired differences with intervals, and pass@k. Pure: numbers in, numbers out.

A bug is the sampling unit: its attempts are averaged first. So standard errors come from the spread between
bugs alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
# With fewer changed bugs a sign test cannot reach 5 %: 2 · 0.5^5 = 0.063, 2 · 0.5^6 = 0.031.
MIN_CHANGED = 6


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` values and its standard error. `error` is None for a single value."""

    mean: float
    error: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A mean difference, second minus first, over `count` bugs, of which `changed` differ.

    low, high: the confidence interval, None if it is unknown
    """

    mean: float
    error: float | None
    low: float | None
    high: float | None
    count: int
    changed: int

    @property
    def direction(self) -> int:
        """1 or -1 if the interval excludes 0 and at least MIN_CHANGED bugs changed.

        Otherwise 0: no difference is shown.
        """
        if self.low is None or self.high is None or self.changed < MIN_CHANGED:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of `values`, one per bug.

    This is the standard error clustered by bug (Miller 2024, arXiv 2411.00640). Raises ValueError for no
    values.
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
    """The mean of `second` minus `first`, bug by bug, with Student's t interval over bugs.

    Paired differences: Miller 2024, arXiv 2411.00640. Raises ValueError for no values and for different
    lengths.
    """
    changes = [b - a for a, b in zip(first, second, strict=True)]
    found = estimate(changes)
    changed = sum(change != 0 for change in changes)
    if found.error is None:
        return Difference(found.mean, None, None, None, found.count, changed)
    reach = t_quantile((1 + confidence) / 2, found.count - 1) * found.error
    return Difference(found.mean, found.error, found.mean - reach, found.mean + reach, found.count, changed)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k from c passes in n attempts.

    The formula is 1 - C(n-c, k)/C(n, k) (Chen et al. 2021, arXiv 2107.03374). Raises ValueError for fewer
    than k attempts.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        needed = "needs 0 <= passes <= attempts and 1 <= k <= attempts"
        raise ValueError(f"no pass@{k} from {c} passes in {n} attempts: {needed}")
    return 1.0 if n - c < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def t_quantile(share: float, freedom: int) -> float:
    """The quantile of Student's t distribution with `freedom` degrees of freedom, by bisection.

    share: the probability below the quantile, in [0.5, 1)
    """
    if not 0.5 <= share < 1 or freedom < 1:
        needed = "needs 0.5 <= share < 1 and at least 1"
        raise ValueError(f"no quantile for share {share} and {freedom} degrees of freedom: {needed}")
    low, high = 0.0, 1.0
    while _t_share(high, freedom) < share:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _t_share(t: float, freedom: int) -> float:
    """P(T < t) for t >= 0 (Abramowitz and Stegun 26.7.3 and 26.7.4: series for whole degrees of freedom)."""
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
