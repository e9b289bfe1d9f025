"""Evaluation on the tiny repository with scripted players.

They check what counts, what a second call plays, and that an evaluation does not disturb its run.
"""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import scripted_game
from scripted_game import Player, play, tiny_config
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.episode import Episode
from selfplay.agent.workspaces import EpisodeContext, sandbox_limits
from selfplay.curriculum.store import Store
from selfplay.engines.scripted_engine import ScriptedEngine
from selfplay.errors import RunError, UsageError
from selfplay.evaluation.evaluator import Evaluator
from selfplay.evaluation.folder import Folder
from selfplay.evaluation.run_evaluations import RunEvaluations
from selfplay.evaluation.tasks import Task, write_tasks
from selfplay.metrics import read_metrics
from selfplay.settings.learning import EvaluationSettings
from tiny_bugs import CLAMP_TEST, TESTS, make_artifact, prepare_tiny
from tiny_policy import build_tiny_policy

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
REPO = "pypi:tiny==1.0"
POLICY = {"model": "tiny"}


@pytest.fixture(scope="module")
def environment(backend, cache, tmp_path_factory):
    return prepare_tiny(backend, tmp_path_factory.mktemp("repository"), cache)


@pytest.fixture(scope="module")
def task(environment):
    passing = sorted(
        test for test in environment.baseline.passed if test != CLAMP_TEST and test.startswith(TESTS)
    )
    return Task(
        "tiny__clamp",
        REPO,
        "",
        "",
        (CLAMP_TEST,),
        tuple(passing),
        make_artifact(environment).to_files(),
        set="tiny",
    )


class Moves(Player):
    """The scripted solver, which counts its turns.

    broken: what attempt 3 does. False: it submits nothing. None: the machine fails, as in the script.
    """

    def __init__(self, tree, broken=None):
        super().__init__(tree)
        self.turns = []
        self.temperatures = []
        self.broken = broken

    def __call__(self, turn):
        self.turns.append(turn.tag)
        if self.broken is False and turn.tag.split("/")[2] == "3":
            return "<tool: submit>\n</tool>"
        return super().__call__(turn)


def an_evaluator(environment, backend, folder, moves, **settings):
    policy = folder / "policy"
    if not policy.exists():
        build_tiny_policy(policy)
    config = tiny_config(folder, **settings)
    tokenizer = load_tokenizer(str(policy))
    engine = ScriptedEngine(moves, tokenizer)
    failing = scripted_game.FailingBackend(backend, moves)
    context = EpisodeContext(config, engine, ChatFormat(tokenizer), failing, sandbox_limits(config))
    return Evaluator(context, {REPO: environment})


def test_spoiled_attempts_are_not_counted_and_a_second_call_plays_only_them(
    environment, backend, task, tmp_path
):
    folder, moves = Folder(tmp_path / "out"), Moves(environment.tree)
    results = an_evaluator(environment, backend, tmp_path, moves).play([task], 4, True, folder, POLICY)
    assert [(result.mode, result.attempt, result.passed) for result in results] == [
        ("sampled", 0, True),
        ("sampled", 1, False),
        ("sampled", 2, False),
        ("sampled", 3, None),
        ("greedy", 0, True),
    ]
    assert len(folder.results()) == 4
    again = Moves(environment.tree, broken=False)
    reports = []
    results = an_evaluator(environment, backend, tmp_path, again).play(
        [task], 4, True, folder, POLICY, lambda done, total: reports.append((done, total))
    )
    assert again.turns == ["solver/tiny__clamp/3/0"]
    assert [result.passed for result in results] == [True, False, False, False, True]
    assert reports == [(4, 5), (5, 5)]


def test_attempts_whose_commands_met_their_time_limit_are_counted_and_warned_of(
    environment, backend, task, tmp_path
):
    class Slow(Moves):
        def __call__(self, turn):
            return "<tool: bash>\nsleep 60\n</tool>" if turn.number == 0 else "<tool: submit>\n</tool>"

    agent = tiny_config(tmp_path).agent.model_copy(update={"command_timeout_s": 0.5}).model_dump()
    evaluator = an_evaluator(environment, backend, tmp_path, Slow(environment.tree), agent=agent)
    evaluations = RunEvaluations(tmp_path / "out", EvaluationSettings(attempts=2), [task], evaluator)
    row = evaluations.play(0, POLICY, lambda done, total: None)
    assert row["evaluation/timed_out"] == 3  # two sampled attempts and a greedy one
    (warning,) = evaluations.warnings(0)
    assert warning.startswith("In 3 of 3 attempts a command met its time limit ")


def test_an_attempt_sees_suspects_from_the_environments_calls(environment, backend, task, tmp_path):
    folder = Folder(tmp_path / "out")
    an_evaluator(environment, backend, tmp_path, Moves(environment.tree)).play(
        [task], 1, False, folder, POLICY
    )
    (episode,) = (Episode.read(path) for path in folder.episodes.iterdir())
    assert episode.messages[0]["content"].endswith("\ngrep -n '' tiny/numbers.py | sed -n '4,10p' # clamp")


