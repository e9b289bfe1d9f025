"""Bounds how many heaps the C library gives to threads. Leaves everything else about memory alone."""

from __future__ import annotations

import ctypes

ARENA_MAX = -8  # M_ARENA_MAX of glibc's mallopt
HEAPS = 2


def bound_heaps() -> None:
    """Let all threads share two heaps; to be called before they start. Does nothing where the C library is not glibc.

    glibc gives threads up to eight heaps a core, and what one thread frees serves no thread of another heap: many threads, each of which
    holds trees and archives now and then, come to keep gigabytes that nobody uses. Under Python's lock they hardly meet in a heap.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ARENA_MAX, HEAPS)
