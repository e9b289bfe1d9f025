"""Compares our validator with an independent rule on mutations of the teacher, and shows each disagreement.

    python -m benchmarks.independent_judge --output FOLDER [--swesmith PYTHON] [--limit 6]

The rule is SWE-smith's (swesmith 0.0.9, harness/grading.py and gather.py). In the whole suite, at least one
test fails with the bug and passes without it, and at least one test passes both ways. PYTHON is an
interpreter that can import swesmith (0.0.9 needs swebench 4.1.0 too). Then swesmith's own code judges the
same logs.
Invariant: the choice of bugs depends only on the repository, never on test results.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.audit import QuickRunner
from benchmarks.options import at_least_one
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import Config, load_config
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.targets import Target, fitting_targets
from selfplay.runtime.resources import resource
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.source.apply import diff_trees
from selfplay.source.trees import Tree
from selfplay.teacher.functions import statement_at
from selfplay.teacher.mutations import Mutation, choose_mutation, mutations_of_file
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate
from selfplay.verdicts.verdict import Verdict

UNSEEN = ("pypi:hashids==1.3.1", "pypi:whatthepatch==1.0.7")  # in addition to the quickstart's repositories
BUGS_OF_A_REPOSITORY = 6
MAX_LINES = 40  # of a function
MIN_PASSING_TESTS = 3
THRESHOLDS = Thresholds(MIN_PASSING_TESTS, 1, 1)
OURS = "-rap -q --tb=short --show-capture=no"
THEIRS = "--verbose --tb=no"  # options of swesmith's PythonProfile.test_cmd; the rest of the command is ours
LINE = re.compile(r"(\S+)\s+(FAILED|PASSED|SKIPPED|ERROR|XFAIL)")  # the pattern of its log_parser

# Runs where swesmith is installed. Prints its report on each pair of logs.
ASK_SWESMITH = """
import json, sys
from dataclasses import dataclass
from swesmith.constants import TEST_OUTPUT_END, TEST_OUTPUT_START
from swesmith.harness.grading import get_valid_report
from swesmith.profiles import registry
from swesmith.profiles.python import PythonProfile

@dataclass
class Judged(PythonProfile):
    owner: str = "none"
    repo: str = "judged"
    commit: str = "0" * 40

registry.data["judged"] = Judged
reports = []
for pair in json.load(sys.stdin):
    for name, log in pair.items():
        with open(name, "w") as file:
            file.write(f"+ : '{TEST_OUTPUT_START}'\\n{log}\\n+ : '{TEST_OUTPUT_END}'\\n")
    report = get_valid_report("buggy", "original", {"repo": "judged"})
    reports.append({name: len(ids) for name, ids in report.items()})
print("REPORTS" + json.dumps(reports))
"""


@dataclass(frozen=True)
class Judged:
    """One bug with two verdicts. theirs: the rule's. swesmith: the package's, None if it was not asked."""

    name: str
    repository: str
    operator: str
    ours: bool
    failed_check: str
    reason: str
    theirs: bool
    fail_to_pass: int
    pass_to_pass: int
    our_tests: int
    swesmith: bool | None = None

    @property
    def agrees(self) -> bool:
        return self.ours == self.theirs


# ---- the bugs


@dataclass(frozen=True)
class Bug:
    name: str
    target: Target
    mutation: Mutation


def bugs(environment: Environment, most: int = BUGS_OF_A_REPOSITORY) -> list[Bug]:
    """One mutation for each of at most `most` targets, before any test runs."""
    targets = list(
        fitting_targets(environment.targets, environment.baseline.passed, MAX_LINES, MIN_PASSING_TESTS)
    )
    generator = random.Random(f"independent judge {environment.repository}")
    generator.shuffle(targets)
    found: list[Bug] = []
    by_path: dict[str, dict[int, list[Mutation]]] = {}
    for target in targets:
        if len(found) == most:
            break
        if target.path not in by_path:
            functions = mutations_of_file(target.path, environment.tree.text(target.path), MAX_LINES)
            by_path[target.path] = {function.first_line: some for function, some in functions}
        if mutations := by_path[target.path].get(target.first_line):
            found.append(
                Bug(
                    f"{environment.repository}::{target.path}::{target.name}",
                    target,
                    choose_mutation(mutations, generator),
                )
            )
    return found


def make_artifact(
    environment: Environment, runner: TestRunner, target: Target, mutation: Mutation
) -> tuple[Artifact, Tree]:
    """(artifact, buggy tree) of the mutation.

    The weakening removes the shortest failing statement of the test file.
    """
    tree, files = environment.tree, (target.test_file,)
    buggy = _with_text(tree, mutation.path, mutation.apply(tree.text(mutation.path)))
    script = environment.script_for(files)
    log = runner.run(environment, buggy, script, environment.parser).log.decode("utf-8", "replace")
    failing = [
        int(line) for line in re.findall(rf"^{re.escape(target.test_file)}:(\d+): ", log, re.MULTILINE)
    ][:3]
    tests = tree.text(target.test_file)
    weakened = _with_text(buggy, target.test_file, weaken(tests, failing or [first_check(tests)]))
    return Artifact(
        diff_trees(tree, buggy), diff_trees(buggy, weakened), files, script, environment.parser
    ), buggy


def weaken(text: str, failing: Sequence[int]) -> str:
    """The test file's text with a `return` for the shortest failing statement. failing: line numbers."""
    first, last = min((statement_at(text, line) for line in failing), key=lambda span: span[1] - span[0])
    lines = text.split("\n")
    line = lines[first - 1]
    return "\n".join([*lines[: first - 1], f"{line[: len(line) - len(line.lstrip())]}return", *lines[last:]])


