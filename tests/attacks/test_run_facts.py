"""Code reads the same about its sandbox in a validator's runs, in both gradings and in an episode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from machine import open_or_skip
from selfplay.attacks.facts import FACTS_SCRIPT, facts_of
from selfplay.attacks.ground import CODE, RIGHT, WRONG, Ground, open_ground
from selfplay.sandbox.base import SUBMIT, Limits, Sandbox
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.test_runs import SCRIPT_COMMAND, ScriptRun, TestRunner

pytestmark = pytest.mark.sandbox


class RecordingRunner(TestRunner):
    """Keeps what every run of a script printed."""

    facts: list[Mapping[str, object]]

    def _script_log(self, box: Sandbox) -> ScriptRun:
        done = super()._script_log(box)
        self.facts.append(facts_of(done.log.decode(errors="replace")))
        return done


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
    script = f"{ground.environment.script}\n{FACTS_SCRIPT}"
    runner.run(ground.environment, ground.tree, script, ground.environment.parser, fresh=True)
    found = ground.grade({CODE: (WRONG, RIGHT)}, runner, ground.artifact(script=script))
    assert len(runner.facts) >= 3, f"a run, a grading and its confirmation were wanted: {found.reason}"
    with ground.solver() as box:
        given = Tree({"test_script.sh": FileEntry(script.encode())})
        box.write_archive(SUBMIT, given.to_tar())
        played = facts_of(box.run(SCRIPT_COMMAND).text)
    for judged in runner.facts:
        assert {name: (judged[name], played[name]) for name in judged if judged[name] != played[name]} == {}
