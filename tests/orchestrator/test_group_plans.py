"""Which groups a wave gets: the targets of injectors, and the bugs of solvers."""

import json
from dataclasses import replace

import pytest

from selfplay.config import build_config
from selfplay.curriculum.store import Store
from selfplay.errors import UsageError
from selfplay.orchestrator.bug_rows import GIVEN_STRATEGY
from selfplay.orchestrator.given_bugs import check_given_bugs
from selfplay.orchestrator.group_plans import GroupPlanner
from selfplay.orchestrator.run_state import RunState
from selfplay.outcomes import TestOutcomes
from selfplay.repositories.targets import Target
from simulated_game import an_environment
from store_rows import a_bug, a_group, an_episode

TESTS = frozenset(f"tests/test_a.py::test_{number}" for number in range(5))


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "selfplay.db") as store:
        yield store


def planner(store, targets=0, **sections):
    environment = replace(
        an_environment(),
        repository="toolz",
        baseline=TestOutcomes(TESTS),
        targets=tuple(Target("a.py", f"f{number}", 1, 3, "tests/test_a.py", "") for number in range(targets)),
    )
    return GroupPlanner(store, RunState(store), build_config(sections), {"toolz": environment})


def names(group, count=None):
    return [json.loads(group.target_of(member))["name"] for member in range(count or group.size)]


def test_members_of_a_group_take_its_targets_in_turn_and_the_next_group_takes_others(store):
    planned = planner(store, targets=5, injector={"help": ["target"], "targets_per_group": 2})
    first, second = (planned.plan_injector_groups(wave, (), 0.5)[0] for wave in (1, 2))
    assert len(set(names(first))) == 2
    assert names(first, 4) == names(first, 2) * 2
    assert not {*names(first)} & {*names(second)}
    assert store.groups(update=1)[0].targets == first.targets


def test_a_group_has_no_more_targets_than_there_are(store):
    planned = planner(store, targets=1, injector={"help": ["target"], "targets_per_group": 4})
    (group,) = planned.plan_injector_groups(1, (), 0.5)
    assert {*names(group)} == {"f0"}


def add_bugs(store, given, others):
    for number in range(given + others):
        group = a_group(f"g{number}")
        store.add_group(group)
        store.record_episode(an_episode(group, 0))
        strategy = GIVEN_STRATEGY if number < given else "removal"
        store.add_bug(a_bug(f"bug{number}", f"g{number}-m0", strategy=strategy))


def chosen(store, share, slots=4):
    bugs = planner(store, train={"reference_share": share}).choose_bugs(1, slots)
    return [bug.strategy for bug in bugs]


def test_a_share_of_the_solver_groups_plays_given_bugs(store):
    add_bugs(store, given=20, others=20)
    shares = [chosen(store, share, 20).count(GIVEN_STRATEGY) for share in (1.0, 0.3)]
    assert shares[0] == 20
    assert 0 < shares[1] < 20


def test_bugs_of_the_other_kind_fill_slots_that_one_kind_leaves(store):
    add_bugs(store, given=1, others=5)
    assert chosen(store, 1.0) == [GIVEN_STRATEGY, "removal", "removal", "removal"]


def test_given_bugs_fill_slots_when_injectors_made_too_few(store):
    add_bugs(store, given=5, others=1)
    assert sorted(chosen(store, 0.01)) == [GIVEN_STRATEGY, GIVEN_STRATEGY, GIVEN_STRATEGY, "removal"]


def test_a_share_of_given_bugs_without_bugs_is_refused():
    with pytest.raises(UsageError, match=r"train.reference_share = 0.5 .* Set train.bugs"):
        check_given_bugs(build_config({"train": {"reference_share": 0.5}}), [])
