"""A rate with its interval over bugs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.evaluation.statistics import CONFIDENCE, estimate, t_quantile


@dataclass(frozen=True)
class Rate:
    """A mean with its 95 % interval over bugs, clipped to 0 and 1; None for a single bug."""

    mean: float
    low: float | None
    high: float | None
    bugs: int


def rate_of(by_bug: Sequence[float]) -> Rate:
    """The mean over bugs with Student's t interval, clustered by bug. Raises ValueError for no values."""
    found = estimate(by_bug)
    if found.error is None:
        return Rate(found.mean, None, None, found.count)
    reach = t_quantile((1 + CONFIDENCE) / 2, found.count - 1) * found.error
    return Rate(found.mean, max(0.0, found.mean - reach), min(1.0, found.mean + reach), found.count)
