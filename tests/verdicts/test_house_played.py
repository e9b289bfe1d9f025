"""A repository whose suite has a failing test: the exit status says nothing unless that test is left out."""

from pathlib import Path

import pytest

from selfplay.attacks.ground import CODE, FILES, HIDDEN_TEST, RIGHT, TESTS, WRONG, changed
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.settings.playing import EnvironmentSettings, ValidatorSettings
from selfplay.source.apply import diff_trees
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.confirmation import Confirmation
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate

pytestmark = pytest.mark.sandbox

SETTINGS = ValidatorSettings(script_timeout_s=60)
FAILING = "\n\ndef test_that_fails():\n    assert clamp(1, 2, 3) == 1\n"
# pytest without a summary that the standard parser could read, and a parser with ids of its own.
OWN_SCRIPT = f"cd /testbed\npython -m pytest -v -p no:cacheprovider --color=no {TESTS} | tee /tmp/log\n"
OWN_PARSER = """import json, re, sys
found = re.findall(r"::(\\w+)(\\S*) (PASSED|FAILED)", sys.stdin.read())
json.dump({name + case: word.lower() for name, case, word in found if name != "test_that_fails"}, sys.stdout)
"""


@pytest.fixture(scope="module")
def environment(
    backend: SandboxBackend, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    folder = tmp_path_factory.mktemp("repository") / "heron"
    texts = {**FILES, TESTS: FILES[TESTS] + FAILING}
    Tree({path: FileEntry(text.encode()) for path, text in texts.items()}).write_to(folder)
    checkout = fetch(parse_spec(str(folder)), cache)
    settings = EnvironmentSettings(baselines=2)
    found = prepare_environment(checkout, backend, settings, Limits(), cache, lambda _: None)
    assert found.excluded_ids == {f"{TESTS}::test_that_fails"}
    return found


def artifact(environment: Environment, script: str, parser: str) -> Artifact:
    buggy = changed(environment.tree, {CODE: (RIGHT, WRONG)})
    weakened = changed(buggy, {TESTS: (", (11, 10)]", "]")})
    bug, weaken = diff_trees(environment.tree, buggy), diff_trees(buggy, weakened)
    return Artifact(bug, weaken, (TESTS,), script, parser)


@pytest.mark.parametrize("is_own", [False, True], ids=["the house's script", "a script of its own"])
def test_a_bug_is_accepted_and_its_repair_confirmed(
    environment: Environment, backend: SandboxBackend, is_own: bool
) -> None:
    house = (environment.script_for((TESTS,)), environment.parser)
    made = artifact(environment, *((OWN_SCRIPT, OWN_PARSER) if is_own else house))
    runner = TestRunner(backend, SETTINGS, Limits(), {"run": "test"})
    verdict = validate(made, environment, Thresholds(), runner, SETTINGS)
    assert verdict.accepted, [check.reason for check in verdict.checks if not check.passed]
    broken = "test_clamp[11-10]" if is_own else HIDDEN_TEST
    assert verdict.fail_to_pass == (broken,)
    evidence = next(check.evidence for check in verdict.checks if check.name == "exit_status")
    assert evidence == {"original": 0, "buggy": 1, "broken": [HIDDEN_TEST]}

    bug = BugState(made, 1, "", verdict.fail_to_pass, verdict.pass_to_pass)
    start = build_states(environment.tree, bug).solver_start
    repair = diff_trees(start, changed(start, {CODE: (WRONG, RIGHT)}))
    found = grade(bug, repair, environment, runner)
    assert found.confirmation is Confirmation.CONFIRMED, found.reason
