"""How old an episode is, counted in weight versions from its oldest action token, which are too old to train on, and what may start. Pure.

Wave w is what is played for update w. Invariant: it begins with the weights of update w - 1 - ahead or newer, and update w trains weights
of version w - 1: its lag is at most `ahead`, and the rest of max_lag is left to groups that straggle into a later update.
"""

from __future__ import annotations


def lag(oldest_version: int, current_version: int) -> int:
    """Updates between the weights that drew an episode's oldest action token and the current ones."""
    return current_version - oldest_version


def is_stale(oldest_version: int, current_version: int, max_lag: int) -> bool:
    """Whether an episode is more than `max_lag` updates old (SSR drops those above 8)."""
    return lag(oldest_version, current_version) > max_lag


def async_updates(ahead: int, max_lag: int) -> int:
    """How many updates are played ahead of the one that trains: no episode starts that would be too old when its turn comes."""
    return min(ahead, max_lag)


def newest_wave(committed: int, ahead: int, last: int) -> int:
    """The last wave that may start once `committed` updates are done and their weights published."""
    return min(committed + 1 + ahead, last)
