"""Builds selfplay/data/tasks/own.jsonl: validated bugs in functions that no training touches.

Each bug is one mutation of the teacher.

    python -m benchmarks.frozen_own --output selfplay/data/tasks/own.jsonl

Invariant: equal packages give equal lines. Seeds come from a function's repository, path and name, never from
time or order.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfplay.agent.solver import spec_text
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import Config, load_config
from selfplay.evaluation.tasks import Task, task_record
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.targets import Target, fitting_targets, is_held_out
from selfplay.runtime.resources import resource
from selfplay.sandbox import open_backend
from selfplay.source.apply import diff_trees
from selfplay.source.diffs import reverse_patch
from selfplay.source.trees import Tree
from selfplay.teacher.functions import statement_at
from selfplay.teacher.mutations import Mutation, choose_mutation, mutations_of_file, plainest_mutation
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.test_logs import short_failure
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate
from selfplay.verdicts.verdict import Verdict

# Neither in the training texts of the carried policy nor in the quickstart: all their functions are new to
# the policy.
UNSEEN = ("pypi:hashids==1.3.1", "pypi:whatthepatch==1.0.7")
HELD_OUT_FUNCTION, UNSEEN_REPOSITORY = ("held-out function", "unseen repository")
MAX_BUGS = 18  # of one repository
BUGS_A_FUNCTION = 3  # each on a line of its own
MAX_LINES = 22  # of a function; the teacher breaks no longer ones in training either
MIN_PASSING_TESTS = 3
MAX_SPEC_CHARACTERS = 1100  # with the carried policy's tokenizer, this is less than solver.max_spec_tokens
TRIES = 3  # mutations of a function that are tried for one bug
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


@dataclass(frozen=True)
class Bug:
    """An accepted bug and how it was made."""

    target: Target
    mutation: Mutation
    artifact: Artifact
    verdict: Verdict


@dataclass
class Builder:
    """Makes the bugs of one environment after another. `digests` excludes duplicates."""

    runner: TestRunner
    config: Config
    thresholds: Thresholds = field(default_factory=lambda: Thresholds(MIN_PASSING_TESTS, 1, 1))
    digests: set[str] = field(default_factory=set)
    rejected: Counter[str] = field(default_factory=Counter)

    def bugs(self, environment: Environment, part: str) -> list[Bug]:
        """Up to MAX_BUGS bugs, in rounds of one bug a function. Half of them use the plainest mutation."""
        targets = [
            target
            for target in fitting_targets(
                environment.targets, environment.baseline.passed, MAX_LINES, MIN_PASSING_TESTS
            )
            if part == UNSEEN_REPOSITORY or is_held_out(target.name)
        ]
        random.Random(environment.repository).shuffle(targets)
        found: list[Bug] = []
        for turn in range(BUGS_A_FUNCTION):
            for number, target in enumerate(targets):
                used = {bug.mutation.line for bug in found if bug.target == target}
                if len(found) < MAX_BUGS and (
                    bug := self._bug(environment, target, used, turn, is_plain=(number + turn) % 2 == 0)
                ):
                    found.append(bug)
        return sorted(found, key=lambda bug: (bug.target.path, bug.mutation.line, bug.mutation.after))

    def _bug(
        self, environment: Environment, target: Target, used: set[int], turn: int, is_plain: bool
    ) -> Bug | None:
        for mutation in _sampled(environment, target, used, turn, is_plain):
            made = self._artifact(environment, target, mutation)
            if isinstance(made, str):
                self.rejected[made] += 1
                continue
            verdict = validate(made, environment, self.thresholds, self.runner, self.config.validator)
            if not verdict.accepted:
                self.rejected[verdict.failed_check] += 1
            elif verdict.buggy_digest in self.digests:
                self.rejected["duplicate"] += 1
            else:
                self.digests.add(verdict.buggy_digest)
                return Bug(target, mutation, made, verdict)
        return None

    def _artifact(self, environment: Environment, target: Target, mutation: Mutation) -> Artifact | str:
        """The mutation with the teacher's weakening, or the reason why there is no artifact."""
        tree, files = environment.tree, (target.test_file,)
        buggy = _with_text(tree, mutation.path, mutation.apply(tree.text(mutation.path)))
        script = environment.script_for(files)
        run = self.runner.run(environment, buggy, script, environment.parser)
        noticing = sorted(run.outcomes.failed & environment.baseline.passed)
        if run.error or not noticing:
            return run.error or "no test notices"
        if ADDRESS.search(short_failure(run.log, noticing[0])):
            return "failure names an address"  # the address differs in every run
        log = run.log.decode("utf-8", "replace")
        failing = [
            int(line) for line in re.findall(rf"^{re.escape(target.test_file)}:(\d+): ", log, re.MULTILINE)
        ][:3]
        if not failing:
            return "no failing line in the test file"
        weakened = _with_text(buggy, target.test_file, weaken(tree.text(target.test_file), failing))
        artifact = Artifact(
            diff_trees(tree, buggy), diff_trees(buggy, weakened), files, script, environment.parser
        )
        if len(spec_text(BugState(artifact, 1, "", (), ()))) > MAX_SPEC_CHARACTERS:
            return "long specification"
        return artifact


