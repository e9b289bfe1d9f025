"""Playing and training at the same time, on runs whose episodes and steps only take time: what overlaps,
waits, ages, refills and stops.
"""

import json
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from operator import mul
from pathlib import Path

import pytest

import simulated_game
from machine import eventually
from selfplay.agent.hosts import InjectorWork, SolverWork
from selfplay.agent.workspaces import EpisodeKey
from selfplay.algorithm.staleness import async_updates, newest_wave
from selfplay.config import load_config
from selfplay.curriculum.store import Store
from selfplay.errors import RunError, SandboxUnavailable, TrainerError
from selfplay.orchestrator.run_metrics import IdleClock
from selfplay.repositories.suspects import Suspect
from selfplay.repositories.targets import Target
from selfplay.runtime.resources import resource
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState
from selfplay.verdicts.checks import Thresholds
from simulated_game import Script, SimulatedHost, SimulatedTrainer, simulate, uneven
from store_rows import a_bug


def rows_of(simulation):
    return [json.loads(line) for line in simulation.run.metrics.read_text().splitlines()]


def episodes_of(simulation):
    with Store.open(simulation.run.database, writer=False) as store:
        return store.episodes()


def test_no_more_updates_are_played_ahead_than_an_episode_may_be_old():
    assert async_updates(max_async_updates=2, max_lag=8) == 2
    assert async_updates(max_async_updates=2, max_lag=1) == 1
    assert async_updates(max_async_updates=2, max_lag=0) == 0


def test_what_is_played_next_never_passes_the_last_update():
    assert newest_wave(committed=0, max_async_updates=0, last=8) == 1
    assert newest_wave(committed=3, max_async_updates=2, last=8) == 6
    assert newest_wave(committed=7, max_async_updates=2, last=8) == 8


@pytest.mark.parametrize(("max_lag", "ahead", "overlaps"), [(0, 2, False), (2, 2, True), (2, 0, False)])
def test_episodes_are_played_during_a_step_only_where_they_may_be_older_than_the_weights(
    tmp_path, max_lag, ahead, overlaps
):
    simulation = simulate(tmp_path, Script(play_s=uneven, step_s=0.2), max_lag, max_async_updates=ahead)
    steps = [(began, ended) for began, ended, _ in simulation.trainer.steps]
    during = [
        name
        for name, began, ended in simulation.host.played
        if any(began < end and ended > start for start, end in steps)
    ]
    assert bool(during) == overlaps
    assert [row["carried_gradient"] for row in rows_of(simulation)] == [True] * 4


@pytest.mark.parametrize(("max_lag", "ahead"), [(0, 2), (1, 2), (2, 2), (3, 1)])
def test_no_episode_that_is_trained_on_is_older_than_max_lag(tmp_path, max_lag, ahead):
    simulation = simulate(
        tmp_path, Script(play_s=uneven, step_s=0.05), max_lag, max_async_updates=ahead, updates=5
    )
    rows = rows_of(simulation)
    assert max(row["lag/max"] for row in rows) <= max_lag
    assert all(row["lag/mean"] <= row["lag/max"] for row in rows)
    trained = Counter(row.consumed_update for row in episodes_of(simulation) if row.consumed_update)
    with Store.open(simulation.run.database, writer=False) as store:
        version = {
            update.update: update.weight_version - update.carried_gradient for update in store.updates()
        }
    consumed = [row for row in episodes_of(simulation) if row.advantage]
    assert trained and all(
        version[row.consumed_update] - row.weight_version_min <= max_lag for row in consumed
    )


def test_a_slow_group_blocks_no_update_and_is_trained_on_later(tmp_path):
    def play_s(place):
        if (place.group, place.member) == ("u0002-sol0", 3):
            eventually((tmp_path / "simulated" / "checkpoints" / "update-00004").exists)
        return 0.01

    simulation = simulate(tmp_path, Script(play_s=play_s), max_lag=8, updates=12, max_async_updates=3)
    (late,) = {row.consumed_update for row in episodes_of(simulation) if row.group_id == "u0002-sol0"}
    assert late > 4
    assert len(rows_of(simulation)) == 12