def first_check(tests: str) -> int:
    """The line of the first test's last statement. It is weakened if no test fails."""
    functions = [
        node
        for node in ast.walk(ast.parse(tests))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    ]
    return functions[0].body[-1].lineno


def _with_text(tree: Tree, path: str, text: str) -> Tree:
    return tree.replace({path: replace(tree[path], content=text.encode())})


# ---- the two judges


def statuses(log: str) -> dict[str, str]:
    """test -> its last status in the log of `pytest --verbose`."""
    return {found[1]: found[2] for line in log.split("\n") if (found := LINE.match(line))}


def rule(buggy: Mapping[str, str], original: Mapping[str, str]) -> tuple[int, int]:
    """(fail to pass, pass to pass): counts of tests that both runs know."""
    pairs = Counter((buggy[test], status) for test, status in original.items() if test in buggy)
    return pairs["FAILED", "PASSED"], pairs["PASSED", "PASSED"]


def suite_log(environment: Environment, runner: TestRunner, tree: Tree) -> str:
    """The log of the whole suite under swesmith's options."""
    script = environment.script.replace(OURS, THEIRS)
    if script == environment.script:
        raise ValueError(f"the script of {environment.repository} does not hold {OURS!r}: {script}")
    return runner.run(environment, tree, script, environment.parser).log.decode("utf-8", "replace")


def judge(
    environment: Environment, runner: TestRunner, config: Config, bug: Bug
) -> tuple[Judged, dict[str, str]]:
    """Both verdicts, and the logs that the rule read."""
    artifact, buggy = make_artifact(environment, runner, bug.target, bug.mutation)
    verdict: Verdict = validate(artifact, environment, THRESHOLDS, runner, config.validator)
    logs = {
        "buggy": suite_log(environment, runner, buggy),
        "original": suite_log(environment, runner, environment.tree),
    }
    fixed, kept = rule(statuses(logs["buggy"]), statuses(logs["original"]))
    judged = Judged(
        name=bug.name,
        repository=environment.repository,
        operator=bug.mutation.operator,
        ours=verdict.accepted,
        failed_check=verdict.failed_check,
        reason=next((check.reason for check in verdict.checks if not check.passed), ""),
        theirs=fixed > 0 and kept > 0,
        fail_to_pass=fixed,
        pass_to_pass=kept,
        our_tests=len(verdict.fail_to_pass) + len(verdict.pass_to_pass),
    )
    return judged, logs


