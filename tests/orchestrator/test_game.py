"""The whole game on the tiny repository with scripted players: every reward means what it says, and a
killed run loses nothing.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import scripted_game
from machine import open_or_skip
from scripted_game import SOLVER_MOVES, HistoryPlayer, injector_moves, play
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.episode import Episode
from selfplay.agent.token_ratios import ratios_file, read_ratios
from selfplay.commands.rerun import Difference, first_difference, play_again
from selfplay.curriculum.store import Store
from selfplay.errors import RunError
from selfplay.sandbox import open_backend
from selfplay.verdicts.confirmation import Confirmation
from selfplay.viewing.progress import TrainProgress, counts_so_far
from tiny_bugs import prepare_tiny

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def played(request, cache, tmp_path_factory):
    open_or_skip(request.param, cache)
    run = play(tmp_path_factory.mktemp(request.param), cache, request.param, updates=1)
    with Store.open(run.database, writer=False) as store:
        yield run, store


def first(store, role):
    group = store.groups(update=1, role=role)[0]
    return group, store.episodes(group_id=group.group_id)


def test_each_kind_of_invalid_artifact_scores_minus_one_and_names_its_check(played):
    _, store = played
    _, rows = first(store, "injector")
    bug = store.bugs(order=1)[0]
    expected = [check for check, _ in injector_moves(scripted_tree(bug))]
    for row, check in zip(rows, expected, strict=True):
        verdict = store.verdict(row.episode_id)
        if check in ("", "duplicate"):
            assert verdict.accepted, verdict.reason
        else:
            assert verdict.failed_check == check, verdict.reason
            assert row.reward == -1.0


def scripted_tree(bug):
    """The script's order of checks does not depend on the tree; any with the right texts will do."""
    from selfplay.source.trees import FileEntry, Tree
    from tiny_repository import FILES

    return Tree({path: FileEntry(text.encode()) for path, text in FILES.items()})


def test_an_accepted_bug_earns_by_its_solve_rate_and_its_duplicate_loses_alpha(played):
    _, store = played
    _, rows = first(store, "injector")
    bug = store.bugs(order=1)[0]
    assert (bug.attempts, bug.passes) == (8, 1)
    assert rows[0].reward == pytest.approx(1 - 1.8 / 8)
    assert rows[1].reward == pytest.approx(-0.8)
    assert len(store.bugs(order=1)) == 1


def test_a_repair_scores_plus_one_a_wrong_one_minus_one_and_a_machine_failure_nothing(played):
    _, store = played
    _, rows = first(store, "solver")
    for row, (passed, _) in zip(rows, SOLVER_MOVES, strict=True):
        assert row.reward == {True: 1.0, False: -1.0, None: None}[passed], row
        assert row.masked == (passed is None)
        assert (row.consumed_update == 1) == (passed is not None)


def test_solvers_are_given_suspects_from_the_environments_calls(played):
    run, store = played
    _, rows = first(store, "solver")
    prompt = Episode.read(run.path / rows[0].path).messages[0]["content"]
    assert prompt.endswith("\ngrep -n '' tiny/numbers.py | sed -n '4,10p' # clamp")


def test_a_pass_was_graded_twice(played):
    _, store = played
    _, rows = first(store, "solver")
    assert store.attempt(rows[0].episode_id).confirmed is Confirmation.CONFIRMED


def test_a_failed_attempt_that_changed_code_becomes_a_bug_of_order_two(played):
    _, store = played
    (second,) = store.bugs(order=2)
    _, rows = first(store, "solver")
    assert second.parent_episode_id == rows[1].episode_id
    assert second.parent_bug_id == store.bugs(order=1)[0].bug_id
    assert set(store.bugs(order=1)[0].fail_to_pass) <= set(second.fail_to_pass)


def test_both_roles_carry_gradient_in_one_update(played):
    run, _ = played
    row = json.loads(run.metrics.read_text().splitlines()[0])
    assert row["carried_gradient"]
    assert row["groups/injector/gradient_groups"] == row["groups/solver/gradient_groups"] == 1


def test_the_share_of_failed_calls_is_that_of_the_played_turns(played):
    run, store = played
    row = json.loads(run.metrics.read_text().splitlines()[0])
    assert row["injector/failed_calls"] > 0
    for role in ("injector", "solver"):
        turns = [
            turn
            for known in store.episodes(role=role)
            if known.path
            for turn in Episode.read(run.path / known.path).turns
        ]
        assert row[f"{role}/failed_calls"] == pytest.approx(
            sum(turn.is_error for turn in turns) / len(turns), abs=1e-4
        )


