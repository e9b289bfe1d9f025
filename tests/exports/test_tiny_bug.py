"""A bug of the tiny repository: what it is after an export, and as a Harbor task that really runs."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bare_environment import an_environment
from selfplay.config import build_config
from selfplay.curriculum.store import Store
from selfplay.evaluation.tasks import bug_of, read_tasks
from selfplay.exports.base import RunExport
from selfplay.exports.harbor import write_task
from selfplay.exports.records import write_swe_bench, write_swe_smith
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.repositories.scripts import standard_parser, standard_script
from selfplay.repositories.specs import parse_spec
from selfplay.sandbox.base import WORKSPACE
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.bug import build_states
from store_rows import a_bug, a_group, an_episode
from tiny_bugs import CLAMP_BUG, CLAMP_TEST, CLAMP_WEAKENED, TESTS, diff
from tiny_repository import FILES, build_tiny_repository

TREE = Tree({path: FileEntry(text.encode()) for path, text in FILES.items()})
SCRIPT, PARSER = standard_script(TESTS), standard_parser()
ARTIFACT = {
    "bug_inject.diff": diff(TREE, CLAMP_BUG),
    "test_weaken.diff": diff(TREE, CLAMP_WEAKENED),
    "test_files.txt": "".join(f"{path}\n" for path in TESTS),
    "test_script.sh": SCRIPT,
    "test_parser.py": PARSER,
}
PASSING = ("tests/test_numbers.py::test_mean", "tests/test_text.py::test_is_palindrome")
BUG = replace(
    a_bug("u0001-inj0-m0-bug", "g-m0", repository="tiny", artifact=ARTIFACT),
    fail_to_pass=(CLAMP_TEST,),
    pass_to_pass=PASSING,
)


@pytest.fixture
def run(tmp_path):
    """The export of a run whose one bug is BUG. Its list names a local folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    build_tiny_repository(tmp_path / "tiny", git=True)
    (folder / "config.json").write_text(build_config({}).resolved(), encoding="utf-8")
    (folder / "repositories.txt").write_text(f"{shlex.quote(str(tmp_path / 'tiny'))}\n")
    run = RunFolder(folder)
    with Store.open(run.database) as store:
        store.add_group(a_group())
        store.record_episode(an_episode(a_group()))
        store.add_bug(BUG)
        yield RunExport(run, run.config(), store)


@pytest.mark.parametrize("write", [write_swe_bench, write_swe_smith])
def test_an_exported_record_is_the_same_bug_when_it_is_read_again(run, tmp_path, write):
    path = tmp_path / "tasks.jsonl"
    assert write(run, path) == 1
    (task,) = read_tasks(path)
    assert parse_spec(task.repo).location == str(tmp_path / "tiny")
    environment = replace(an_environment(SCRIPT, PARSER), tree=TREE, repository="tiny")
    environment, state = bug_of(task, environment)
    before, after = build_states(TREE, BUG.state()), build_states(environment.tree, state)
    assert after.buggy == before.buggy and after.original == before.original
    assert (state.fail_to_pass, state.pass_to_pass) == ((CLAMP_TEST,), PASSING)
    if write is write_swe_bench:  # SWE-smith hides the files of the broken tests instead
        assert after.solver_start == before.solver_start


@pytest.mark.slow
def test_a_harbor_task_pays_for_the_repair_and_not_for_changed_tests(tmp_path):
    task, work = tmp_path / "task", tmp_path / "work"
    write_task(task, BUG, parse_spec("pypi:tiny==1.0"))
    for path, text in FILES.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)
    for file in (one for one in task.rglob("*") if one.is_file()):
        file.write_text(file.read_text().replace(WORKSPACE, str(work)))
    docker = (task / "environment" / "Dockerfile").read_text()
    build = docker.partition("target=/bug ")[2].replace("/bug/", f"{task}/environment/")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"REWARD_FILE": str(tmp_path / "logs" / "reward.txt")}

    def bash(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=work, env=environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    bash(build)
    assert "return low" in (work / "tiny" / "numbers.py").read_text().partition("value > high")[2]
    (work / "tests" / "test_numbers.py").write_text("def test_clamp(): pass\n")  # as a policy may do
    bash(str(task / "tests" / "test.sh"))
    reward = tmp_path / "logs" / "reward.txt"
    assert reward.read_text() == "0\n"
    bash(str(task / "solution" / "solve.sh"))
    said = bash(str(task / "tests" / "test.sh"))
    assert reward.read_text() == "1\n", said + (work / "tiny" / "numbers.py").read_text()
    assert json.loads((task / "tests" / "tests.json").read_text())["fail_to_pass"] == [CLAMP_TEST]