def ask_swesmith(python: str, logs: Sequence[Mapping[str, str]]) -> list[bool]:
    """The package's own verdict on each pair of logs. Raises CalledProcessError if it cannot be imported."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, "-c", ASK_SWESMITH],
            input=json.dumps(logs),
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    reports = json.loads(done.stdout.partition("REPORTS")[2])
    return [report["FAIL_TO_PASS"] > 0 and report["PASS_TO_PASS"] > 0 for report in reports]


# ---- the table


def report(results: Sequence[Judged]) -> str:
    counts = Counter((result.theirs, result.ours) for result in results)
    rows: list[tuple[str, ...]] = [("", "ours: accepted", "ours: rejected")]
    rows += [
        (f"SWE-smith's rule: {word}", str(counts[theirs, True]), str(counts[theirs, False]))
        for theirs, word in ((True, "valid"), (False, "not"))
    ]
    agreed = sum(result.agrees for result in results)
    repositories = len({result.repository for result in results})
    asked = [result for result in results if result.swesmith is not None]
    same = sum(result.swesmith == result.theirs for result in asked)
    text = [
        f"{len(results)} bugs of {repositories} repositories; "
        f"the judges agree on {agreed} ({agreed / max(1, len(results)):.0%}).",
        _table(rows),
        f"The package swesmith judged {len(asked)} of them. It agrees with the rule as coded here on {same}.",
        "Ours rejects, by its failed check: "
        + (
            ", ".join(
                f"{check} {count}"
                for check, count in Counter(r.failed_check for r in results if not r.ours).most_common()
            )
            or "none"
        ),
    ]
    differing = [r for r in results if not r.agrees]
    if differing:
        head = ("bug", "operator", "F2P / P2P of the suite", "our failed check", "our reason")
        rows = [head]
        rows += [
            (
                r.name,
                r.operator,
                f"{r.fail_to_pass} / {r.pass_to_pass}",
                r.failed_check or "accepted",
                r.reason[:160].replace("|", "/"),
            )
            for r in differing
        ]
        text += ["Disagreements:", _table(rows)]
    return "\n\n".join(text) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


# ---- the command


def open_environments(backend: SandboxBackend, config: Config) -> Iterator[Environment]:
    listed = (resource("recipes") / "quickstart-repos.txt").read_text("utf-8").splitlines()
    for repo in [*(line for line in listed if line.startswith("pypi:")), *UNSEEN]:
        checkout = fetch(parse_spec(repo), cache_root())
        yield prepare_environment(
            checkout, backend, config.environment, sandbox_limits(config), cache_root(), lambda _: None
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/independent-judge"),
        help="folder of results.jsonl and report.md",
    )
    parser.add_argument(
        "--swesmith",
        metavar="PYTHON",
        help="an interpreter that has the package swesmith; its code then judges too",
    )
    parser.add_argument(
        "--limit", type=at_least_one, default=BUGS_OF_A_REPOSITORY, help="bugs of each repository"
    )
    parser.add_argument("--sandbox", default="bubblewrap", choices=["auto", "docker", "bubblewrap"])
    options = parser.parse_args()
    if options.swesmith and not shutil.which(options.swesmith):
        parser.error(
            f"--swesmith: {options.swesmith} is no program. Give the Python of an environment with swesmith."
        )
    config = load_config(resource("recipes") / "quickstart.toml")
    backend = open_backend(options.sandbox, cache_root())[0]
    runner = QuickRunner(
        backend, config.validator, sandbox_limits(config), {"selfplay.run": "independent-judge"}
    )
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.jsonl"
    known = (
        {line["name"]: line for line in map(json.loads, file.read_text("utf-8").splitlines())}
        if file.exists()
        else {}
    )
    results: list[Judged] = []
    logs: list[Mapping[str, str]] = []
    for environment in open_environments(backend, config):
        for bug in bugs(environment)[: options.limit]:
            if bug.name not in known:
                judged, pair = judge(environment, runner, config, bug)
                known[bug.name] = {**asdict(judged), "logs": pair}
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(known[bug.name]) + "\n")
                theirs = f"{judged.fail_to_pass} / {judged.pass_to_pass}"
                print(f"{bug.name}: ours {judged.failed_check or 'accepted'}, theirs {theirs}", flush=True)
            line = dict(known[bug.name])
            logs.append(line.pop("logs"))
            results.append(Judged(**line))
    if options.swesmith:
        said = ask_swesmith(options.swesmith, logs)
        results = [replace(result, swesmith=valid) for result, valid in zip(results, said, strict=True)]
    text = report(results)
    (options.output / "report.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
