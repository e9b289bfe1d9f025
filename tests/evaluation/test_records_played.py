"""A record of the field, played by a scripted solver: it is told the issue, and the tests stay hidden."""

import io
import json

import pytest
from field_records import ISSUE, make_clones, swe_bench_record, swe_smith_record
from rich.console import Console

from machine import open_or_skip
from scripted_game import tiny_config
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.episode import Episode
from selfplay.agent.workspaces import EpisodeContext, sandbox_limits
from selfplay.engines.scripted_engine import ScriptedEngine
from selfplay.evaluation.checks import Checker
from selfplay.evaluation.evaluator import Evaluator
from selfplay.evaluation.folder import Folder
from selfplay.evaluation.predictions import Grading, grade_predictions, read_predictions
from selfplay.evaluation.task_environments import prepare_tasks
from selfplay.evaluation.tasks import parse_task
from selfplay.repositories.prepare import Preparer
from selfplay.verdicts.test_runs import TestRunner
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


# ---- what other tools read


def test_patches_are_written_as_swe_bench_reads_them_and_grade_the_same(backend, clones, tmp_path):
    """preds.json holds the first attempt, the others have files of their own."""
    record = swe_bench_record(clones)
    played, _ = play([record], tmp_path, backend, clones)
    written = json.loads((tmp_path / "out" / "preds.json").read_text())
    assert written.keys() == {record["instance_id"]}
    prediction = written[record["instance_id"]]
    assert prediction.keys() == {"instance_id", "model_name_or_path", "model_patch"}
    assert (prediction["model_name_or_path"], prediction["model_patch"]) == ("tiny", played[0].patch)
    assert "+    return [int(char) for char in str(abs(number))]" in played[0].patch
    names = sorted(path.name for path in (tmp_path / "out").glob("preds*"))
    assert names == ["preds-1.json", "preds-greedy.json", "preds.json"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {line["patch"] for line in lines} == {played[0].patch, ""}
    for name, passed in (("preds.json", True), ("preds-1.json", False), ("preds-greedy.json", True)):
        results = grade(tmp_path / name, tmp_path / "out" / name, [record], backend, clones)
        assert [result.passed for result in results] == [passed]


def grade(folder, predictions, records, backend, clones):
    config = tiny_config(folder)
    tasks = [parse_task(record) for record in records]
    limits = sandbox_limits(config)
    preparer = Preparer(backend, config, limits, Console(file=io.StringIO()))
    checker = Checker(TestRunner(backend, config.validator, limits, {}))
    prepared = prepare_tasks(tasks, preparer, clones)
    found = read_predictions(predictions)
    return grade_predictions(tasks, found, config, prepared, Grading(checker), Folder(folder))


def test_predictions_of_others_are_graded_once_and_a_missing_one_is_a_failure(backend, clones, tmp_path):
    records = [swe_bench_record(clones), swe_bench_record(clones, instance_id="other")]
    right, name = records[0]["patch"], records[0]["instance_id"]
    touches_tests = right + records[0]["test_patch"].replace("digits(-120)", "digits(-12)")
    patches = [right, "", None, "no diff", touches_tests, right.replace("abs(number)", "number or 7")]
    lines = [{"instance_id": name, "model_name_or_path": "m", "model_patch": patch} for patch in patches]
    file = tmp_path / "others.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = grade(tmp_path / "out", file, records, backend, clones)
    assert [result.passed for result in results] == [True, False, False, False, True, False, False]
    reasons = {result.attempt: result.reason for result in results if result.instance_id == name}
    assert reasons[1] == "no change" and reasons[3].startswith("the patch cannot be applied")
    assert (results[-1].instance_id, results[-1].reason) == ("other", "no prediction")
    before = (tmp_path / "out" / "results.jsonl").read_text()
    assert grade(tmp_path / "out", file, records, backend, clones) == results
    assert (tmp_path / "out" / "results.jsonl").read_text() == before
