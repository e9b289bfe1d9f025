"""Code reads the same about its sandbox in a validator's runs, in both gradings and in an episode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from machine import open_or_skip
from selfplay.attacks.facts import FACTS_SCRIPT, facts_of
from selfplay.attacks.ground import CODE, RIGHT, WRONG, Ground, open_ground
from selfplay.sandbox.base import SUBMIT, WORKSPACE, Limits, Sandbox
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.test_runs import ScriptRun, TestRunner

pytestmark = pytest.mark.sandbox
COMMAND = f"cd {WORKSPACE} && {FACTS_SCRIPT}"


class RecordingRunner(TestRunner):
    """Before each run of a script, reads what its code could read."""

    facts: list[Mapping[str, object]]

    def _script_log(self, box: Sandbox) -> ScriptRun:
        self.facts.append(facts_of(box.run(COMMAND).text))
        return super()._script_log(box)


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def ground(
    request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    backend = open_or_skip(request.param, cache)
    with open_ground(backend, cache, tmp_path_factory.mktemp("scratch")) as opened:
        yield opened


def test_no_fact_tells_a_validators_run_from_a_grading_or_an_episode(ground: Ground) -> None:
    runner = RecordingRunner(ground.backend, ground.config.validator, Limits(), {"run": "test"})
    runner.facts = []
    environment = ground.environment
    runner.run(environment, ground.tree, environment.script, environment.parser, hash_seed=1)
    found = ground.grade({CODE: (WRONG, RIGHT)}, runner)
    assert len(runner.facts) >= 3, f"a run, a grading and its confirmation were wanted: {found.reason}"
    with ground.solver() as box:
        given = Tree({"test_script.sh": FileEntry(environment.script.encode())})
        box.write_archive(SUBMIT, given.to_tar())
        played = facts_of(box.run(COMMAND).text)
    for judged in runner.facts:
        assert {name: (judged[name], played[name]) for name in judged if judged[name] != played[name]} == {}
