"""A repair attempt: taken from a workspace as a patch, and judged in a fresh sandbox. Solve rates and rewards are left to others.

Invariant: tests, runner files and whatever else is protected are the original's when an attempt is judged.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.errors import PatchError
from selfplay.repositories.environment import standard_parser
from selfplay.source.apply import content_problem, diff_trees
from selfplay.source.diffs import MAX_FILES, parse_patch, path_problem
from selfplay.source.path_policy import is_protected_path
from selfplay.source.trees import FileEntry, Tree, ignore_rules
from selfplay.verdicts.bug import BugState, add_prediction, build_states
from selfplay.verdicts.checks import judge_repair
from selfplay.verdicts.disguise import disguise
from selfplay.verdicts.perturbation import perturb
from selfplay.verdicts.test_runs import Confirmation, TestRun, TestRunner

if TYPE_CHECKING:
    from selfplay.repositories.environment import Environment

MAX_FILE_BYTES = (
    1 << 20
)  # a changed file larger than this is put back: no repair needs it, and a diff of it would be refused
MAX_CHANGED_BYTES = 8 << 20  # of all changed files together, for the same reason
CONFIRMATION_SEED = 7919  # far from the seeds that validation uses
FAILED_TESTS = 1  # pytest's exit status for tests that ran, and not all passed
# For pytest and for unittest: a script may run either.
CANARY = """

def {name}():
    raise AssertionError("this test cannot pass")


class Test_{name}(__import__("unittest").TestCase):
    def {name}(self):
        raise AssertionError("this test cannot pass")
