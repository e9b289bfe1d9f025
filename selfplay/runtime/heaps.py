"""Limits the number of heaps that the C library makes for threads. This saves memory with many threads."""

from __future__ import annotations

import ctypes

ARENA_MAX = -8  # M_ARENA_MAX of glibc's mallopt
HEAPS = 2


def bound_heaps() -> None:
    """Let all threads share two heaps; call it before they start. Does nothing without glibc.

    glibc makes up to eight heaps a core. Memory that a thread frees is reused only within its heap. Our many
    threads hold large trees and archives for moments, so they would keep gigabytes of freed memory. Two heaps
    cost hardly any waiting, since Python's lock lets one thread run at a time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ARENA_MAX, HEAPS)
