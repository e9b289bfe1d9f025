"""An update's metrics: of its batch, of what was played, of its phases; and that each episode counts once."""

from collections import Counter
from dataclasses import replace

import pytest

from selfplay.agent.episode import Episode, FinishReason, Role, Turn
from selfplay.curriculum.rows import AttemptRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.orchestrator import run_metrics
from selfplay.orchestrator.batching import Batch
from selfplay.orchestrator.run_metrics import (
    CountedEpisodes,
    IdleClock,
    PhaseClock,
    Played,
    batch_metrics,
    call_metrics,
    curriculum_metrics,
    played_metrics,
    read_played,
    resampling_metrics,
)
from selfplay.orchestrator.run_state import RunState
from selfplay.verdicts.confirmation import Confirmation
from store_rows import a_bug, a_group, an_episode


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "selfplay.db") as store:
        yield store


@pytest.fixture
def clock(monkeypatch):
    """A list whose first element is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(run_metrics.time, "monotonic", lambda: now[0])
    return now


def verdict(episode_id, accepted):
    return VerdictRow(episode_id, accepted, "" if accepted else "parser", "", "[]", 1.0, 1, 0)


def attempt(episode_id, passed):
    return AttemptRow(episode_id, "bug", passed, "", (), Confirmation.NOT_NEEDED, (), "", 1.0)


# ---- the batch


def test_a_batchs_metrics_are_its_counts_mean_rewards_and_lags():
    batch = Batch(
        lags=[0, 1, 3],
        counts=Counter({"stale": 2, "solver/groups": 4, "solver/zero_variance_groups": 1}),
    )
    batch.rewards["solver"] += [1.0, -1.0, 1.0]
    assert batch_metrics(batch) == {
        "groups/solver/groups": 4,
        "groups/solver/zero_variance_groups": 1,
        "groups/stale": 2,
        "solver/reward": 0.3333,
        "solver/zero_variance": 0.25,
        "lag/max": 3,
        "lag/mean": 1.333,
    }


def test_an_empty_batch_has_no_lag_and_no_reward():
    assert batch_metrics(Batch()) == {"lag/max": 0, "lag/mean": 0.0}


def an_episode_of(role, *turns):
    return Episode("e", role, "r", 1, "g", 0, 0, FinishReason.SUBMITTED, (), turns, (), (), ())


def a_turn(text="a", tool="edit", is_error=False, rejected=0):
    call = f"<tool: edit>\na.py:1\n<<<<<<< SEARCH\n1\n=======\n{text}\n>>>>>>> REPLACE\n</tool>"
    return Turn(call, tool, "", (0, 0), is_error=is_error, rejected=rejected)


def test_the_share_of_rejected_samples_is_of_all_that_were_sampled():
    episodes = [
        an_episode_of(Role.SOLVER, a_turn(rejected=2), a_turn()),
        an_episode_of(Role.SOLVER, a_turn()),
        an_episode_of(Role.INJECTOR, a_turn()),
    ]
    assert resampling_metrics(episodes) == {"solver/rejected_samples": 0.4, "injector/rejected_samples": 0.0}


def test_calls_that_repeat_a_change_or_fail_are_tried_and_new_changes_are_the_others():
    episodes = [
        an_episode_of(Role.SOLVER, a_turn("x"), a_turn("x"), a_turn("y"), a_turn(tool="bash")),
        an_episode_of(Role.SOLVER, a_turn("x", is_error=True)),
    ]
    assert call_metrics(episodes) == {"solver/new_changes": 0.5, "solver/changes_tried": 2.0}


# ---- what was played


def test_rates_of_what_was_played_leave_out_what_was_not_judged():
    injectors, solvers = a_group("i", "injector"), a_group("s", "solver")
    episodes = [
        *(an_episode(injectors, member, turns=4, failed_turns=member) for member in range(3)),
        *(an_episode(solvers, member, turns=0) for member in range(4)),
    ]
    played = Played(
        episodes,
        [verdict("i-m0", True), verdict("i-m1", True), verdict("i-m2", False)],
        repeated=1,
        attempts=[
            attempt("s-m0", True),
            attempt("s-m1", False),
            attempt("s-m2", None),
            replace(attempt("s-m3", False), confirmed=Confirmation.FORGED),
            replace(attempt("s-m4", True), confirmed=Confirmation.UNDISGUISED),
            *(replace(attempt(f"s-m{n}", False), confirmed=Confirmation.NOT_CONFIRMED) for n in (5, 6)),
        ],
    )
    assert played_metrics(played) == {
        "injector/episodes": 3,
        "injector/sampled_tokens": 120,
        "injector/failed_calls": 0.25,
        "injector/valid": 0.6667,
        "injector/duplicate": 0.5,
        "solver/episodes": 4,
        "solver/sampled_tokens": 160,
        "solver/solved": 0.3333,
        "injector/void": 1,
        "solver/forged": 1,
        "solver/not_repeated": 0,
        "solver/control_moved": 2,
        "solver/undisguised": 1,
    }


def test_nothing_played_gives_counts_and_no_rates():
    assert played_metrics(Played([])) == {
        "injector/episodes": 0,
        "injector/sampled_tokens": 0,
        "solver/episodes": 0,
        "solver/sampled_tokens": 0,
    }


def test_an_accepted_artifact_without_a_bug_repeats_one(store):
    group = a_group("i", "injector")
    store.add_group(group)
    rows = [an_episode(group, member) for member in range(3)]
    for row in rows:
        store.record_episode(row)
        store.record_verdict(verdict(row.episode_id, row.member < 2))
    store.add_bug(a_bug("i-m0-bug", "i-m0"))
    played = read_played(store, rows)
    assert (len(played.verdicts), played.repeated, played.attempts) == (3, 1, [])


def test_the_curriculums_solve_rate_is_the_mean_of_its_measured_bugs():
    bugs = [
        a_bug("a", status="measured", solve_rate=0.5),
        a_bug("b", status="measured", solve_rate=1.0),
        a_bug("c", status="measured"),
        a_bug("d", status="void", solve_rate=0.0),
        a_bug("e"),
    ]
    assert curriculum_metrics(bugs) == {"curriculum/solve_rate": 0.75, "curriculum/bugs": 5}
    assert curriculum_metrics([]) == {"curriculum/bugs": 0}


# ---- what was counted


def record(store, wave, *members):
    group = a_group(f"g{wave}", "solver", update=wave)
    store.add_group(group)
    for member in members:
        store.record_episode(an_episode(group, member))


def counted(episodes):
    return [row.episode_id for row in episodes]


def test_an_episode_counts_once_while_its_wave_is_in_play_and_after_it(store):
    counts = CountedEpisodes(RunState(store), last_update=0)
    record(store, 1, 0, 1)
    assert counted(counts.count_new(store, range(1, 3), in_play={1, 2})) == ["g1-m0", "g1-m1"]
    record(store, 1, 2)
    record(store, 2, 0)
    assert counted(counts.count_new(store, range(1, 3), in_play={2})) == ["g1-m2", "g2-m0"]
    assert counted(counts.count_new(store, range(1, 3), in_play=())) == []


def test_a_run_that_resumes_goes_on_counting_from_what_was_saved(store):
    record(store, 1, 0)
    record(store, 2, 0)
    first = CountedEpisodes(RunState(store), last_update=0)
    first.count_new(store, range(1, 3), in_play={2})
    first.save()
    record(store, 2, 1)
    resumed = CountedEpisodes(RunState(store), last_update=1)
    assert counted(resumed.count_new(store, range(1, 3), in_play=())) == ["g2-m1"]


def test_a_run_that_never_saved_has_counted_the_waves_of_its_updates(store):
    record(store, 1, 0)
    record(store, 2, 0)
    counts = CountedEpisodes(RunState(store), last_update=1)
    assert counted(counts.count_new(store, range(1, 3), in_play=())) == ["g2-m0"]


# ---- clocks


def test_the_seconds_of_a_phase_add_up_until_the_clock_restarts(clock):
    phases = PhaseClock()
    for seconds in (1, 2):
        with phases.measure("second order"):
            clock[0] += seconds
    with pytest.raises(KeyError), phases.measure("saving"):
        clock[0] += 4
        raise KeyError
    assert phases.metrics() == {"seconds/second_order": 3, "seconds/saving": 4}
    phases.restart()
    assert phases.metrics() == {}


def test_the_seconds_of_an_update_go_on_where_an_earlier_process_ended(clock):
    phases = PhaseClock()
    phases.restart({"seconds/solving": 20.0, "update": 3})
    with phases.measure("solving"):
        clock[0] += 5
        assert phases.metrics() == {"seconds/solving": 25}
    assert phases.metrics() == {"seconds/solving": 25}


def test_idle_shares_are_of_the_time_since_the_last_ones(clock):
    idle = IdleClock()
    with idle.stepping():
        clock[0] += 10
    clock[0] += 30
    shares = idle.shares(engine_busy_s=20.0, episodes=8)
    assert shares == {"idle/trainer": 0.75, "idle/engine": 0.5, "episodes_per_hour": 720}
    clock[0] += 10
    shares = idle.shares(engine_busy_s=25.0, episodes=8)
    assert shares == {"idle/trainer": 1, "idle/engine": 0.5, "episodes_per_hour": 0}


def test_an_evaluation_between_two_updates_counts_as_neither_idle_nor_busy(clock):
    idle = IdleClock()
    clock[0] += 1000
    idle.restart(engine_busy_s=900.0, episodes=2)
    clock[0] += 10
    assert idle.shares(engine_busy_s=910.0, episodes=3)["idle/engine"] == 0
