"""The arms of the learning experiment on the tiny repository with scripted players: one role alone learns,
or bugs are given.
"""

import json
import threading

import pytest

from machine import open_or_skip
from scripted_game import NOTHING, REPAIR, SUBMIT_NOTHING, play
from selfplay.curriculum.store import Store
from selfplay.errors import RunError, UsageError
from selfplay.evaluation.tasks import Task, write_tasks
from selfplay.orchestrator.given_bugs import put_given_bugs, read_given_bugs
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import Limits
from selfplay.settings.playing import ValidatorSettings
from selfplay.source.diffs import reverse_patch
from selfplay.verdicts.checks import Thresholds
from selfplay.verdicts.test_runs import TestRunner
from selfplay.verdicts.validator import validate
from tiny_bugs import make_artifact, prepare_tiny

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]

MEAN_BUG = {"tiny/numbers.py": ("    return total / len(values)\n", "    return total\n")}
MEAN_WEAKENED = {
    "tests/test_numbers.py": ("    assert mean([1, 2, 3]) == 2\n", "    assert mean([1, 2, 3])\n"),
}
HELD_OUT_BUG = {"tiny/numbers.py": ("    return number % 2 == 0\n", "    return number % 2 == 1\n")}
REPAIR_ONLY = {"injector_groups": 0, "solver_groups": 1, "group_size": 2, "max_machine_failures": 0.9}


@pytest.fixture(scope="module")
def environment(cache, tmp_path_factory):
    backend = open_or_skip("bubblewrap", cache)
    return prepare_tiny(backend, tmp_path_factory.mktemp("repository"), cache)


def task(environment, artifact, name="clamp", **values):
    backend, _ = open_backend("bubblewrap")
    runner = TestRunner(backend, ValidatorSettings(), Limits(), {"run": "arms"})
    verdict = validate(artifact, environment, Thresholds(3, 1, 1), runner, ValidatorSettings())
    assert verdict.accepted, verdict.failed_check
    return Task(
        instance_id=name,
        repo=environment.checkout.spec.text,
        patch=reverse_patch(artifact.bug_inject),
        test_patch=reverse_patch(artifact.test_weaken),
        fail_to_pass=verdict.fail_to_pass,
        pass_to_pass=verdict.pass_to_pass,
        artifact=artifact.to_files(),
        **values,
    )


@pytest.fixture(scope="module")
def records(environment, tmp_path_factory):
    tasks = [
        task(environment, make_artifact(environment)),
        task(environment, make_artifact(environment, MEAN_BUG, MEAN_WEAKENED), "mean"),
    ]
    path = tmp_path_factory.mktemp("given") / "bugs.jsonl"
    write_tasks(tasks, path)
    return path


class HalfRepairs:
    """Solver members take turns at repairing clamp and doing nothing; injectors hand in nothing."""

    def __init__(self, tree):
        self.machine_fails = threading.local()

    def __call__(self, turn):
        role, _, member, _ = turn.tag.split("/")
        moves = [REPAIR, SUBMIT_NOTHING] if role == "solver" and member == "0" else [NOTHING, SUBMIT_NOTHING]
        return moves[min(turn.number, 1)]


