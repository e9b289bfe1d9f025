"""The consistency checks on an artifact, in order. They run the tests of each state; `checks` decides.

Grading repairs and finding duplicates are left to others. Invariant: a failure of the machine raises
SandboxUnavailable and never becomes a verdict, because it says nothing about the artifact.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from selfplay.errors import PatchError
from selfplay.repositories.targets import touched_functions_of
from selfplay.source.apply import apply_parsed
from selfplay.source.diffs import Patch, diff_bytes, parse_patch
from selfplay.source.path_policy import (
    is_other_code,
    is_protected_path,
    is_runner_path,
    is_test_path,
    shadows,
)
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import MAX_STORED_PATCH, BugState, States, bug_digest, build_states
from selfplay.verdicts.checks import (
    Finding,
    Thresholds,
    broken_tests,
    fail,
    judge_baseline,
    judge_bug,
    judge_changed_files,
    judge_empty_log,
    judge_reverts,
    judge_weakening,
    shown,
)
from selfplay.verdicts.determinism import PARALLEL_RUNS, Job, Repeats
from selfplay.verdicts.house import house_script, is_house_made, judge_exit_status
from selfplay.verdicts.perturbation import REPEAT, beyond_changes, may_be_random, noisy
from selfplay.verdicts.repairs import judge_exact_repair
from selfplay.verdicts.reverts import revert_units
from selfplay.verdicts.sourceless import judge_without_source, modules_among, without_source
from selfplay.verdicts.test_logs import short_failure, without_lines_naming
from selfplay.verdicts.test_runs import TestRun, TestRunner
from selfplay.verdicts.verdict import CHECKS, CheckResult, Verdict

if TYPE_CHECKING:
    from selfplay.repositories.environment import Environment
    from selfplay.settings.playing import ValidatorSettings

UNIMPORTABLE = b"\nraise RuntimeError\n"
UNREADABLE = b")]} nothing reads this {[(\n"  # replaces a file in a language other than Python


def validate(
    artifact: Artifact,
    environment: Environment,
    thresholds: Thresholds,
    runner: TestRunner,
    settings: ValidatorSettings,
    all_checks: bool = False,
) -> Verdict:
    """Decide whether `artifact` is a bug of `environment`. Raises SandboxUnavailable.

    all_checks: go on after a failed check, with all checks that are still possible. Otherwise the first
    failure ends the validation.

    The checks that need no run come before the first run, because they cost nothing. So they may come earlier
    than in CHECKS.
    """
    judgement = _Judgement(environment, artifact, thresholds, runner, settings, all_checks)
    with judgement.until_stopped():
        judgement.first_order()
    return judgement.verdict()


def validate_second_order(
    parent: BugState,
    attempt_patch: str,
    environment: Environment,
    thresholds: Thresholds,
    runner: TestRunner,
    settings: ValidatorSettings,
) -> Verdict:
    """Decide whether `parent` with a failed attempt on top is a bug with the same specification.

    Raises SandboxUnavailable.
    """
    judgement = _Judgement(environment, parent.artifact, thresholds, runner, settings, all_checks=False)
    with judgement.until_stopped():
        judgement.second_order(parent, attempt_patch)
    return judgement.verdict()


class _Stop(Exception):
    """A check failed, and the validation ends here."""


@dataclass
class _Judgement:
    """A validation under way: its input, and the findings so far."""

    environment: Environment
    artifact: Artifact
    thresholds: Thresholds
    runner: TestRunner
    settings: ValidatorSettings
    all_checks: bool
    results: list[CheckResult] = field(default_factory=list)
    runs: list[TestRun] = field(default_factory=list)
    original_passed: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    buggy: Tree | None = None
    failure: str = ""
    started: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.monotonic)

    # ---- bookkeeping

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        with suppress(_Stop):
            yield

    def record(self, name: str, finding: Finding, needed: bool = False) -> None:
        """Add a finding.

        A failure ends the validation unless `all_checks` is set and the later checks do not need this one.
        """
        now = time.monotonic()
        self.results.append(
            CheckResult(
                name, finding.passed, finding.reason, dict(finding.evidence), round(now - self.since, 6)
            )
        )
        self.since = now
        if not finding.passed and (needed or not self.all_checks):
            raise _Stop

    def verdict(self) -> Verdict:
        checks = tuple(sorted(self.results, key=lambda check: CHECKS.index(check.name)))
        failed = [check.name for check in checks if not check.passed]
        return Verdict(
            accepted=not failed,
            checks=checks,
            failed_check=failed[0] if failed else "",
            fail_to_pass=tuple(sorted(self.broken)),
            pass_to_pass=tuple(sorted(self.original_passed - self.broken)),
            buggy_digest="" if failed or self.buggy is None else self._digest(self.buggy),
            failure=self.failure,
            duration_s=round(time.monotonic() - self.started, 6),
            test_runs=sum(not run.cached for run in self.runs),
            cached_runs=sum(run.cached for run in self.runs),
        )

    def _digest(self, buggy: Tree) -> str:
        return bug_digest(self.environment.tree, buggy)

    def job(self, tree: Tree) -> Job:
        """The first run of a tree, with the artifact's script and parser."""
        return Job(tree, self.artifact.test_script, self.artifact.test_parser)

    def run(self, tree: Tree) -> TestRun:
        return self.run_job(self.job(tree))

    def run_job(self, job: Job) -> TestRun:
        run = self.runner.run(self.environment, job.tree, job.script, job.parser, job.number)
        self.runs.append(run)
        return run

    def run_all(self, jobs: Sequence[Job]) -> list[TestRun]:
        """Run independent jobs, PARALLEL_RUNS at a time."""
        if len(jobs) < 2:
            return [self.run_job(job) for job in jobs]
        with ThreadPoolExecutor(PARALLEL_RUNS, thread_name_prefix="validate") as pool:
            return list(pool.map(self.run_job, jobs))

    # ---- the two kinds of bugs

    def first_order(self) -> None:
        original = self.environment.tree
        self.record("readable", Finding(True, "", {"digest": self.artifact.digest, "bytes": self._bytes()}))
        bug, weaken, buggy, weakened = self.read_patches()
        self.buggy = buggy
        self.record("protected_paths", judge_bug_paths(bug, buggy, self.artifact, self.environment))
        self.record("test_files", judge_test_files(weaken, self.artifact, self.environment))
        self.record(
            "min_changed_files", judge_changed_files([file.path for file in bug.files], self.thresholds)
        )
        if all(check.passed for check in self.results if check.name in ("protected_paths", "test_files")):
            self.repairable(States(original, buggy, weakened, weakened))
        if weaken.is_empty:
            self.record("weakening_hides", fail("test_weaken.diff is empty: it hides nothing"))

        before = self.original_run()
        with_bug = self.buggy_run(buggy, before)
        if not weaken.is_empty:
            self.record("weakening_hides", self.weakening(with_bug, weakened), needed=False)
        self.inverse_mutation(buggy, revert_units(bug.files, bug.changed_paths))
        self.script_runs_code(bug.changed_paths)
        self.exit_status(buggy)
        self.determinism({"original": original, "buggy": buggy, "weakened": weakened}, bug.changed_paths)

    def second_order(self, parent: BugState, attempt_patch: str) -> None:
        original = self.environment.tree
        states = self.read_attempt(parent, attempt_patch)
        self.buggy = states.buggy
        parent_buggy = apply_parsed(original, parse_patch(parent.artifact.bug_inject, MAX_STORED_PATCH))
        changed = parent_buggy.changed_paths(states.buggy)
        found = {"changed": changed[:20]}
        self.record(
            "min_changed_files",
            Finding(True, "", found) if changed else Finding(False, "the attempt changes no code", found),
        )
        self.repairable(states)

        before = self.original_run()
        with_bug = self.buggy_run(states.buggy, before, parent.fail_to_pass)
        sections = parse_patch(parent.artifact.bug_inject, MAX_STORED_PATCH).files
        self.inverse_mutation(states.buggy, revert_units(sections, original.changed_paths(states.buggy)))
        self.exit_status(states.buggy)
        named = {"original": original, "buggy": states.buggy, "weakened": states.solver_start}
        self.determinism(named, original.changed_paths(states.buggy))
        # A script that no longer runs was stopped by bug_breaks_tests.
        assert with_bug.outcomes.ids

    # ---- the checks that run nothing

    def _bytes(self) -> int:
        return sum(len(diff_bytes(text)) for text in self.artifact.to_files().values())

    def read_patches(self) -> tuple[Patch, Patch, Tree, Tree]:
        """Both diffs, the tree after the first, and the tree after both."""
        name = "bug_inject.diff"
        try:
            bug = parse_patch(self.artifact.bug_inject, self.settings.max_patch_bytes)
            buggy = apply_parsed(self.environment.tree, bug)
            name = "test_weaken.diff"
            weaken = parse_patch(self.artifact.test_weaken, self.settings.max_patch_bytes)
            weakened = apply_parsed(buggy, weaken)
        except PatchError as error:
            self.record("patches", fail(f"{name}: {error}"), needed=True)
            raise _Stop from error
        kinds = {file.path: file.kind for file in (*bug.files, *weaken.files)}
        self.record("patches", Finding(True, "", {"files": dict(list(kinds.items())[:20])}))
        return bug, weaken, buggy, weakened

    def read_attempt(self, parent: BugState, attempt_patch: str) -> States:
        try:
            attempt = parse_patch(attempt_patch, self.settings.max_patch_bytes)
            states = build_states(self.environment.tree, BugState(parent.artifact, 2, attempt_patch, (), ()))
        except PatchError as error:
            self.record("patches", fail(f"the attempt: {error}"), needed=True)
            raise _Stop from error
        self.record(
            "patches", Finding(True, "", {"files": {file.path: file.kind for file in attempt.files[:20]}})
        )
        return states

    def repairable(self, states: States) -> None:
        """A solver that undoes the bug exactly must get the original back, in the tree that is graded."""
        changed = states.original.changed_paths(states.buggy)
        test_files = (*self.artifact.test_files, *self.environment.fixed_files(changed))
        self.record("repairable", judge_exact_repair(states, test_files, self.settings.max_patch_bytes))

    # ---- the checks that run tests

    def original_run(self) -> TestRun:
        """Checks 2 and 3: script and parser on the original. All later checks need these outcomes."""
        run = self.run(self.environment.tree)
        if run.error:
            self.record("parser", fail(run.error, log_end=_end(run.log)), needed=True)
        self.record("parser", self.parser_reads_its_log(run), needed=not run.outcomes.ids)
        self.original_passed = run.outcomes.passed
        self.record("baseline", judge_baseline(run.outcomes, self.thresholds), needed=not run.outcomes.passed)
        return run

    def parser_reads_its_log(self, run: TestRun) -> Finding:
        parser = self.artifact.test_parser
        if not run.outcomes.ids:
            return fail("test_parser.py finds no test in the output of test_script.sh", log_end=_end(run.log))
        empty = self.runner.parse(self.environment, parser, b"")
        stripped = self.runner.parse(
            self.environment, parser, without_lines_naming(run.log, run.outcomes.passed)
        )
        return judge_empty_log(empty.outcomes, stripped.outcomes, run.outcomes)

    def buggy_run(self, buggy: Tree, before: TestRun, parent_tests: Sequence[str] | None = None) -> TestRun:
        """Check 5, with the original's tests.

        parent_tests: for order two, the F2P of the parent; one of them must still fail.
        """
        run = self.run(buggy)
        self.broken = broken_tests(before.outcomes, run.outcomes)
        if run.error:
            finding = fail(f"with the bug {run.error}", log_end=_end(run.log))
        elif parent_tests is not None and not run.outcomes.failed.intersection(parent_tests):
            finding = fail(
                "no test that the first bug breaks still fails", failing=shown(run.outcomes.failed)
            )
        else:
            finding = judge_bug(before.outcomes, run.outcomes, self.thresholds)
        explicit = sorted(self.broken & run.outcomes.failed)
        self.failure = short_failure(run.log, explicit[0]) if explicit else ""
        self.record("bug_breaks_tests", finding, needed=not self.broken or bool(run.error))
        return run

    def weakening(self, with_bug: TestRun, weakened: Tree) -> Finding:
        run = self.run(weakened)
        if run.error:
            return fail(f"with the weakened tests {run.error}", log_end=_end(run.log))
        return judge_weakening(self.broken, with_bug.outcomes, run.outcomes)

    def inverse_mutation(self, buggy: Tree, units: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Check 7. `units`: name and the paths that are reverted together."""
        original = self.environment.tree
        runs = self.run_all([self.job(buggy.restore(original, paths)) for _, paths in units])
        self.record(
            "inverse_mutation",
            judge_reverts(
                self.broken,
                {name: (run.outcomes, run.error) for (name, _), run in zip(units, runs, strict=True)},
            ),
        )

    def script_runs_code(self, touched: Sequence[str]) -> None:
        """Run the script on code that cannot be used: the tests that the bug breaks must not pass.

        They still pass if the script only reads the code. The environment's own script is known to run it and
        needs no proof.
        """
        original, script = self.environment.tree, self.artifact.test_script
        modules = [
            path for path in touched if path in original and (path.endswith(".py") or is_other_code(path))
        ]
        trusted = (self.environment.script, self.environment.script_for(self.artifact.test_files))
        if script in trusted or not modules:
            return
        planted = {path: unusable(path, original[path]) for path in modules}
        run = self.run(original.replace(planted))
        reason = (
            "tests pass although the code that they test cannot be imported: test_script.sh does not run it"
        )
        finding = (
            fail(reason, passing=shown(self.broken))
            if self.broken <= run.outcomes.passed
            else Finding(True, "", {"planted": modules[:20]})
        )
        self.record("script_runs_code", finding)

    def exit_status(self, buggy: Tree) -> None:
        """Run the house's script on the original and on the buggy code: the exit status must tell which."""
        is_bug = all(check.passed for check in self.results if check.name == "bug_breaks_tests")
        if not self.settings.require_exit_status or not is_bug:
            return
        script, parser = house_script(self.environment, self.artifact), self.environment.parser
        runs = self.run_all([Job(tree, script, parser) for tree in (self.environment.tree, buggy)])
        self.record("exit_status", judge_exit_status(*runs))

    def determinism(self, states: Mapping[str, Tree], touched: Sequence[str]) -> None:
        """Run each state again, with changes in the `touched` files and in one other.

        Grading has the house's script and parser. So if the artifact has others, the buggy state is also run
        again with the house's. A bug that may be random, and that these changes cannot reach, is refused.
        """
        if beyond := beyond_changes(self.environment.tree, states["buggy"], touched):
            reason = (
                f"the bug may be random, and {', '.join(beyond[:3])} cannot be changed without meaning. Keep "
                "Python code in .py files, in UTF-8, with plain line ends and the syntax of Python 3.11, and "
                "without locals(), vars(), dir(), eval(), exec() and frames in changed functions"
            )
            self.record("determinism", fail(reason, beyond=beyond[:20]))
            return
        original, artifact, judged = self.environment.tree, self.artifact, "buggy"
        jobs = {name: self.job(tree) for name, tree in states.items()}
        if self.settings.require_exit_status and not is_house_made(artifact, self.environment):
            judged = "buggy, with the house's script"
            script = house_script(self.environment, artifact)
            jobs[judged] = Job(states["buggy"], script, self.environment.parser)

        def change(tree: Tree, number: int) -> Tree:
            # The buggy and the weakened state have the same code, so they get the same changes.
            base = original if tree == original else states["buggy"]
            return noisy(original, tree, touched, self.runner.secret, REPEAT, base.digest, str(number))

        repeats = Repeats(jobs, judged, change, self.run_all)
        is_suspect = may_be_random(original, states["buggy"], touched)
        finding = repeats.judge(self.settings.determinism_runs, is_suspect)
        self.record("determinism", self.sourceless(finding, jobs[judged], touched))

    def sourceless(self, finding: Finding, buggy: Job, touched: Sequence[str]) -> Finding:
        """The finding, after one more run of the buggy state, in which its modules have no source.

        The original's run is known if another bug in the same files had one.
        """
        tree = self.environment.tree
        modules = modules_among(path for path in touched if not is_protected_path(path, tree))
        if not finding.passed or not modules:
            return finding
        readable = [replace(buggy, tree=tree), buggy]
        unreadable = [replace(job, script=without_source(job.script, modules)) for job in readable]
        runs = [(run.outcomes, run.error) for run in self.run_all([*readable, *unreadable])]
        judged = judge_without_source((runs[0], runs[2]), (runs[1], runs[3]))
        return replace(judged, evidence={**finding.evidence, **judged.evidence})


def judge_bug_paths(bug: Patch, buggy: Tree, artifact: Artifact, environment: Environment) -> Finding:
    """bug_inject.diff must change code only, and none that a solver finds elsewhere."""
    tests = {*artifact.test_files, *environment.test_files, *environment.material.files}
    tree = environment.tree
    protected = [
        path
        for path in bug.changed_paths
        if path in tests or is_protected_path(path, tree) or shadows(path, tests, tree)
    ]
    if protected:
        rule = "tests, what only tests use, and files that steer the test run may not be part of a bug"
        reason = f"bug_inject.diff changes {', '.join(protected[:3])}; {rule}"
        return fail(reason, protected=protected[:20])
    if copied := touched_functions_of(environment.copied, tree, buggy):
        rule = "it also lies outside the workspace, so a repair could be copied"
        return fail(f"bug_inject.diff changes {copied[0]}; {rule}", copied=copied[:20])
    return Finding(True, "", {"changed": list(bug.changed_paths[:20])})


def judge_test_files(weaken: Patch, artifact: Artifact, environment: Environment) -> Finding:
    """Check 1: each test file exists in the original and is a test, and test_weaken.diff changes no other."""
    evidence = {"test_files": list(artifact.test_files[:20]), "weakened": list(weaken.changed_paths[:20])}
    if not artifact.test_files:
        return Finding(False, "test_files.txt names no file", evidence)
    for path in artifact.test_files:
        if path not in environment.tree:
            return Finding(
                False, f"test_files.txt names {path[:200]!r}, which the original does not have", evidence
            )
        if is_runner_path(path) or not (is_test_path(path) or path in environment.test_files):
            return Finding(False, f"test_files.txt names {path!r}, which is no test file", evidence)
    others = sorted(set(weaken.changed_paths) - set(artifact.test_files))
    if others:
        return Finding(
            False, f"test_weaken.diff changes {others[0]!r}, which test_files.txt does not name", evidence
        )
    return Finding(True, "", evidence)


def unusable(path: str, entry: FileEntry) -> FileEntry:
    """The file made unusable: a Python module raises on import, and no other language can read the text."""
    return FileEntry(entry.content + UNIMPORTABLE if path.endswith(".py") else UNREADABLE, entry.executable)


def _end(log: bytes) -> str:
    return short_failure(log, "")
