"""A run's state: its keys and values are a format, and its methods read what they write."""

import pytest

from selfplay.agent.episode import Role
from selfplay.curriculum.store import Store
from selfplay.orchestrator.run_state import RunState

STORED = {
    "planned/3/injector": "yes",
    "planned/3/solver": "yes",
    "refilled/3": "2",
    "second/u0003-sol0": "u0003-sol0-m1-bug2",
    "second/u0003-sol1": "none",
    "played/3": "yes",
    "evaluated/2": "yes",
    "episodes counted": '["a", "b"]',
    "waves counted": "[1, 2]",
    "given_bugs": "7",
}


@pytest.fixture
def state(tmp_path):
    with Store.open(tmp_path / "selfplay.db") as store:
        yield RunState(store)


def test_keys_and_values_are_those_that_older_runs_have(state):
    state.set_planned(3, Role.INJECTOR)
    state.set_planned(3, Role.SOLVER)
    state.set_refills(3, 2)
    state.set_second_order("u0003-sol0", "u0003-sol0-m1-bug2")
    state.set_second_order("u0003-sol1", None)
    state.set_played(3)
    state.set_evaluated(2)
    state.set_counted({"b", "a"}, {2, 1})
    state.set_given_bugs(7)
    assert {key: state.store.state(key) for key in STORED} == STORED


def test_what_an_older_run_stored_is_read(state):
    for key, value in STORED.items():
        state.store.set_state(key, value)
    assert state.is_planned(3, Role.INJECTOR) and state.is_planned(3, Role.SOLVER) and state.is_admitted(3)
    assert state.refills(3) == 2
    assert state.is_second_order_decided("u0003-sol0") and state.is_second_order_decided("u0003-sol1")
    assert state.is_played(3) and state.is_evaluated(2) and state.has_given_bugs()
    assert (state.counted_episodes(), state.counted_waves()) == ({"a", "b"}, {1, 2})


def test_a_new_run_has_done_nothing(state):
    assert not state.is_planned(3, Role.SOLVER) and not state.is_admitted(3) and not state.is_played(3)
    assert not state.is_second_order_decided("u0003-sol0") and not state.is_evaluated(2)
    assert not state.has_given_bugs()
    assert (state.refills(3), state.counted_episodes(), state.counted_waves()) == (0, set(), None)