def _sampled(
    environment: Environment, target: Target, used: set[int], turn: int, is_plain: bool
) -> Iterator[Mutation]:
    """At most TRIES mutations of the target, sampled one after another, on lines that are not in `used`."""
    functions = mutations_of_file(target.path, environment.tree.text(target.path), MAX_LINES)
    left = [
        m
        for function, some in functions
        if function.first_line == target.first_line
        for m in some
        if m.line not in used
    ]
    generator = random.Random(f"{environment.repository}::{target.path}::{target.name}::{turn}")
    for _ in range(min(TRIES, len(left))):
        mutation = (plainest_mutation if is_plain else choose_mutation)(left, generator)
        left.remove(mutation)
        yield mutation


def weaken(text: str, failing: Sequence[int]) -> str:
    """The test file's text with a `return` for the shortest failing statement, as the teacher does it."""
    first, last = min((statement_at(text, line) for line in failing), key=lambda span: span[1] - span[0])
    lines = text.split("\n")
    line = lines[first - 1]
    indentation = line[: len(line) - len(line.lstrip())]
    return "\n".join([*lines[: first - 1], f"{indentation}return", *lines[last:]])


def _with_text(tree: Tree, path: str, text: str) -> Tree:
    return tree.replace({path: replace(tree[path], content=text.encode())})


def record(bug: Bug, repo: str, number: int, part: str) -> dict[str, Any]:
    """The bug as a task record, with its location and its operator."""
    task = Task(
        instance_id="",
        repo=repo,
        patch=reverse_patch(bug.artifact.bug_inject),
        test_patch=reverse_patch(bug.artifact.test_weaken),
        fail_to_pass=bug.verdict.fail_to_pass,
        pass_to_pass=bug.verdict.pass_to_pass,
        artifact=bug.artifact.to_files(),
        failure=bug.verdict.failure,
        set="own",
        part=part,
    )
    made = task_record(replace(task, instance_id=f"own-{task.repository}-{number}"))
    location = {
        "function": bug.target.name,
        "path": bug.target.path,
        "line": bug.mutation.line,
        "operator": bug.mutation.operator,
    }
    return made | {"selfplay": made["selfplay"] | location}


def build(sandbox: str) -> Iterator[dict[str, Any]]:
    """All records. Raises what `open_backend` and `prepare_environment` do."""
    recipes = resource("recipes")
    config = load_config(recipes / "quickstart.toml")
    limits = sandbox_limits(config)
    backend = open_backend(sandbox, cache_root())[0]
    builder = Builder(TestRunner(backend, config.validator, limits, {"selfplay.run": "frozen-own"}), config)
    listed = [
        line
        for line in (recipes / "quickstart-repos.txt").read_text("utf-8").splitlines()
        if line.startswith("pypi:")
    ]
    for repo, part in [
        *((repo, HELD_OUT_FUNCTION) for repo in listed),
        *((repo, UNSEEN_REPOSITORY) for repo in UNSEEN),
    ]:
        checkout = fetch(parse_spec(repo), cache_root())
        environment = prepare_environment(
            checkout, backend, config.environment, limits, cache_root(), lambda _: None
        )
        bugs = builder.bugs(environment, part)
        print(
            f"{repo}: {len(bugs)} bugs; left out so far: {dict(builder.rejected)}",
            file=sys.stderr,
            flush=True,
        )
        yield from (record(bug, repo, number, part) for number, bug in enumerate(bugs, 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sandbox", default="auto", choices=["auto", "docker", "bubblewrap"])
    options = parser.parse_args()
    lines = [json.dumps(made) + "\n" for made in build(options.sandbox)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(lines), encoding="utf-8")
    print(f"{options.output}: {len(lines)} bugs, {options.output.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