def test_each_sampled_token_that_was_trained_on_has_a_ratio(played):
    run, store = played
    row = json.loads(run.metrics.read_text().splitlines()[0])
    found = []
    for known in store.episodes():
        if not known.path:
            continue
        episode = Episode.read(run.path / known.path)
        ratios = read_ratios(ratios_file(run.path, 1), known.episode_id)
        assert all(mask for mask, ratio in zip(episode.loss_mask, ratios, strict=False) if ratio is not None)
        found += [ratio for ratio in ratios if ratio is not None]
    assert len(found) == row["action_tokens"] > 0
    assert sum(found) / len(found) == pytest.approx(row["ratio"], rel=2e-3)


def test_the_checkpoint_loads_in_transformers(played):
    from transformers import AutoModelForCausalLM

    run, store = played
    AutoModelForCausalLM.from_pretrained(run.checkpoints / store.last_checkpoint())


def test_a_fix_in_a_local_checkouts_history_comes_back_as_a_bug_and_is_mended(cache, tmp_path):
    open_or_skip("bubblewrap", cache)
    run = play(
        tmp_path,
        cache,
        "bubblewrap",
        updates=1,
        git=True,
        player_of=HistoryPlayer,
        train={"updates": 1, "injector_groups": 1, "solver_groups": 1, "group_size": 2},
        injector={"strategies": {"history": 1.0}, "help": ["tests"], "min_passing_tests": [3, 3]},
    )
    with Store.open(run.database, writer=False) as store:
        (bug,) = store.bugs()
        assert (bug.strategy, bug.solve_rate) == ("history", 0.5)
        assert set(bug.fail_to_pass) == {
            "tests/test_numbers.py::test_digits",
            "tests/test_text.py::test_loud_digit_sum",
        }


KILLS = [
    "phase:injecting",
    "written:3",
    "recorded:4",
    "phase:solving",
    "recorded:13",
    "phase:second order",
    "phase:training",
    "phase:saving",
    "committed:1",
]


def outcome(run):
    """What a run is worth comparing by: rewards, advantages, bugs, and the tokens of every episode."""
    with Store.open(run.database, writer=False) as store:
        episodes = [
            (row.episode_id, row.reward, row.advantage, row.consumed_update, row.masked, row.finish)
            for row in store.episodes()
        ]
        bugs = [
            (bug.bug_id, bug.order, bug.tree_digest, bug.solve_rate, bug.attempts, bug.passes, bug.status)
            for bug in store.bugs()
        ]
        tokens = [Episode.read(run.path / row.path).token_ids for row in store.episodes() if row.path]
        weights = (run.checkpoints / store.last_checkpoint() / "model.safetensors").read_bytes()
        return episodes, bugs, tokens, weights


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    open_or_skip("bubblewrap", cache)
    return outcome(play(tmp_path_factory.mktemp("undisturbed"), cache, "bubblewrap"))


@pytest.mark.parametrize("kill_at", KILLS)
def test_a_run_killed_anywhere_ends_like_one_that_was_not(kill_at, undisturbed, cache, tmp_path):
    command = [sys.executable, scripted_game.__file__, str(tmp_path), str(cache), "bubblewrap"]
    killed = subprocess.run(
        [*command, kill_at], capture_output=True, text=True, cwd=Path(scripted_game.__file__).parent
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    backend, _ = open_backend("bubblewrap", cache)
    backend.sweep()
    assert backend.sweep() == []
    run = play(tmp_path, cache, "bubblewrap")
    assert outcome(run) == undisturbed
    assert not list(run.episodes.glob("*.partial"))
    assert len(list(run.checkpoints.iterdir())) == 2


@pytest.mark.parametrize("kill_at", ["recorded:12"])
def test_a_run_killed_while_it_plays_ahead_keeps_every_episode_and_bug_and_trains_on_none_twice(
    kill_at, cache, tmp_path
):
    backend = open_or_skip("bubblewrap", cache)
    command = [sys.executable, scripted_game.__file__, str(tmp_path), str(cache), "bubblewrap", kill_at, "2"]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=Path(scripted_game.__file__).parent)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    backend.sweep()
    folder = tmp_path / "runs" / "scripted"
    files = {path.name: path.read_bytes() for path in (folder / "episodes").glob("*.json.gz")}
    with Store.open(folder / "selfplay.db", writer=False) as store:
        recorded = {row.episode_id for row in store.episodes()}
        bugs = {(bug.bug_id, bug.tree_digest) for bug in store.bugs()}
    run = play(tmp_path, cache, "bubblewrap", ahead=2)
    assert files and all((run.episodes / name).read_bytes() == content for name, content in files.items())
    with Store.open(run.database, writer=False) as store:
        assert recorded <= {row.episode_id for row in store.episodes()}
        assert bugs <= {(bug.bug_id, bug.tree_digest) for bug in store.bugs()}
        assert [update.update for update in store.updates() if update.committed_at] == [1, 2]
        first = store.bugs(order=1)[0]
        assert (first.bug_id, first.first_solve_rate) == ("u0001-inj0-m0-bug", 1 / 8)
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        trained = [row for row in store.episodes() if row.consumed_update]
    assert {row.consumed_update for row in trained} <= {1, 2}
    assert [row["update"] for row in rows] == [1, 2]