"""


@dataclass(frozen=True)
class Prediction:
    """What an attempt changed. `restored`: paths whose change does not count (protected, named so, binary, too large), sorted."""

    patch: str
    restored: tuple[str, ...]


@dataclass(frozen=True)
class Grade:
    """confirmed: None when there was no pass to confirm; False when a second grading disagreed, which voids the bug."""

    passed: bool
    reason: str
    failed_tests: tuple[str, ...]
    restored: tuple[str, ...]
    confirmed: bool | None
    duration_s: float


def take_prediction(before: Tree, workspace_tar: bytes, not_counted: Collection[str] = ()) -> Prediction:
    """The difference between a solver's workspace and the known tree it started from, taken from outside.

    Files that `before` has always count, new ones unless `before`'s own ignore rules cover them.
    """
    ignored = ignore_rules(before)
    workspace = Tree.from_tar(workspace_tar)
    after = Tree(
        {path: entry for path, entry in workspace.items() if path in before or not ignored.match_file(path)}
    )
    restored: list[str] = []
    changes: dict[str, FileEntry | None] = {}
    left = MAX_CHANGED_BYTES
    for path in before.changed_paths(after):
        entry = after.files.get(path)
        if path in before and entry is not None and entry.content == before[path].content:
            continue  # its mode alone
        size = len(entry.content) if entry is not None else 0
        if (
            path in not_counted
            or _does_not_count(path, before, after)
            or len(changes) >= MAX_FILES
            or size > left
        ):
            restored.append(path)
        else:
            changes[path] = entry
            left -= size
    return Prediction(
        diff_trees(before, before.replace(changes)), tuple(_printable(path) for path in restored)
    )


def _does_not_count(path: str, before: Tree, after: Tree) -> bool:
    entry = after.files.get(path)
    if (
        is_protected_path(path, before)
        or path_problem(path)
        or content_problem(path, before)
        or content_problem(path, after)
    ):
        return True
    return entry is not None and len(entry.content) > MAX_FILE_BYTES


def _printable(path: str) -> str:
    return path if not path_problem(path) else ascii(path)


def grade(
    bug: BugState, patch: str, environment: Environment, runner: TestRunner, confirm: bool = True
) -> Grade:
    """Whether `patch`, laid on what the solver started from, makes every test of F2P and P2P pass.

    A pass is run a second time: with another hash seed, with changes without meaning, without what is known of equal runs, and with
    the tests in disguise (`disguise`): new names, among copies of which some cannot pass. Where that cannot be done one test that cannot
    pass is added. What is then reported otherwise than it must be shows that the code under test has taken the runner over.
    (Code that works out which copy must fail is not found out: it shares a process with the tests.) Raises SandboxUnavailable.
    """
    started = time.monotonic()

    def decided(
        passed: bool,
        reason: str,
        failed: tuple[str, ...] = (),
        restored: tuple[str, ...] = (),
        confirmed: bool | None = None,
    ) -> Grade:
        return Grade(passed, reason, failed, restored, confirmed, round(time.monotonic() - started, 6))

    original, artifact = environment.tree, bug.artifact
    is_standard = artifact.test_parser == standard_parser()
    states = build_states(original, bug)
    tests = (*artifact.test_files, *environment.test_files)
    try:
        prediction = parse_patch(patch, runner.settings.max_patch_bytes)
        predicted, restored = add_prediction(original, states.solver_start, prediction, tests)
    except PatchError as error:
        return decided(False, f"the patch cannot be applied: {error}")
    final = predicted.restore(original, tests)
    if predicted == states.solver_start:
        return decided(False, "only protected files changed" if restored else "no change", restored=restored)

    def run(tree: Tree, hash_seed: int, fresh: bool) -> tuple[TestRun, tuple[str, ...]]:
        done = runner.run(environment, tree, artifact.test_script, artifact.test_parser, hash_seed, fresh)
        return done, judge_repair(done.outcomes, bug.fail_to_pass, bug.pass_to_pass)

    first, failed = run(final, 0, fresh=False)
    if first.error or failed:
        return decided(False, first.error or f"{len(failed)} test(s) do not pass", failed, restored)
    if not confirm:
        return decided(True, "", restored=restored)

    def confirmation() -> Confirmation:
        # A pass that hangs on a hash of the code is a lot drawn by each attempt: it is drawn once more.
        touched = {*original.changed_paths(states.buggy), *states.solver_start.changed_paths(predicted)}
        again = perturb(final, sorted(touched.difference(tests)), CONFIRMATION_SEED)
        found = in_disguise(again)
        # With a parser of the artifact's own, what it says of the tests that hide nothing is asked too.
        return (
            found
            if found is not None and (found.agrees is not True or is_standard)
            else beside_a_canary(again)
        )

    def in_disguise(again: Tree) -> Confirmation | None:
        """None where that shows nothing: the tests cannot be disguised, or even the original's own code does not pass them so."""
        if not runner.suits_disguise(environment, artifact.test_script, bug.fail_to_pass):
            return None
        to_repair, others = (bug.fail_to_pass, bug.pass_to_pass) if is_standard else as_pytest_names_them()
        masked = disguise(again, tests, to_repair, others, secrets.SystemRandom())
        if masked is None:
            return None

        def look(tree: Tree) -> tuple[TestRun, bool, tuple[str, ...]]:
            """The run, whether each copy that must fail did (then pytest ends with 1), and what should pass and does not."""
            done = runner.run(
                environment, tree, artifact.test_script, standard_parser(), CONFIRMATION_SEED, fresh=True
            )
            is_honest = masked.is_seen_through(done.outcomes) and done.exit_code == FAILED_TESTS
            return done, is_honest, masked.not_passed(done.outcomes, (*to_repair, *others))

        second, is_honest, failed = look(masked.tree)
        if second.error:  # a slow machine may have been at fault
            second, is_honest, failed = look(masked.tree)
        if is_honest and not failed:
            return Confirmation(True)
        _, is_fit, unfit = look(original.restore(masked.tree, masked.paths))
        if not is_fit or unfit:
            runner.refuse_disguise(environment, artifact.test_script, bug.fail_to_pass)
            return None
        if masked.must_fail & second.outcomes.passed:
            return Confirmation(
                None, "a copy of a test that cannot pass was reported as passed: the code forges its results"
            )
        if not is_honest:
            said = (
                second.error
                or f"copies of tests are missing from the results, or the exit status {second.exit_code} belies them"
            )
            return Confirmation(None, f"{said}: the code forges or suppresses results")
        plain, missing = run(again, CONFIRMATION_SEED, fresh=True)
        if plain.error or missing or masked.is_luck(second.outcomes, failed):
            return Confirmation(
                False,
                f"passed once and not again: {plain.error or ', '.join(missing[:5] or failed[:5])}",
                missing or failed,
            )
        return Confirmation(
            None,
            f"passes under its own name and under no other, so the code forges its result: {', '.join(failed[:5])}",
        )

    def as_pytest_names_them() -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tests to repair by the ids in pytest's own log, for an artifact whose parser has others: those of functions so called."""
        seen = (
            runner.run(environment, final, artifact.test_script, standard_parser(), 0).outcomes.passed
            & environment.baseline.passed
        )
        functions = {short_name(test_id) for test_id in bug.fail_to_pass}
        to_repair = tuple(sorted(test_id for test_id in seen if short_name(test_id) in functions))
        return to_repair, tuple(sorted(seen.difference(to_repair)))

    def beside_a_canary(again: Tree) -> Confirmation:
        name = f"test_canary_{secrets.token_hex(8)}"
        second, failed = run(add_canary(again, tests, bug.fail_to_pass, name), CONFIRMATION_SEED, fresh=True)
        if second.error:  # a slow machine may have been at fault
            second, failed = run(
                add_canary(again, tests, bug.fail_to_pass, name), CONFIRMATION_SEED, fresh=True
            )
        if any(name in test_id for test_id in second.outcomes.passed):
            return Confirmation(
                None, "a test that cannot pass was reported as passed: the code forges its results"
            )
        if not _reports(second, name) or second.exit_code == 0:
            # Innocent where the script never runs a test that was added, or has no status, as the original's own code then shows.
            trusted, _ = run(
                add_canary(original, tests, bug.fail_to_pass, name), CONFIRMATION_SEED, fresh=True
            )
            if _reports(trusted, name) and (trusted.exit_code != 0 or not _reports(second, name)):
                said = (
                    "is missing from the results"
                    if not _reports(second, name)
                    else "was reported, and the exit status is 0"
                )
                return Confirmation(
                    None, f"a test that must fail {said}: the code forges or suppresses results"
                )
        if (
            second.error or failed
        ):  # a script that stops at the first failure stopped at the canary: once more without it
            second, failed = run(again, CONFIRMATION_SEED, fresh=True)
        if second.error or failed:
            return Confirmation(
                False, f"passed once and not again: {second.error or ', '.join(failed[:5])}", failed
            )
        return Confirmation(True)

    # Attempts that end in one tree are one piece of evidence: they share their second run as they share their first.
    found = runner.confirm(
        environment,
        final,
        artifact.test_script,
        artifact.test_parser,
        (*bug.fail_to_pass, "", *bug.pass_to_pass),
        confirmation,
    )
    return decided(found.agrees is True, found.reason, found.failed_tests, restored, found.agrees)


def short_name(test_id: str) -> str:
    """The function that an id of whatever form names last."""
    return re.split(r"::|\.", test_id.partition("[")[0])[-1]


def _reports(run: TestRun, name: str) -> bool:
    """Whether the test called `name` is among those that failed."""
    return any(name in test_id for test_id in run.outcomes.failed)


def add_canary(tree: Tree, test_files: Sequence[str], fail_to_pass: Sequence[str], name: str) -> Tree:
    """`tree` with a failing test called `name` in the test file that `fail_to_pass` names, or seems to; as it is without Python tests.

    Ids are as the injector's parser makes them, so that they need not begin with a path.
    """
    functions = {short_name(test_id) for test_id in fail_to_pass}

    def likelihood(path: str) -> tuple[bool, bool]:
        named = any(test_id.startswith(path) for test_id in fail_to_pass)
        return named, any(f"def {function}(" in tree.text(path) for function in functions)

    paths = [path for path in sorted(set(test_files)) if path.endswith(".py") and path in tree]
    if not paths:
        return tree
    path = max(paths, key=likelihood)
    entry = tree[path]
    return tree.replace(
        {path: FileEntry(entry.content + CANARY.format(name=name).encode(), entry.executable)}
    )