def test_evaluations_never_resample(environment, backend, task, tmp_path):
    class Careless(Moves):
        def __call__(self, turn):
            return "no call" if turn.number == 0 else "<tool: submit>\n</tool>"

    folder, agent = Folder(tmp_path / "out"), tiny_config(tmp_path).agent.model_copy(update={"resamples": 2})
    evaluator = an_evaluator(
        environment, backend, tmp_path, Careless(environment.tree), agent=agent.model_dump()
    )
    evaluator.play([task], 1, True, folder, POLICY)
    episodes = [Episode.read(path) for path in folder.episodes.iterdir()]
    assert [[turn.rejected for turn in episode.turns] for episode in episodes] == [[0, 0]] * 2


def test_an_episode_that_a_kill_left_ungraded_is_graded_and_not_played_again(
    environment, backend, task, tmp_path
):
    folder = Folder(tmp_path / "out")
    an_evaluator(environment, backend, tmp_path, Moves(environment.tree)).play(
        [task], 2, False, folder, POLICY
    )
    folder.results_file.write_text(folder.results_file.read_text()[:30])
    again = Moves(environment.tree)
    results = an_evaluator(environment, backend, tmp_path, again).play([task], 2, False, folder, POLICY)
    assert [result.passed for result in results] == [True, False]
    assert again.turns == []
    assert len(folder.results()) == 2


def test_a_folder_of_another_evaluation_is_refused_and_not_changed(environment, backend, task, tmp_path):
    folder, moves = Folder(tmp_path / "out"), Moves(environment.tree)
    evaluator = an_evaluator(environment, backend, tmp_path, moves)
    evaluator.play([task], 1, False, folder, POLICY)
    kept = folder.results_file.read_bytes()
    with pytest.raises(UsageError, match="of the policy model tiny, not model other"):
        evaluator.play([task], 1, False, folder, {"model": "other"})
    with pytest.raises(UsageError, match=r"of other tasks \(1 there, 1 now, 0 of them the same\)"):
        evaluator.play([replace(task, failure="another")], 1, False, folder, POLICY)
    changed = an_evaluator(environment, backend, tmp_path, moves, validator={"script_timeout_s": 33})
    with pytest.raises(UsageError, match="validator.script_timeout_s = 90.0 there and 33.0 here"):
        changed.play([task], 1, False, folder, POLICY)
    assert folder.results_file.read_bytes() == kept


def test_a_task_that_does_not_fit_its_repository_is_named_before_anything_is_played(
    environment, backend, task, tmp_path
):
    moves = Moves(environment.tree)
    misfit = replace(
        task,
        artifact={
            **task.artifact,
            "bug_inject.diff": task.artifact["bug_inject.diff"].replace("return high", "return up"),
        },
    )
    with pytest.raises(RunError, match="tiny__clamp"):
        an_evaluator(environment, backend, tmp_path, moves).play(
            [misfit], 1, False, Folder(tmp_path / "out"), POLICY
        )
    assert moves.turns == []


# ---- during a run


def training_of(run):
    """The results of training: rewards, advantages, tokens of the episodes, and the weights."""
    with Store.open(run.database, writer=False) as store:
        episodes = [
            (row.episode_id, row.reward, row.advantage, row.consumed_update) for row in store.episodes()
        ]
        tokens = [Episode.read(run.path / row.path).token_ids for row in store.episodes() if row.path]
        return (
            episodes,
            tokens,
            (run.checkpoints / store.last_checkpoint() / "model.safetensors").read_bytes(),
        )


def results_of(run, update):
    results = Folder(run.evaluations / update).results()
    return sorted((result.mode, result.attempt, result.passed, result.tokens) for result in results)


def with_tasks(folder: Path, task: Task) -> Path:
    write_tasks([task], folder / "evaluation.jsonl")
    return folder


@pytest.fixture(scope="module")
def evaluated(backend, cache, task, tmp_path_factory):
    return play(with_tasks(tmp_path_factory.mktemp("evaluated"), task), cache, "bubblewrap", updates=1)


def test_a_run_evaluates_before_its_first_update_and_after_its_last(evaluated):
    assert sorted(path.name for path in evaluated.evaluations.iterdir()) == ["u0000", "u0001"]
    rows = [row for row in read_metrics(evaluated.metrics) if "evaluation" in row]
    assert [row["evaluation"] for row in rows] == [0, 1]
    assert [row["evaluation/sampled/pass@1"] for row in rows] == pytest.approx([1 / 3, 1 / 3])
    assert [row["evaluation/spoiled"] for row in rows] == [1, 1]
    policies = [
        json.loads((evaluated.evaluations / name / "evaluation.json").read_text())["policy"]
        for name in ("u0000", "u0001")
    ]
    assert [policy["weights"] for policy in policies] == [0, 1]


def test_evaluations_do_not_change_training(evaluated, cache, tmp_path):
    assert training_of(play(tmp_path, cache, "bubblewrap", updates=1)) == training_of(evaluated)


def test_a_run_killed_during_an_evaluation_ends_like_an_undisturbed_one(evaluated, cache, task, tmp_path):
    with_tasks(tmp_path, task)
    command = [sys.executable, scripted_game.__file__, str(tmp_path), str(cache), "bubblewrap", "written:2"]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=Path(scripted_game.__file__).parent)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    run = play(tmp_path, cache, "bubblewrap", updates=1)
    for update in ("u0000", "u0001"):
        assert results_of(run, update) == results_of(evaluated, update)
    assert training_of(run) == training_of(evaluated)
    assert len([row for row in read_metrics(run.metrics) if "evaluation" in row]) == 2
