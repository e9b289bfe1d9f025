"""How long tests take, and which of them fit into the time of a run. Pure: running them is left to `fitting`.

Invariant: a record comes out of a sandbox, so each part of another form is left out. Equal durations give an
equal choice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_SINGLE = 20  # single tests that are left out of files that stay
SINGLE_SHARE = 0.05  # of the time of a run; a quicker test is never left out alone
SHOWN = 10  # names in a note


@dataclass(frozen=True)
class Durations:
    """How long tests took, in seconds.

    start_s    before the first test
    functions  test functions, with all their parameters: "tests/test_a.py::test_b" -> seconds
    stuck      functions that were ended
    passed     functions of which some test passed
    cut_short  files whose tests did not all run
    is_whole   whether the run ended by itself
    running    the function that ran when it did not, "" before the first
    """

    start_s: float
    functions: Mapping[str, float]
    stuck: frozenset[str]
    passed: frozenset[str]
    cut_short: frozenset[str]
    is_whole: bool = True
    running: str = ""

    @property
    def seen(self) -> frozenset[str]:
        """The files of which some test began."""
        return frozenset(map(file_of, self.functions))

    @property
    def files(self) -> dict[str, float]:
        """The seconds of each file, those that were cut short left out."""
        found: dict[str, float] = {}
        for function, seconds in self.functions.items():
            path = file_of(function)
            if path not in self.cut_short:
                found[path] = found.get(path, 0.0) + seconds
        return found

    def joined(self, other: Durations) -> Durations:
        """With those of another run, which count where both have a file."""
        files = other.seen
        kept = {name: took for name, took in self.functions.items() if file_of(name) not in files}
        return Durations(
            max(self.start_s, other.start_s),
            {**kept, **other.functions},
            (self.stuck & kept.keys()) | other.stuck,
            self.passed | other.passed,
            (self.cut_short - files) | other.cut_short,
        )


@dataclass(frozen=True)
class Choice:
    """files: those that run; without: their functions that do not; notes: what does not run, and why."""

    files: tuple[str, ...]
    without: tuple[str, ...]
    notes: tuple[str, ...]


def file_of(function: str) -> str:
    """The file of a test function or test id."""
    return function.partition("::")[0]


def read_durations(record: bytes, ended_s: float) -> Durations:
    """Read what time_recorder.py wrote. ended_s: when the run was ended, if it did not end by itself."""
    lines = [line for text in record.split(b"\n") if (line := _line(text)) is not None]
    functions: dict[str, float] = {}
    stuck: set[str] = set()
    passed: set[str] = set()
    left_out: set[str] = set()
    whole: set[str] = set()
    running, began, start_s = "", 0.0, ended_s
    is_whole = any(kind == "end" for _, kind, _ in lines)
    for seconds, kind, name in lines if is_whole else [*lines, (ended_s, "end", "")]:
        if kind in ("test", "end"):
            if running:
                functions[running] = functions.get(running, 0.0) + max(0.0, seconds - began)
            else:
                start_s = seconds
            if kind == "end":
                break
            running, began = name, seconds
        elif kind == "ended":
            stuck.add(name)
        elif kind == "passed":
            passed.add(name)
        elif kind == "left out":
            left_out.add(name)
        elif kind == "whole":
            whole.add(name)
    return Durations(
        start_s,
        functions,
        frozenset(stuck),
        frozenset(passed),
        frozenset(left_out | (set(map(file_of, functions)) - whole)),
        is_whole,
        "" if is_whole else running,
    )


def _line(text: bytes) -> tuple[float, str, str] | None:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or len(found) != 3:
        return None
    seconds, kind, name = found
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or not isinstance(kind, str):
        return None
    return (float(seconds), kind, name) if isinstance(name, str) and name.isprintable() else None


def choose(
    files: Sequence[str], durations: Durations, room_s: float, harmful: Collection[str] = ()
) -> Choice:
    """The files that fit into `room_s` seconds: without single slow tests, and without the longest files.

    harmful: functions that end the run. A file of which no test passes takes no room.
    """
    useful = {file_of(function) for function in durations.passed}.intersection(files)
    took = {path: seconds for path, seconds in durations.files.items() if path in useful}
    slow = [name for name in _slow_functions(durations, took, room_s) if name not in harmful]
    for function in slow:
        took[file_of(function)] -= durations.functions[function]
    stuck_files = {file_of(name) for name in durations.stuck.difference(slow)}
    still_useful = {file_of(name) for name in durations.passed.difference(slow, harmful)}
    kept: list[str] = []
    room = _room_for_tests(durations, room_s)
    for path in sorted(took, key=lambda path: (took[path], path)):
        if took[path] <= room and path in still_useful and path not in stuck_files:
            kept.append(path)
            room -= took[path]
    slow = [name for name in slow if file_of(name) in kept]
    ending = [name for name in harmful if file_of(name) in kept]
    notes = _notes([path for path in files if path not in kept], slow, ending, durations, room_s)
    return Choice(tuple(sorted(kept)), (*ending, *slow), notes)


def _room_for_tests(durations: Durations, room_s: float) -> float:
    """What is left after the imports; at least half, since few files may import less."""
    return max(room_s - durations.start_s, room_s / 2)


def _slow_functions(durations: Durations, took: Mapping[str, float], room_s: float) -> list[str]:
    """Single tests to leave out: those that were ended, and while all is too long: those that do not pass,
    then the slowest ones.
    """
    known = [name for name in durations.functions if file_of(name) in took]
    stuck = sorted(name for name in known if name in durations.stuck)[:MAX_SINGLE]
    over = sum(took.values()) - sum(durations.functions[name] for name in stuck)
    over -= _room_for_tests(durations, room_s)
    chosen = list(stuck)
    slow = [
        name for name in known if durations.functions[name] >= SINGLE_SHARE * room_s and name not in stuck
    ]
    for name in sorted(slow, key=lambda name: (name in durations.passed, -durations.functions[name], name)):
        if over <= 0 or len(chosen) >= MAX_SINGLE:
            break
        chosen.append(name)
        over -= durations.functions[name]
    return chosen


def _notes(
    gone: Sequence[str],
    slow: Sequence[str],
    ending: Sequence[str],
    durations: Durations,
    room_s: float,
) -> tuple[str, ...]:
    seconds = {**durations.functions, **durations.files}
    useful = {file_of(function) for function in durations.passed} | durations.cut_short
    failing = [path for path in gone if path in durations.seen and path not in useful]
    long = [*(path for path in gone if path not in failing), *slow]
    shown = [f"{name} ({seconds[name]:.0f} s)" if name in seconds else name for name in long]
    groups = {
        "too long": shown,
        "ends Python, or cannot be ended": ending,
        "no test passes": failing,
    }
    notes = [f"left out, {why}: {_listed(names)}" for why, names in groups.items() if names]
    fit = f"the tests are those that fit into {room_s:.0f} s, a share of environment.test_timeout_s"
    return (fit, *notes) if long else tuple(notes)


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
