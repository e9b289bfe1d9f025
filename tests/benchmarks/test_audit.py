"""The perturbation audit on a few cases of benchmarks/audit.py: it rejects chance and accepts honest bugs."""

from dataclasses import replace

import pytest

from benchmarks.audit import Audit, Case, meaningless_attempt, own_config
from selfplay.errors import PrerequisiteError, RepositoryError
from selfplay.evaluation.tasks import find_tasks
from selfplay.repositories.checkouts import cache_root
from selfplay.sandbox import open_backend
from selfplay.verdicts import determinism
from selfplay.verdicts.randomness import Secret

pytestmark = [pytest.mark.sandbox]
TASK = next(task for task in find_tasks(["own"]) if task.instance_id == "own-hashids-1")


@pytest.fixture(scope="module")
def audit():
    try:
        made = Audit(open_backend("bubblewrap", cache_root())[0], own_config(), attempts=0)
        made.environment(TASK.repo)
    except PrerequisiteError as missing:
        pytest.skip(str(missing))
    except RepositoryError as missing:
        pytest.skip(f"{TASK.repo} is neither in the cache nor can it be fetched: {missing}")
    return made


def test_a_bug_that_depends_on_chance_is_rejected(audit):
    """The test fails about one time in a thousand."""
    assert audit.judge(Case("chance", "os.urandom", 0.5, TASK)).failed_check


@pytest.mark.parametrize("source", ["line number", "co_code of the module"])
def test_a_bug_that_depends_on_a_hash_of_the_code_is_rejected(audit, source):
    assert audit.judge(Case("seeded", source, 0.5, TASK)).failed_check == "determinism"


def test_a_suspect_bug_runs_more_often(audit, monkeypatch):
    """A bug that passes one time in four is rejected.

    With the same draws it is accepted if suspects have no more runs than others. A few secrets are tried,
    since the runs that every bug has reject it too in one case of four.
    """
    case, more, found = Case("seeded", "file", 0.26, TASK), determinism.SUSPECT_RUNS, []
    for number in range(6):
        own = replace(audit, secret=Secret(bytes([number]) * 32))
        monkeypatch.setattr(determinism, "SUSPECT_RUNS", 0)
        few = own.judge(case).failed_check
        monkeypatch.setattr(determinism, "SUSPECT_RUNS", more)
        found.append((few, own.judge(case).failed_check))
        if found[-1] == ("", "determinism"):
            return
    raise AssertionError(found)


@pytest.mark.parametrize("kind", ["honest", "same shape"])
def test_an_honest_bug_passes_the_audit_also_in_the_shape_of_a_hostile_one(audit, kind):
    assert audit.judge(Case(kind, "none", 0.0, TASK)).failed_check == ""


def test_an_attempt_without_meaning_changes_what_a_bug_can_hash_and_repairs_nothing(audit):
    tree, statement = audit.environment(TASK.repo).tree, audit.broken_statement(TASK)
    texts = [meaningless_attempt(tree, statement, number).text(statement.path) for number in range(1, 9)]
    assert len({len(text) for text in texts}) == len({text.count("\n") for text in texts}) == 8
