"""A record of the field, played by a scripted solver: it is told the issue, and the tests stay hidden."""

import io

import pytest
from field_records import ISSUE, make_clones, swe_bench_record, swe_smith_record
from rich.console import Console

from machine import open_or_skip
from scripted_game import tiny_config
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.episode import Episode
from selfplay.agent.workspaces import EpisodeContext, sandbox_limits
from selfplay.engines.scripted_engine import ScriptedEngine
from selfplay.evaluation.evaluator import Evaluator
from selfplay.evaluation.folder import Folder
from selfplay.evaluation.task_environments import prepare_tasks
from selfplay.evaluation.tasks import parse_task
from selfplay.repositories.prepare import Preparer
from tiny_policy import build_tiny_policy

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]
POLICY = {"model": "tiny"}
LOOK = "<tool: bash>\nls tests; grep -n 'digits(' tests/test_numbers.py\n</tool>"
REPAIR = "<tool: bash>\nsed -i 's/str(number)/str(abs(number))/' tiny/numbers.py\n</tool>"
SUBMIT = "<tool: submit>\n</tool>"


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    return make_clones(tmp_path_factory.mktemp("clones"))


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFPLAY_CACHE", str(folder))
        yield open_or_skip("bubblewrap", folder)


class Solver:
    """Looks at the tests, repairs in attempts with an even number, submits."""

    def __call__(self, turn):
        attempt = int(turn.tag.split("/")[2])
        return [LOOK, REPAIR if attempt % 2 == 0 else LOOK.replace("ls", "ls -a"), SUBMIT][
            min(turn.number, 2)
        ]


class Engine(ScriptedEngine):
    """Remembers how it was asked to sample."""

    def __init__(self, reply, tokenizer):
        super().__init__(reply, tokenizer)
        self.samplings = set()

    def generate(self, requests, sampling):
        self.samplings.add((sampling.temperature, sampling.top_p))
        return super().generate(requests, sampling)


def play(records, folder, backend, clones, attempts=2, **settings):
    """The results, and the engine that was asked."""
    policy = folder / "policy"
    build_tiny_policy(policy)
    config = tiny_config(folder, **settings)
    tasks = [parse_task(record) for record in records]
    limits = sandbox_limits(config)
    prepared = prepare_tasks(tasks, Preparer(backend, config, limits, Console(file=io.StringIO())), clones)
    tokenizer = load_tokenizer(str(policy))
    engine = Engine(Solver(), tokenizer)
    context = EpisodeContext(config, engine, ChatFormat(tokenizer), backend, limits)
    evaluator = Evaluator(context, prepared.environments, {}, prepared.left_out)
    return evaluator.play(tasks, attempts, True, Folder(folder / "out"), POLICY), engine


def test_a_solver_is_told_the_issue_and_finds_no_hidden_test(backend, clones, tmp_path):
    """`solver.help` names tests and failure: a task with an issue gives neither."""
    results, _ = play([swe_bench_record(clones)], tmp_path, backend, clones)
    assert [(one.mode, one.passed) for one in results] == [
        ("sampled", True),
        ("sampled", False),
        ("greedy", True),
    ]
    for episode in map(Episode.read, (tmp_path / "out" / "episodes").iterdir()):
        assert episode.messages[0]["content"] == f"solver\n{ISSUE}"
        seen = episode.messages[2]["content"]
        assert "digits(120)" in seen and "digits(-120)" not in seen


def test_the_files_with_the_broken_tests_of_a_swe_smith_record_are_hidden(backend, clones, tmp_path):
    results, _ = play([swe_smith_record(clones)], tmp_path, backend, clones, attempts=1)
    assert [one.passed for one in results] == [True, True]
    (first, *_) = map(Episode.read, (tmp_path / "out" / "episodes").iterdir())
    seen = first.messages[2]["content"]
    assert "test_text.py" in seen and "test_numbers.py\n" not in seen


def test_evaluations_sample_as_their_own_settings_say(backend, clones, tmp_path):
    settings = {"evaluation": {"temperature": 0.8, "top_p": 0.95}}
    _, engine = play([swe_bench_record(clones)], tmp_path, backend, clones, **settings)
    assert engine.samplings == {(0.8, 0.95), (0.0, 1.0)}


def test_what_is_left_out_is_kept_with_the_results(backend, clones, tmp_path):
    records = [
        swe_bench_record(clones),
        swe_bench_record(clones, instance_id="junk", FAIL_TO_PASS=["tests/test_numbers.py::test_nothing"]),
        swe_bench_record(clones, instance_id="go", repo_language="go"),
    ]
    results, _ = play(records, tmp_path, backend, clones, attempts=1)
    assert {one.instance_id for one in results} == {"tiny-owner__tiny-3"}
    left_out, _ = Folder(tmp_path / "out").left_out()
    assert list(left_out) == ["junk", "go"]