def rows_of(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_an_update_that_learns_from_injectors_alone_plays_its_solvers_and_trains_on_none_of_them(
    environment, cache, tmp_path
):
    train = {
        "updates": 1,
        "injector_groups": 1,
        "solver_groups": 1,
        "group_size": 9,
        "max_machine_failures": 0.9,
        "trained_roles": ["injector"],
    }
    run = play(tmp_path, cache, "bubblewrap", updates=1, train=train)
    (row,) = rows_of(run)
    assert row["groups/not_learned"] == 8
    assert row["carried_gradient"] and row["injector/action_tokens"] > 0 and "solver/action_tokens" not in row
    assert (row["injector/episodes"], row["solver/episodes"]) == (9, 9)
    assert row["injector/valid"] == pytest.approx(2 / 9, abs=1e-4)
    assert row["injector/duplicate"] == 0.5
    assert row["solver/solved"] == pytest.approx(1 / 8)
    with Store.open(run.database, writer=False) as store:
        assert {
            episode.consumed_update for episode in store.episodes(role="solver") if not episode.masked
        } == {1}


def test_given_bugs_are_played_and_replayed_without_any_injector(environment, cache, tmp_path, records):
    settings = {
        "train": REPAIR_ONLY | {"updates": 3},
        "solver": {"help": ["failure"], "second_order_share": 0.0},
    }
    run = play(
        tmp_path,
        cache,
        "bubblewrap",
        updates=3,
        player_of=HalfRepairs,
        given_bugs=records.read_text(),
        **settings,
    )
    with Store.open(run.database, writer=False) as store:
        assert {(bug.bug_id, bug.strategy, bug.status, bug.solve_rate) for bug in store.bugs()} == {
            ("given-clamp", "given", "measured", 0.5),
            ("given-mean", "given", "measured", 0.0),
        }
        assert sum(bug.plays for bug in store.bugs()) == 3
        assert not store.episodes(role="injector")
    assert [row["carried_gradient"] for row in rows_of(run)].count(True) >= 1
    assert run.given_bugs_file.read_text() == records.read_text()


def test_in_even_updates_solvers_take_the_places_of_injectors_that_wait(
    environment, cache, tmp_path, records
):
    train = REPAIR_ONLY | {
        "injector_groups": 1,
        "injector_group_size": 2,
        "fill_idle_slots": True,
        "updates": 1,
    }
    run = play(
        tmp_path,
        cache,
        "bubblewrap",
        updates=1,
        player_of=HalfRepairs,
        given_bugs=records.read_text(),
        train=train,
    )
    (row,) = rows_of(run)
    assert (row["injector/episodes"], row["solver/episodes"]) == (0, 4)


def test_without_injectors_and_bugs_the_run_stops_and_says_what_to_change(environment, cache, tmp_path):
    with pytest.raises(RunError, match="nothing to play.*train.injector_groups"):
        play(tmp_path, cache, "bubblewrap", updates=1, train=REPAIR_ONLY | {"updates": 1})


def test_given_bugs_are_put_into_a_curriculum_once(environment, tmp_path, records):
    environments = {environment.repository: environment}
    tasks = read_given_bugs(records, environments)
    with Store.open(tmp_path / "selfplay.db") as store:
        for _ in range(2):
            put_given_bugs(tasks, store, environments, lambda _: False, lambda _: None)
            store.set_bug_status("given-clamp", "void")
        assert [bug.status for bug in store.bugs()] == ["void", "fresh"]


def test_a_given_bug_in_a_held_out_function_is_refused(environment, tmp_path, records):
    environments = {environment.repository: environment}
    clamp, _ = read_given_bugs(records, environments)
    held_out = make_artifact(environment, HELD_OUT_BUG)
    bad = Task(**{**vars(clamp), "artifact": held_out.to_files()})
    with Store.open(tmp_path / "selfplay.db") as store:
        with pytest.raises(RunError, match="clamp: changes is_even, held out"):
            put_given_bugs([bad], store, environments, lambda _: False, lambda _: None)
        assert not store.bugs()


def test_a_given_bug_that_nobody_can_repair_is_refused(environment, tmp_path, records):
    environments = {environment.repository: environment}
    tasks = read_given_bugs(records, environments)
    with Store.open(tmp_path / "selfplay.db") as store:
        with pytest.raises(RunError, match=r"clamp: nobody can repair 'tiny/numbers\.py': the diffs of all"):
            put_given_bugs(tasks, store, environments, lambda _: False, lambda _: None, max_patch_bytes=100)
        assert not store.bugs()


def test_given_bugs_that_are_all_too_long_to_play_are_an_error(environment, tmp_path, records):
    environments = {environment.repository: environment}
    with Store.open(tmp_path / "selfplay.db") as store:
        with pytest.raises(RunError, match="none of the 2 given bug"):
            put_given_bugs(
                read_given_bugs(records, environments), store, environments, lambda _: True, lambda _: None
            )
        assert not store.bugs()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instance_id": "own-clamp"}, "own-clamp: is a bug of a frozen evaluation set"),
        ({"instance_id": "human-1"}, "human-1: is a bug of a frozen evaluation set"),
        ({"artifact": {}}, "clamp: has no artifact"),
        ({"order": 2}, "clamp: is of order 2"),
        ({"repo": "pypi:toolz==1.0.0"}, "clamp: is of toolz-1.0.0, which the repository list does not name"),
    ],
)
def test_a_record_that_cannot_be_given_is_refused_by_name(environment, tmp_path, records, change, message):
    clamp, _ = read_given_bugs(records, {environment.repository})
    write_tasks([Task(**{**vars(clamp), **change})], tmp_path / "bugs.jsonl")
    with pytest.raises(UsageError, match=message):
        read_given_bugs(tmp_path / "bugs.jsonl", {environment.repository})
