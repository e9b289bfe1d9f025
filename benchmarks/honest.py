"""Are honest bugs and repairs still accepted after a change of the judging?

    python -m benchmarks.honest --make FOLDER      with the code before the change
    python -m benchmarks.honest --judge FOLDER     with the code after it

The first command breaks functions of packages that the frozen sets do not use, and keeps each artifact that
is accepted; it goes on where it was stopped. The second one judges these artifacts again, and grades the true
repair of each. Its last lines say how many artifacts and repairs were refused, with the reasons.

Invariant: the choice of bugs depends only on the repository, never on test results (`independent_judge`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.audit import QuickRunner
from benchmarks.independent_judge import THRESHOLDS, bugs, make_artifact
from benchmarks.options import at_least_one
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import Config, load_config
from selfplay.errors import EnvironmentBuildError, RepositoryError
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.runtime.resources import resource
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.source.apply import diff_trees
from selfplay.source.syntax import parse_module
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate
from selfplay.verdicts.verdict import Verdict


@dataclass(frozen=True)
class Judge:
    """What judges: the sandboxes, their runner and the settings."""

    backend: SandboxBackend
    runner: TestRunner
    config: Config

    def environment(self, repository: str) -> Environment:
        return prepare_environment(
            fetch(parse_spec(repository), cache_root()),
            self.backend,
            self.config.environment,
            sandbox_limits(self.config),
            cache_root(),
            lambda _: None,
        )

    def verdict(self, artifact: Artifact, environment: Environment) -> Verdict:
        return validate(artifact, environment, THRESHOLDS, self.runner, self.config.validator)


def repositories() -> list[str]:
    """The packages of the learning list that the quickstart, and so the frozen sets, do not use."""
    lists = [
        resource("recipes").joinpath(f"{name}-repos.txt").read_text("utf-8").splitlines()
        for name in ("learning", "quickstart")
    ]
    learning, quickstart = ([line for line in lines if line.startswith("pypi:")] for lines in lists)
    used = {line.partition("==")[0] for line in quickstart}
    return [line for line in learning if line.partition("==")[0] not in used]


def make(judge: Judge, folder: Path, limit: int) -> None:
    """Keep each accepted artifact in a folder of its own, with its repository."""
    for repository in repositories():
        try:
            environment = judge.environment(repository)
        except EnvironmentBuildError as error:
            print(error, flush=True)
            continue
        for number, bug in enumerate(bugs(environment, limit)):
            place = folder / f"{repository.removeprefix('pypi:').replace('=', '-')}-{number}"
            if place.exists():
                continue
            try:
                artifact, _ = make_artifact(environment, judge.runner, bug.target, bug.mutation)
            except IndexError:
                continue  # the test file has no function of its own to weaken
            verdict = judge.verdict(artifact, environment)
            place.mkdir(parents=True)
            if verdict.accepted and is_readable(environment, artifact):
                artifact.write(place)
                (place / "bug.json").write_text(json.dumps({"repository": repository, "name": bug.name}))
            print(f"{bug.name}: {verdict.failed_check or 'accepted'}", flush=True)


def is_readable(environment: Environment, artifact: Artifact) -> bool:
    """Whether the weakened tests still parse. An artifact that breaks a test file is not honest."""
    states = build_states(environment.tree, BugState(artifact, 1, "", (), ()))
    return all(
        parse_module(states.solver_start[path].content) is not None
        for path in artifact.test_files
        if path.endswith(".py") and path in states.solver_start
    )


def judged_again(judge: Judge, folder: Path) -> Iterator[dict[str, object]]:
    """A row for each kept artifact: the verdict of today's code, and the grade of its true repair."""
    environments: dict[str, Environment] = {}
    for place in sorted(path.parent for path in folder.glob("*/bug.json")):
        bug = json.loads((place / "bug.json").read_text())
        repository = bug["repository"]
        if repository not in environments:
            environments[repository] = judge.environment(repository)
        environment, artifact = environments[repository], Artifact.read(place)
        verdict = judge.verdict(artifact, environment)
        row = {**bug, "accepted": verdict.accepted, "failed_check": verdict.failed_check, "repaired": None}
        row["reason"] = next((check.reason for check in verdict.checks if not check.passed), "")
        row["test_runs"], row["seconds"] = verdict.test_runs, verdict.duration_s
        if verdict.accepted:
            state = BugState(artifact, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)
            states = build_states(environment.tree, state)
            repair = diff_trees(
                states.solver_start,
                states.solver_start.restore(environment.tree, environment.tree.changed_paths(states.buggy)),
            )
            found = grade(state, repair, environment, judge.runner)
            row |= {"repaired": found.passed, "reason": found.reason}
        yield row


def report(rows: list[dict[str, object]]) -> str:
    accepted = [row for row in rows if row["accepted"]]
    repaired = [row for row in accepted if row["repaired"]]
    refused = [row for row in rows if not row["accepted"] or not row["repaired"]]
    lines = [f"{row['name']}: {row['failed_check'] or 'repair'}: {row['reason']}" for row in refused]
    return "\n".join(
        [
            f"{len(rows)} artifacts that were accepted before: {len(accepted)} are accepted again.",
            f"{len(repaired)} of {len(accepted)} true repairs are confirmed.",
            *lines,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--make", type=Path, metavar="FOLDER", help="keep accepted artifacts here")
    what.add_argument("--judge", type=Path, metavar="FOLDER", help="judge the artifacts kept here")
    parser.add_argument("--limit", type=at_least_one, default=10, help="bugs of each repository")
    parser.add_argument("--sandbox", default="bubblewrap", choices=["auto", "docker", "bubblewrap"])
    options = parser.parse_args()
    config = load_config(resource("recipes") / "quickstart.toml")
    backend = open_backend(options.sandbox, cache_root())[0]
    runner = QuickRunner(backend, config.validator, sandbox_limits(config), {"selfplay.run": "honest"})
    judge = Judge(backend, runner, config)
    try:
        if options.make:
            make(judge, options.make, options.limit)
            return
        rows = []
        for row in judged_again(judge, options.judge):
            rows.append(row)
            print(json.dumps(row), flush=True)
    except (RepositoryError, EnvironmentBuildError) as error:
        parser.error(str(error))
    print(report(rows))


if __name__ == "__main__":
    main()
