"""How old episodes are, which are too old to train on, and what may be played now. Pure.

The age (lag) of an episode is the number of updates between the weights of its oldest action token and the
current weights. Wave w is what is played for update w. Invariant: it starts with the weights of update w -
1 - max_async_updates or newer, and update w trains weights of version w - 1. So its lag is at most
max_async_updates. The rest of max_lag is for slow groups, which join a later update.
"""

from __future__ import annotations


def lag(oldest_version: int, current_version: int) -> int:
    """Updates between the weights of an episode's oldest action token and the current ones."""
    return current_version - oldest_version


def is_stale(oldest_version: int, current_version: int, max_lag: int) -> bool:
    """True if an episode is more than `max_lag` updates old (SSR drops those above 8)."""
    return lag(oldest_version, current_version) > max_lag


def async_updates(max_async_updates: int, max_lag: int) -> int:
    """Updates that may be played ahead of the one that trains, so that none is too old when it trains."""
    return min(max_async_updates, max_lag)


def newest_wave(committed: int, max_async_updates: int, last: int) -> int:
    """The last wave that may start once `committed` updates are done and their weights are published."""
    return min(committed + 1 + max_async_updates, last)
