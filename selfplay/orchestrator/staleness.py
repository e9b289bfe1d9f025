"""How old an episode is, counted in weight versions from its oldest action token, and which are too old to train on. Pure."""

from __future__ import annotations


def lag(oldest_version: int, current_version: int) -> int:
    """Updates between the weights that drew an episode's oldest action token and the current ones."""
    return current_version - oldest_version


def is_stale(oldest_version: int, current_version: int, max_lag: int) -> bool:
    """Whether an episode is more than `max_lag` updates old (SSR drops those above 8)."""
    return lag(oldest_version, current_version) > max_lag