def test_an_artifact_is_no_duplicate_while_its_wave_waits_for_another_injector_group(tmp_path):
    def play_s(place):
        if (
            place.group == "u0002-inj1"
        ):  # until an update has paid injectors while artifacts of u0002-inj0 wait to be admitted
            eventually((tmp_path / "simulated" / "checkpoints" / "update-00001").exists)
        return 0.01

    script = Script(play_s=play_s, repairs=lambda place: place.update == 1 and place.member % 2 == 0)
    simulation = simulate(
        tmp_path, script, max_lag=2, updates=2, injector_groups=2, solver_groups=7, max_async_updates=1
    )
    played = [row for row in episodes_of(simulation) if row.role == "injector"]
    assert {row.group_id for row in played} == {"u0001-inj0", "u0001-inj1", "u0002-inj0", "u0002-inj1"}
    assert not [row.episode_id for row in played if row.note == "duplicate"]


@pytest.mark.parametrize(("in_flight", "seconds"), [(8, sys.getswitchinterval()), (5000, 0.1)])
def test_the_more_episodes_are_in_flight_the_less_often_their_threads_ask_for_pythons_lock(
    tmp_path, in_flight, seconds
):
    before, seen = sys.getswitchinterval(), set()

    def play_s(place):
        seen.add(round(sys.getswitchinterval(), 6))
        return 0.0

    simulate(tmp_path, Script(play_s=play_s), 0, updates=1, episodes_in_flight=in_flight)
    assert list(seen) == [pytest.approx(seconds)]
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize(
    ("weight", "refused", "learned"), [(0.0, 2, False), (1.0, 0, False), (1.0, 4, False), (1.0, 2, True)]
)
def test_calls_that_differ_are_learned_of_groups_that_all_ended_alike(tmp_path, weight, refused, learned):
    script = Script(
        is_bug=lambda place: True, repairs=lambda place: False, refuses=lambda place: place.member < refused
    )
    simulation = simulate(
        tmp_path, script, 0, sections={"trainer": {"call_reward_weight": weight}}, updates=1, refills=0
    )
    (row,) = rows_of(simulation)
    assert row["carried_gradient"] is learned and bool(simulation.trainer.steps) is learned
    assert row.get("solver/new_changes") == (1 - refused / 4 if weight else None)
    # Actions that nothing is learned from count in what a loss is divided by, as they do with one advantage
    # for all.
    assert all(
        sample.action_tokens > 1 == sum(map(bool, map(mul, sample.advantages, sample.loss_mask)))
        for sample in simulation.trainer.samples
    )


def test_groups_whose_attempts_all_end_alike_are_replaced_up_to_the_cap(tmp_path):
    def repairs(place):
        return place.group != "u0001-sol0" and place.member % 2 == 0

    simulation = simulate(tmp_path, Script(repairs=repairs), 0, updates=1, refills=2, solver_groups=2)
    (row,) = rows_of(simulation)
    groups = {row.group_id for row in episodes_of(simulation) if row.role == "solver"}
    assert groups == {"u0001-sol0", "u0001-sol1", "u0001-sol2"}
    assert row["groups/solver/gradient_groups"] == 2


def test_no_more_groups_are_replaced_than_the_cap_allows(tmp_path):
    simulation = simulate(
        tmp_path, Script(repairs=lambda place: True, is_bug=lambda place: True), 0, updates=1, refills=1
    )
    assert len({row.group_id for row in episodes_of(simulation) if row.role == "solver"}) == 3


def test_a_group_of_which_the_machine_spoiled_half_is_replaced_since_it_carries_no_gradient(tmp_path):
    def fails(place):
        return (
            place.group == "u0001-sol0" and place.member < 2
        )  # one of the others repairs the bug, and one does not

    simulation = simulate(tmp_path, Script(fails=fails), 0, updates=1, refills=1, solver_groups=2)
    (row,) = rows_of(simulation)
    assert {row.group_id for row in episodes_of(simulation) if row.role == "solver"} == {
        "u0001-sol0",
        "u0001-sol1",
        "u0001-sol2",
    }
    assert (row["groups/dropped_groups"], row["groups/solver/gradient_groups"]) == (1, 2)


def test_an_attempts_record_names_the_files_whose_change_did_not_count(tmp_path):
    simulation = simulate(tmp_path, Script(restored="conftest.py\ntests/test_a.py\n"), 0, updates=1)
    with Store.open(simulation.run.database, writer=False) as store:
        assert {attempt.restored for attempt in store.attempts()} == {("conftest.py", "tests/test_a.py")}


