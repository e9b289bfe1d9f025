"""Some frozen own bugs on their repositories: the validator accepts them, and their patch repairs them."""

import random

import pytest

from machine import open_or_skip
from selfplay.agent.workspaces import sandbox_limits
from selfplay.config import load_config
from selfplay.errors import RepositoryError
from selfplay.evaluation.tasks import bug_of, find_tasks
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import parse_spec
from selfplay.runtime.resources import resource
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.grading import grade
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
CONFIG = load_config(resource("recipes") / "quickstart.toml")
TASKS = random.Random(3).sample(find_tasks(["own"]), 3)


@pytest.fixture(scope="module")
def backend():
    return open_or_skip("bubblewrap", cache_root())


@pytest.fixture(scope="module")
def runner(backend):
    return TestRunner(backend, CONFIG.validator, sandbox_limits(CONFIG), {"run": "test"})


@pytest.fixture(params=TASKS, ids=lambda task: task.instance_id)
def task(request):
    return request.param


@pytest.fixture
def environment(task, backend):
    try:
        checkout = fetch(parse_spec(task.repo), cache_root())
    except RepositoryError as missing:
        pytest.skip(f"{task.repo} is neither in the cache nor can it be fetched: {missing}")
    return prepare_environment(
        checkout, backend, CONFIG.environment, sandbox_limits(CONFIG), cache_root(), lambda _: None
    )


def test_the_validator_accepts_a_frozen_bug_again(task, environment, runner):
    bug = bug_of(task, environment)[1]
    verdict = validate(bug.artifact, environment, Thresholds(3, 1, 1), runner, CONFIG.validator)
    assert verdict.accepted, verdict.failed_check
    assert (verdict.fail_to_pass, verdict.pass_to_pass) == (task.fail_to_pass, task.pass_to_pass)
    assert verdict.failure == task.failure


def test_the_patch_of_a_frozen_bug_repairs_it(task, environment, runner):
    assert grade(bug_of(task, environment)[1], task.patch, environment, runner).passed


def test_an_empty_patch_does_not_repair_a_frozen_bug(task, environment, runner):
    assert not grade(bug_of(task, environment)[1], "", environment, runner).passed
