"""Decides whether the tests of a repository can be trusted: equal runs, and failures when the code is broken.

Invariant: an admitted baseline is not empty. Its tests passed in every run, and at least half of them fail
when the code is unusable. Otherwise verdicts would judge chance, or code that no bug reaches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selfplay.outcomes import TestOutcomes
from selfplay.repositories.dependencies import read_dependencies
from selfplay.repositories.fitting import first_run, run_with_limit
from selfplay.repositories.hiding import Hiding, hiding_plans
from selfplay.repositories.import_failures import hints_to_extend
from selfplay.repositories.test_failures import with_cause
from selfplay.source.trees import FileEntry

if TYPE_CHECKING:
    from selfplay.repositories.probe import ProbeResult
    from selfplay.repositories.suites import Suite
    from selfplay.repositories.trial import BuildJob, Trial
    from selfplay.sandbox.base import ExecResult

# Parts of test ids that differ between runs, such as addresses.
UNSTABLE_ID = re.compile(r"0x[0-9a-fA-F]{6,}|<[\w.]+ object|<function |<class |<built-in ")
MIN_SHARE = 0.95  # of the tests that pass with everything in sight: as many must pass with copies hidden
PLANTED = b'\nraise RuntimeError("planted by selfplay: this module was imported from the workspace")\n'
UNREADABLE = b")]} planted by selfplay: no language reads this {[(\n"


@dataclass(frozen=True)
class Baseline:
    """outcomes: the tests that passed in every run; excluded_ids: all other ids that some run printed."""

    outcomes: TestOutcomes
    excluded_ids: frozenset[str]


def take_baseline(trial: Trial, suite: Suite, first: ExecResult | None = None) -> tuple[Suite, Baseline]:
    """Run the suite several times, each time under another hash seed.

    first: the first of these runs, if it was made already.
    Returns the suite without the files in which no test passes, and its baseline. Raises
    EnvironmentBuildError if no test passes in all runs.
    """
    job = trial.job
    wanted = job.settings.baselines
    runs: list[TestOutcomes] = []
    seen: set[str] = set()
    while len(runs) < wanted:
        number = len(runs)
        log_name = f"baseline-{number + 1}"
        job.report(f"baseline {number + 1} of {wanted}")
        if not seen and first is None and suite.command is None:
            suite, first = first_run(trial, suite, log_name)
        result = first or trial.run(job.checkout.tree, suite.script, log_name, hash_seed=number)
        first = None
        outcomes = trial.outcomes(result.output, suite.parser)
        seen |= outcomes.ids
        if not outcomes.passed:
            raise job.error_of_run(_why_none_passes(suite, result.text, job), log_name, result.text)
        narrower = suite.narrowed_to(outcomes.passed)
        if number == 0 and narrower != suite:
            # Tests in one process may depend on each other, so the files that remain run again.
            suite = narrower
            continue
        runs.append(outcomes)
    stable = _stable_ids(runs)
    if not stable:
        raise job.error_of_run(f"no test passes in all of {len(runs)} runs", "baseline-1", "")
    return suite.narrowed_to(stable), Baseline(TestOutcomes(stable, frozenset()), frozenset(seen) - stable)


def hide_and_take_baseline(
    trial: Trial, suite: Suite, seen: ProbeResult
) -> tuple[Trial, Suite, Baseline, Hiding]:
    """The baseline of a suite with as much hidden as its tests allow.

    Raises EnvironmentBuildError as `take_baseline` does, and if the tests need another release of the
    repository.
    """
    plans = hiding_plans(seen)
    stores = replace(trial, hidden=seen.stores)
    if plans == [Hiding(seen.stores, plans[0].copied)]:
        return (stores, *take_baseline(stores, suite), plans[0])
    job = trial.job
    tree, parser = job.checkout.tree, suite.parser
    first = None
    if suite.command is None:
        suite, first = first_run(stores, suite, "in-sight")
    in_sight = first or stores.run(tree, suite.script, "in-sight")
    everything = trial.outcomes(in_sight.output, parser).passed
    for plan in plans:
        hiding = replace(trial, hidden=plan.paths)
        job.report(f"without {len(plan.paths)} copies or other releases in its environment")
        result = hiding.run(tree, suite.script, "baseline-1")
        passed = trial.outcomes(result.output, parser).passed
        if len(passed & everything) >= MIN_SHARE * len(everything):
            return (hiding, *take_baseline(hiding, suite, result), plan)
    others = [*seen.releases, *seen.archives]
    raise job.error(
        f"its tests need another release of it, so a repair could be copied: {', '.join(others[:5])}. "
        'Name dependencies that do not bring it along with the hint install="pip install …".'
    )


def _why_none_passes(suite: Suite, log: str, job: BuildJob) -> str:
    what = "no test passes"
    if suite.command is not None:
        return what
    checkout = job.checkout
    given = hints_to_extend(checkout.spec, read_dependencies(checkout.tree, checkout.name))
    return with_cause(what, log, checkout.tree, given)


def _stable_ids(runs: Sequence[TestOutcomes]) -> frozenset[str]:
    """The tests that passed in every run and failed in none, with an id that is the same each time."""
    passed = frozenset.intersection(*(run.passed for run in runs))
    failed: frozenset[str] = frozenset().union(*(run.failed for run in runs))
    return frozenset(name for name in passed - failed if not UNSTABLE_ID.search(name))


def check_planted_error(trial: Trial, suite: Suite, baseline: Baseline) -> None:
    """Make all code unusable and run the tests.

    Python modules get a `raise`. Files in other languages get a text that no language can read. Raises
    EnvironmentBuildError if more than half of the baseline still passes.
    """
    tree = trial.job.checkout.tree
    paths = suite.code_files(tree)
    broken = tree.replace({path: _unusable(path, tree[path]) for path in paths})
    with trial.workspace(broken, {"PYTHONHASHSEED": "0"}) as box:
        result = trial.attempt(box, suite.script, "planted", trial.job.settings.test_timeout_s)
    if result.timed_out and suite.command is None:  # a test may wait for what broken code never does
        result = run_with_limit(trial, broken, suite, "planted")
    elif result.timed_out:
        raise trial.too_long("planted", result.text, trial.job.settings.test_timeout_s)
    passed = baseline.outcomes.passed
    still = trial.outcomes(result.output, suite.parser).passed & passed
    if 2 * len(still) > len(passed):
        raise trial.job.error_of_run(
            f"{len(still)} of {len(passed)} tests still pass with each of its {len(paths)} code files "
            "made unusable: the package is imported from elsewhere, or the tests do not test it",
            "planted",
            result.text,
        )


def _unusable(path: str, entry: FileEntry) -> FileEntry:
    return FileEntry(entry.content + PLANTED if path.endswith(".py") else UNREADABLE, entry.executable)
