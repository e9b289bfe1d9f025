"""Filters of bugs in a line of text, as a person types them, and the values of single options. Pure."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from datetime import datetime

from selfplay.curriculum.bug_filter import BugFilter
from selfplay.errors import UsageError

NAMES = ("repository", "strategy", "order", "status", "solve-rate", "since")
UNITS_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
RATE = re.compile(r"(\d*\.?\d*)\.\.(\d*\.?\d*)")


def solve_rates(text: str) -> tuple[float | None, float | None]:
    """(least, most) of `0.1..0.6`, `0.5..`, `..0.2`, or `0.5` for exactly that. Raises UsageError."""
    found = RATE.fullmatch(text.strip())
    try:
        low, high = (found[1], found[2]) if found else (text, text)
        bounds = (float(low) if low else None, float(high) if high else None)
    except ValueError:
        bounds = (2.0, None)
    given = [bound for bound in bounds if bound is not None]
    if not given or any(not 0 <= bound <= 1 for bound in given) or given != sorted(given):
        raise UsageError(
            f"--solve-rate {text!r}: give two rates from 0 to 1, for instance 0.1..0.6, 0.5.. or ..0.2."
        )
    return bounds


def since(text: str, now: float) -> tuple[int | None, float | None]:
    """(update, seconds since 1970) of `u12` or `12` (an update), `2d`, `6h` (ago), `2026-11-30`, with a time.

    One of them is None. now: seconds since 1970. Raises UsageError.
    """
    if found := re.fullmatch(r"u?(\d+)", text):
        return int(found[1]), None
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text):
        return None, now - float(found[1]) * UNITS_S[found[2]]
    try:
        return None, datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise UsageError(
            f"--since {text!r}: give an update (12), an age (90m, 6h, 2d) or a date (2026-11-30, "
            "2026-11-30T12:00)."
        ) from error


def filter_of(text: str, base: BugFilter, now: float) -> BugFilter:
    """`order=2 solve-rate=0.1..0.6` as a filter that keeps the text, sort and limit of `base`.

    now: seconds since 1970. Raises UsageError.
    """
    empty = BugFilter(text=base.text, sort=base.sort, reverse=base.reverse, limit=base.limit)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}.") from error
    found = empty
    for word in words:
        name, is_pair, value = word.partition("=")
        if not is_pair or name not in NAMES:
            raise UsageError(f"{word!r} is no filter. Write name=value, with one of: {', '.join(NAMES)}.")
        found = _with(found, name, value, now)
    return found


def _with(found: BugFilter, name: str, value: str, now: float) -> BugFilter:
    if name == "solve-rate":
        low, high = solve_rates(value)
        return replace(found, min_solve_rate=low, max_solve_rate=high)
    if name == "since":
        update, at = since(value, now)
        return replace(found, since_update=update, since=at)
    if name == "order":
        if value not in ("1", "2"):
            raise UsageError(f"order={value}: it is 1 or 2.")
        return replace(found, order=int(value))
    if name == "repository":
        return replace(found, repository=value)
    return replace(found, strategy=value) if name == "strategy" else replace(found, status=value)


def filter_text(wanted: BugFilter) -> str:
    """A filter as a person would type it; "" for all bugs."""
    low, high = wanted.min_solve_rate, wanted.max_solve_rate
    rate = "" if low is None and high is None else f"{'' if low is None else f'{low:g}'}.."
    rate += "" if high is None else f"{high:g}"
    at = "" if wanted.since is None else datetime.fromtimestamp(wanted.since).isoformat("T", "seconds")
    given = {
        "repository": wanted.repository or "",
        "strategy": wanted.strategy or "",
        "order": str(wanted.order or ""),
        "status": wanted.status or "",
        "solve-rate": rate,
        "since": at if wanted.since_update is None else str(wanted.since_update),
    }
    words = [f"{name}={shlex.quote(value)}" for name, value in given.items() if value]
    return " ".join([*words, *([f"text {wanted.text!r}"] if wanted.text else [])])
