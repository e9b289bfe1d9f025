"""Option types of the benchmarks' command lines."""

from __future__ import annotations

import argparse


def at_least_one(text: str) -> int:
    """A whole number from 1. argparse adds the option's name to the error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)