def test_bugs_of_a_repository_that_is_left_out_take_nobodys_place(tmp_path):
    simulate(tmp_path, Script(), 0, updates=1)
    with Store.open(tmp_path / simulated_game.NAME / "selfplay.db") as store:
        for number in range(2):
            assert store.add_bug(a_bug(f"given-{number}", "", repository="left out", created_update=0))
    simulation = simulate(tmp_path, Script(), 0, updates=2)
    assert {row.group_id for row in episodes_of(simulation) if row.role == "solver" and row.update == 2} == {
        "u0002-sol0",
        "u0002-sol1",
    }


def test_without_solvers_bugs_that_wait_for_them_keep_no_injector_from_playing(tmp_path):
    simulation = simulate(tmp_path, Script(), 0, updates=3, solver_groups=0)
    assert {row.group_id for row in episodes_of(simulation)} == {"u0001-inj0", "u0002-inj0", "u0003-inj0"}


def test_judging_that_the_machine_fails_for_a_moment_is_done_again_a_moment_later(tmp_path, monkeypatch):
    judge, began = SimulatedHost.judge, []

    def fails_at_first(host, work, episode):
        began.append(time.monotonic())
        if began[-1] - began[0] < 0.3:
            raise SandboxUnavailable("the engine restarts (a test says so)")
        return judge(host, work, episode)

    monkeypatch.setattr(SimulatedHost, "judge", fails_at_first)
    simulation = simulate(tmp_path, Script(), 0, updates=1)
    assert not [row for row in episodes_of(simulation) if row.masked]


def test_with_nothing_played_ahead_a_run_repeats_exactly(tmp_path):
    def outcome(simulation):
        return [
            (row.episode_id, row.reward, row.advantage, row.consumed_update)
            for row in episodes_of(simulation)
        ]

    first = simulate(tmp_path / "first", Script(play_s=uneven), 0, refills=1)
    second = simulate(tmp_path / "second", Script(play_s=lambda place: 0.05 - uneven(place)), 0, refills=1)
    assert outcome(first) == outcome(second)


def test_pools_bound_what_is_in_flight(tmp_path):
    simulation = simulate(tmp_path, Script(play_s=lambda place: 0.03), max_lag=2, episodes_in_flight=5)
    assert simulation.host.most_in_flight == 5


def test_an_episode_that_the_machine_spoiled_is_retried_then_masked_and_never_trained_on(tmp_path):
    def fails(place):
        return (place.group, place.member) == ("u0001-sol0", 1)

    simulation = simulate(tmp_path, Script(fails=fails), max_lag=2, updates=3)
    (spoiled,) = [row for row in episodes_of(simulation) if row.masked]
    assert (spoiled.episode_id, spoiled.finish, spoiled.consumed_update) == (
        "u0001-sol0-m1",
        "env_error",
        None,
    )
    assert [name for name, _, _ in simulation.host.played].count("u0001-sol0-m1") == 3


def test_a_machine_that_fails_too_often_stops_the_run_while_others_are_in_flight(tmp_path):
    with pytest.raises(RunError, match="train.max_machine_failures"):
        simulate(tmp_path, Script(fails=lambda place: place.update > 1), max_lag=2, max_machine_failures=0.2)


def test_an_updates_row_tells_how_long_trainer_and_engine_waited(tmp_path):
    rows = rows_of(simulate(tmp_path, Script(step_s=0.1), max_lag=2))
    assert all(0 < row["idle/trainer"] < 1 and row["idle/engine"] == 1 for row in rows)
    assert rows[0]["episodes_per_hour"] > 0
    assert sum(row["injector/episodes"] + row["solver/episodes"] for row in rows) <= len(
        list((tmp_path / "simulated/episodes").iterdir())
    )


def test_idle_shares_begin_anew_with_each_update():
    clock = IdleClock()
    with clock.stepping():
        pass
    first = clock.shares(engine_busy_s=0.0, episodes=3)
    second = clock.shares(engine_busy_s=1e9, episodes=3)
    assert first["idle/engine"] == 1 and first["episodes_per_hour"] > 0
    assert second["idle/engine"] == 0 and second["episodes_per_hour"] == 0