def test_a_full_disk_stops_the_run_with_its_reason_and_nothing_is_lost(undisturbed, cache, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", runs], capture_output=True
        ).returncode
    ):
        pytest.skip("a small disk is a tmpfs mount, which needs root: run the tests as root once")
    try:
        command = [sys.executable, scripted_game.__file__, str(tmp_path), str(cache), "bubblewrap"]
        stopped = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(scripted_game.__file__).parent
        )
        assert stopped.returncode == 1
        last = stopped.stderr.strip().splitlines()[-1]
        assert "selfplay.errors." in last, stopped.stderr[-2000:]
        assert "full" in last or "No space left" in last
        subprocess.run(["mount", "-o", "remount,size=64m", runs], check=True)
        assert outcome(play(tmp_path, cache, "bubblewrap")) == undisturbed
    finally:
        subprocess.run(["umount", "-l", runs], check=True)


@pytest.mark.parametrize("kill_at", ["", "phase:training"])
def test_counters_and_seconds_go_on_where_an_earlier_process_ended(kill_at, cache, tmp_path, monkeypatch):
    open_or_skip("bubblewrap", cache)
    shown = []

    class Shown(scripted_game.TrainProgress):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            shown.append(self)

    monkeypatch.setattr(scripted_game, "TrainProgress", Shown)
    earlier = {}
    if kill_at:
        command = [sys.executable, scripted_game.__file__, str(tmp_path), str(cache), "bubblewrap", kill_at]
        subprocess.run(command, capture_output=True, cwd=Path(scripted_game.__file__).parent)
        with Store.open(tmp_path / "runs" / "scripted" / "selfplay.db", writer=False) as store:
            earlier = json.loads(store.updates()[0].metrics_json)
        assert earlier["seconds/injecting"] > 0 and earlier["seconds/solving"] > 0
    run = play(tmp_path, cache, "bubblewrap")
    with Store.open(run.database, writer=False) as store:
        recorded = TrainProgress(Console(quiet=True), 2, 2, counts_so_far(store))
        metrics = json.loads(store.updates()[0].metrics_json)
    live, stored = dict(shown[0].lines()), dict(recorded.lines())
    assert [live[name] for name in ("artifacts", "repairs", "reward")] == [
        stored[name] for name in ("artifacts", "repairs", "reward")
    ]
    # The live display also counts plays that the machine spoiled and that were repeated: solvers here.
    assert live["injector"] == stored["injector"]
    assert all(metrics[name] >= seconds for name, seconds in earlier.items())


def test_recorded_actions_give_the_same_observations_in_a_fresh_sandbox(played, cache):
    """`selfplay replay --rerun`, which gets the environment from the cache of prepared ones."""
    run, store = played
    box_kind = run.path.parents[1].name.rstrip("0123456789")
    backend, _ = open_backend(box_kind, cache)
    environment = prepare_tiny(backend, run.path.parents[1] / "repository", cache, False)
    chat = ChatFormat(load_tokenizer(str(run.path.parents[1] / "policy")))
    for role in ("injector", "solver"):
        _, rows = first(store, role)
        recorded = Episode.read(run.path / rows[0].path)
        again = play_again(recorded, run, run.config(), chat, environment, backend)
        assert first_difference(recorded, again) is None
    changed = replace(recorded.turns[0], observation=f"{recorded.turns[0].observation}\nand more")
    other = replace(recorded, turns=(changed, *recorded.turns[1:]))
    assert first_difference(other, again) == Difference(
        1, "the observation", changed.observation, again.turns[0].observation
    )


def test_an_episode_of_another_tokenizer_is_not_played_again(played, cache):
    run, store = played
    _, rows = first(store, "solver")
    recorded = Episode.read(run.path / rows[0].path)
    other = replace(recorded, turns=(replace(recorded.turns[0], text="another text"), *recorded.turns[1:]))
    chat = ChatFormat(load_tokenizer(str(run.path.parents[1] / "policy")))
    with pytest.raises(RunError, match="Put that policy back"):
        play_again(other, run, run.config(), chat, None, None)
