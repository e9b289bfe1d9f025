"""The frozen task files of the package: each has enough bugs, and none that training may see."""

import json

import pytest

from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.config import load_config
from selfplay.evaluation.tasks import find_tasks, frozen_sets
from selfplay.repositories.specs import parse_spec
from selfplay.repositories.targets import is_held_out
from selfplay.runtime.resources import resource
from selfplay.source.diffs import parse_patch, reverse_patch
from selfplay.warm_start.settings import CORPUS, REPOSITORIES

LEAST = {"own": 80, "human": 20}


def records(name):
    return [
        json.loads(line)
        for line in (resource("data/tasks") / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]


def project(line):
    return parse_spec(line).location


def seen_projects():
    listed = [
        line
        for line in (resource("recipes") / "quickstart-repos.txt").read_text("utf-8").splitlines()
        if line.startswith("pypi:")
    ]
    return {project(line) for line in [*(f"pypi:{name}" for name in CORPUS), *REPOSITORIES, *listed]}


def test_the_own_set_is_in_the_package():
    assert "own" in frozen_sets()


@pytest.mark.parametrize("name", frozen_sets())
def test_every_frozen_set_parses_and_holds_enough_bugs(name):
    tasks = find_tasks([name])
    assert len(tasks) >= LEAST.get(name, 1)
    assert all(task.set == name and task.fail_to_pass and task.pass_to_pass for task in tasks)


@pytest.mark.parametrize("name", frozen_sets())
def test_no_two_tasks_of_a_frozen_set_are_one_bug(name):
    tasks = find_tasks([name])
    assert len(
        {task.digest for task in tasks} | {(task.repository, task.patch) for task in tasks}
    ) == 2 * len(tasks)


def test_own_bugs_are_in_held_out_functions_or_in_repositories_that_training_never_saw():
    for record in records("own"):
        extra = record["selfplay"]
        is_seen = project(record["repo"]) in seen_projects()
        assert extra["part"] == ("held-out function" if is_seen else "unseen repository"), record[
            "instance_id"
        ]
        assert is_held_out(extra["function"]) or not is_seen, record["instance_id"]


def test_own_bugs_of_unseen_repositories_are_at_least_a_fifth():
    parts = [task.part for task in find_tasks(["own"])]
    assert parts.count("unseen repository") >= len(parts) / 5


def test_an_own_bug_changes_one_line_of_the_file_that_it_names_and_its_patch_undoes_that():
    for record in records("own"):
        extra = record["selfplay"]
        bug = parse_patch(extra["artifact"]["bug_inject.diff"], 1 << 20)
        assert bug.changed_paths == (extra["path"],), record["instance_id"]
        lines = extra["artifact"]["bug_inject.diff"].splitlines()
        assert sum(line.startswith("-") and not line.startswith("---") for line in lines) == 1, record[
            "instance_id"
        ]
        assert record["patch"] == reverse_patch(extra["artifact"]["bug_inject.diff"])
        assert record["test_patch"] == reverse_patch(extra["artifact"]["test_weaken.diff"])


def test_the_specifications_of_own_bugs_fit_the_context_of_the_carried_policy():
    chat = ChatFormat(load_tokenizer("carried"))
    most = load_config(resource("recipes") / "quickstart.toml").solver.max_spec_tokens
    too_long = {
        task.instance_id: n for task in find_tasks(["own"]) if (n := len(chat.encode(task.test_patch))) > most
    }
    assert not too_long