def test_work_for_a_host_is_plain_enough_to_travel():
    bug = BugState(Artifact("a", "b", ("t.py",), "s", "p"), 1, "", ("t::a",), ())
    solver = SolverWork("r", "b", bug, "failure", (Suspect("m.py", "f", 1, 2),))
    injector = InjectorWork("r", "direct", Target("m.py", "f", 1, 2, "t.py", "1:def f"), Thresholds())
    place = EpisodeKey(1, 2, "u0002-sol0", 3, {"run": "r"})
    assert pickle.loads(pickle.dumps((solver, injector, place))) == (solver, injector, place)


@pytest.mark.parametrize("kill_at", ["recorded:9", "written:17", "phase:training", "committed:2"])
def test_a_run_killed_while_it_plays_ahead_loses_nothing_and_counts_nothing_twice(tmp_path, kill_at):
    command = [sys.executable, simulated_game.__file__, str(tmp_path), kill_at]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=Path(simulated_game.__file__).parent)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    folder = tmp_path / simulated_game.NAME
    written = {path.name.partition(".")[0] for path in (folder / "episodes").glob("*.json.gz")}
    with Store.open(folder / "selfplay.db", writer=False) as store:
        recorded = {row.episode_id: row.consumed_update for row in store.episodes()}
        bugs = {bug.bug_id for bug in store.bugs()}
    simulation = simulate(tmp_path, Script(play_s=uneven, step_s=0.03), max_lag=2)
    played = Counter(name for name, _, _ in simulation.host.played)
    assert (
        written and not played.keys() & written and set(played.values()) <= {1}
    )  # none: what was left alone was played already
    with Store.open(folder / "selfplay.db", writer=False) as store:
        after = {row.episode_id: row.consumed_update for row in store.episodes()}
        assert recorded.keys() <= after.keys()
        assert all(after[name] == update for name, update in recorded.items() if update)
        assert bugs <= {bug.bug_id for bug in store.bugs()}
        assert [update.update for update in store.updates() if update.committed_at] == [1, 2, 3, 4]
        learned = [row for row in store.episodes() if row.consumed_update and row.advantage]
    assert simulation.trainer.seen == len(
        learned
    )  # of the checkpoints that were committed: no sample is in the weights twice, or lost


def test_each_episode_is_counted_in_one_row_although_a_kill_came_between(tmp_path, monkeypatch):
    database, save = tmp_path / simulated_game.NAME / "selfplay.db", SimulatedTrainer.save

    def holds(question):
        with Store.open(database, writer=False) as store:
            return bool(question(store))

    def play_s(place):
        if (place.group, place.member) == ("u0001-sol0", 3):
            eventually(lambda: holds(lambda store: store.last_update() == 1))
        return 0.01

    def dies_once_the_first_wave_is_whole(trainer, folder):
        if folder.name == "update-00002":
            eventually(lambda: holds(lambda store: store.state("played/1")))
            raise TrainerError("the run ends here (a test says so)")
        save(trainer, folder)

    script = Script(
        play_s=play_s, repairs=lambda place: True
    )  # without a gradient, so that updates wait for as many whole waves
    train = {"updates": 3, "solver_groups": 1, "max_async_updates": 2}
    with monkeypatch.context() as killed, pytest.raises(TrainerError):
        killed.setattr(SimulatedTrainer, "save", dies_once_the_first_wave_is_whole)
        simulate(tmp_path, script, max_lag=8, **train)
    simulation = simulate(tmp_path, script, max_lag=8, **train)
    with Store.open(database, writer=False) as store:
        rows = [json.loads(update.metrics_json) for update in store.updates()]
    assert sum(row["solver/episodes"] for row in rows) == len(
        [row for row in episodes_of(simulation) if row.role == "solver"]
    )


def test_by_default_playing_and_training_take_turns():
    config = load_config()
    assert (config.train.max_async_updates, config.max_lag, config.train.refills) == (0, 8, 0)


@pytest.mark.parametrize("recipe", ["paper", "cluster-8", "cluster-512"])
def test_recipes_for_clusters_play_ahead_refill_and_send_weights_to_all_servers_at_once(recipe):
    config = load_config(resource("recipes") / f"{recipe}.toml")
    assert 0 < async_updates(config.train.max_async_updates, config.max_lag) < config.max_lag
    assert config.train.refills > 0
    assert config.engine.sync == "nccl"
    assert config.trainer.max_rollout_logprob_diff > 0
