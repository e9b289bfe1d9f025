"""Runs a suite for the first time, and cuts it to what fits if it is too long or if a test ends Python.

The choice is that of `durations`. Invariant: what is chosen takes about a seventh of the time limit, so that
a slower machine, or a slower moment of this one, ends no later run.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from selfplay.repositories.durations import Durations, choose, read_durations
from selfplay.repositories.recorders import Recorder, run_with_plugin

if TYPE_CHECKING:
    from selfplay.repositories.suites import Suite
    from selfplay.repositories.trial import Trial
    from selfplay.sandbox.base import ExecResult
    from selfplay.source.trees import Tree

# Shares of environment.test_timeout_s.
LONGEST = 0.5  # of a suite that is not cut
CHOSEN = 0.15  # of a suite that is cut; if nothing fits, LONGEST
TEST = 0.1  # of a test that is measured; a longer one is ended
MEASURED = 1.0  # of a run that measures
KILLED = 1.5  # when such a run is killed, since a test cannot be ended
FAIR = 2.0  # how many times its equal part of such a run a file may take
ROUNDS = 4  # runs that measure: each one may be spoiled by a test that ends it
TIMES = "times.jsonl"


def first_run(trial: Trial, suite: Suite, log_name: str) -> tuple[Suite, ExecResult | None]:
    """Run the suite once. Returns it with the result, or the suite that is to run, mostly a shorter one."""
    limit_s = trial.job.settings.test_timeout_s
    tree = trial.job.checkout.tree
    result, durations = _timed(trial, tree, suite, log_name, LONGEST * limit_s)
    if durations.is_whole and result.timed_out:  # the tests ended, and Python has the whole time to end too
        return suite, None
    if durations.is_whole or not (result.timed_out or durations.running):
        return suite, result
    what = f"take longer than {LONGEST * limit_s:.0f} s" if result.timed_out else "end Python"
    trial.job.report(f"its tests {what}: measuring them")
    durations, harmful = _measured(trial, suite, durations, was_killed=result.timed_out)
    chosen = choose(suite.files, durations, CHOSEN * limit_s, harmful)
    chosen = chosen if chosen.files else choose(suite.files, durations, LONGEST * limit_s, harmful)
    if not chosen.files:  # the whole time for the whole suite
        return without_tests(suite, harmful), None
    for note in chosen.notes:
        trial.job.report(note)
    shorter = without_tests(suite, chosen.without)
    return replace(shorter, files=chosen.files, notes=(*suite.notes, *chosen.notes)), None


def _measured(
    trial: Trial, suite: Suite, durations: Durations, was_killed: bool
) -> tuple[Durations, tuple[str, ...]]:
    """How long the tests take that `durations` has not, and the tests that ended a run.

    was_killed: the test that ran last was not at fault, as far as one knows.
    """
    limit_s = trial.job.settings.test_timeout_s
    harmful: list[str] = [] if was_killed else [durations.running]
    left = [path for path in suite.files if path not in durations.files] or list(suite.files)
    for number in range(1, ROUNDS + 1):
        shorter = replace(without_tests(suite, harmful), files=tuple(left))
        shares = (TEST, min(max(FAIR * MEASURED / len(left), TEST), LONGEST), MEASURED)
        _, found = _timed(
            trial,
            trial.job.checkout.tree,
            shorter,
            f"measured-{number}",
            KILLED * limit_s,
            " ".join(f"{share * limit_s:g}" for share in shares),
        )
        durations = durations.joined(found)
        if found.is_whole or not found.running or found.running in harmful:
            break
        harmful.append(found.running)
        left = [path for path in left if path not in found.files]
    return durations, tuple(harmful)


def run_with_limit(trial: Trial, tree: Tree, suite: Suite, log_name: str) -> ExecResult:
    """Run the suite, and end each test that takes a large share of the time limit.

    Raises EnvironmentBuildError if it does not end in time even so.
    """
    limit_s = trial.job.settings.test_timeout_s
    result, _ = _timed(trial, tree, suite, log_name, KILLED * limit_s, f"{TEST * limit_s:g} inf inf")
    if result.timed_out:
        raise trial.too_long(log_name, result.text, KILLED * limit_s)
    return result


def _timed(
    trial: Trial, tree: Tree, suite: Suite, log_name: str, timeout_s: float, limits: str = ""
) -> tuple[ExecResult, Durations]:
    """Run a suite, and read how long its tests took. limits: those of time_recorder.py, "" for none."""
    recorder = Recorder("time_recorder.py", TIMES, {"SELFPLAY_TIME_LIMITS": limits})
    result, written = run_with_plugin(trial, tree, suite.script, recorder, log_name, timeout_s)
    record = written[TIMES].content if TIMES in written else b""
    return result, read_durations(record, result.duration_s)


def without_tests(suite: Suite, functions: Collection[str]) -> Suite:
    """The suite without these test functions."""
    options = [suite.options, *(f"--deselect={shlex.quote(name)}" for name in functions)]
    return replace(suite, options=" ".join(options))
