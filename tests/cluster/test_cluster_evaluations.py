"""`selfplay eval --cluster` on a local Ray cluster whose parts are killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from field_records import make_clones, swe_bench_record, swe_smith_record

from local_cluster import add_node, open_cluster, processes_on
from machine import eventually, open_or_skip
from selfplay.agent.episode import Episode
from selfplay.evaluation.folder import Folder
from selfplay.evaluation.tasks import Task, write_tasks
from selfplay.repositories.specs import absolute_line, parse_spec
from tiny_bugs import CLAMP_TEST, TESTS, make_artifact, prepare_tiny
from tiny_policy import build_tiny_policy

pytest.importorskip("ray", reason="Ray is missing: pip install 'selfplay-swe[cluster]'")

# Warnings that come from Ray itself cannot be fixed here.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.sandbox,
    pytest.mark.timeout(2400),
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]
ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
PATIENCE_S = 900.0  # these steps take seconds on an idle machine
ATTEMPTS = 6
SETTINGS = """\
seed = 5
[policy]
model = "./policy"
[engine]
type = "scripted"
[sandbox]
type = "bubblewrap"
[environment]
baselines = 2
[agent]
max_turns = 8
context_tokens = 4096
turn_tokens = 1024
observation_tokens = 1000
prompt_style = "terse"
[solver]
help = ["failure", "suspects", "tests"]
[train]
episodes_in_flight = 4
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")  # the nodes of this machine share one cache


@pytest.fixture(scope="module")
def machines(cache: Path) -> Iterator[Any]:
    open_or_skip("bubblewrap", cache)
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("SELFPLAY_CACHE", str(cache))
        with open_cluster([HELPERS, ROOT, HELPERS / "standin"]) as opened:
            yield opened


class Evaluation:
    """`selfplay eval` on a bug of selfplay and on two records of the field, in a folder of its own."""

    def __init__(self, home: Path, cache: Path) -> None:
        self.home, self._cache = home, cache
        self._output_file = home / "output.txt"
        build_tiny_policy(home / "policy")
        clones = make_clones(home / "clones")
        environment = prepare_tiny(open_or_skip("bubblewrap", cache), home / "repository", cache)
        passing = sorted(
            test for test in environment.baseline.passed if test != CLAMP_TEST and test.startswith(TESTS)
        )
        own = Task(
            "tiny__clamp",
            absolute_line(parse_spec(str(home / "repository" / "tiny"))),
            "",
            "",
            (CLAMP_TEST,),
            tuple(passing),
            make_artifact(environment).to_files(),
            set="tiny",
        )
        write_tasks([own], home / "own.jsonl")
        records = [swe_bench_record(clones), swe_smith_record(clones)]
        (home / "field.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (home / "settings.toml").write_text(SETTINGS)

    def grade(self, output: str, *words: str) -> subprocess.Popen[bytes]:
        """Grade the predictions of the evaluation that was played here."""
        return self._run(output, "--predictions", "alone/preds.json", *words)

    def start(self, output: str, *words: str) -> subprocess.Popen[bytes]:
        return self._run(output, "--attempts", str(ATTEMPTS), *words)

    def _run(self, output: str, *words: str) -> subprocess.Popen[bytes]:
        tasks = ("--tasks", "own.jsonl", "--tasks", "field.jsonl", "--clones", "clones")
        command = [sys.executable, "-m", "selfplay.cli", "eval", *tasks, "--config", "settings.toml"]
        command += ["--output", output, *words]
        variables = {
            **os.environ,
            "SELFPLAY_CACHE": str(self._cache),
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HELPERS, HELPERS / "standin"))),
            "COLUMNS": "1000",
        }
        with self._output_file.open("ab") as file:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self.home, env=variables
            )

    @property
    def output(self) -> str:
        return self._output_file.read_text(encoding="utf-8", errors="replace")

    def lines(self, output: str) -> list[str]:
        file = Folder(self.home / output).results_file
        return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []

    def results(self, output: str) -> dict[tuple[str, str, int], tuple[Any, ...]]:
        """What each attempt came to, without its duration."""
        return {
            result.key: (result.passed, result.reason, result.turns, result.tokens, result.patch)
            for result in Folder(self.home / output).results()
        }

    def tokens(self, output: str) -> dict[str, tuple[int, ...]]:
        episodes = map(Episode.read, Folder(self.home / output).episodes.iterdir())
        return {episode.episode_id: tuple(episode.token_ids) for episode in episodes}


@pytest.fixture(scope="module")
def evaluation(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """An evaluation that was played here, without a cluster, into the folder `alone`."""
    made = Evaluation(tmp_path_factory.mktemp("evaluation"), cache)
    assert made.start("alone").wait(PATIENCE_S) == 0, made.output
    return made


def test_an_evaluation_on_a_cluster_whose_node_is_lost_has_the_same_results_as_without(
    machines: Any, evaluation: Evaluation
) -> None:
    far = add_node(machines)
    process = evaluation.start("on-cluster", "--cluster", machines.address)
    playing = eventually(
        lambda: bool(evaluation.lines("on-cluster")) or process.poll() is not None, PATIENCE_S, 0.05
    )
    assert playing and process.poll() is None, evaluation.output
    assert eventually(lambda: bool(processes_on(far, "bwrap")), PATIENCE_S, 0.05), evaluation.output
    machines.remove_node(far, allow_graceful=False)
    assert process.wait(PATIENCE_S) == 0, evaluation.output
    assert "was lost" in evaluation.output and "its episodes are played elsewhere" in evaluation.output
    assert len(evaluation.lines("on-cluster")) == 3 * (ATTEMPTS + 1)
    assert evaluation.results("on-cluster") == evaluation.results("alone")
    assert evaluation.tokens("on-cluster") == evaluation.tokens("alone")
    outcomes = {passed for passed, *_ in evaluation.results("alone").values()}
    assert outcomes == {True, False}


def test_predictions_are_graded_on_a_cluster_as_they_are_here(machines: Any, evaluation: Evaluation) -> None:
    far = add_node(machines)
    before = len(evaluation.output)
    processes = [evaluation.grade("graded-here"), evaluation.grade("graded", "--cluster", machines.address)]
    assert eventually(lambda: bool(processes_on(far, "bwrap")), PATIENCE_S, 0.05), evaluation.output
    assert [process.wait(PATIENCE_S) for process in processes] == [0, 0], evaluation.output
    machines.remove_node(far, allow_graceful=False)
    assert "plays no episodes" not in evaluation.output[before:]
    results = evaluation.results("graded")
    assert len(results) == 3 and results == evaluation.results("graded-here")
    assert {passed for passed, *_ in results.values()} == {True, False}


def test_a_killed_evaluation_on_a_cluster_is_continued_without_playing_anything_twice(
    machines: Any, evaluation: Evaluation
) -> None:
    far = add_node(machines)
    process = evaluation.start("killed", "--cluster", machines.address)
    eventually(lambda: len(evaluation.lines("killed")) >= 3 or process.poll() is not None, PATIENCE_S, 0.05)
    assert process.poll() is None, evaluation.output
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = evaluation.lines("killed")
    assert eventually(lambda: not processes_on(far, "bwrap"), 120, 0.2)  # nothing outlives it
    assert evaluation.start("killed", "--cluster", machines.address).wait(PATIENCE_S) == 0, evaluation.output
    machines.remove_node(far, allow_graceful=False)
    assert evaluation.lines("killed")[: len(kept)] == kept
    assert len(evaluation.lines("killed")) == len(evaluation.results("killed")) == 3 * (ATTEMPTS + 1)
    assert evaluation.results("killed") == evaluation.results("alone")


def test_an_evaluation_whose_only_server_was_on_a_lost_node_goes_on_by_itself(
    machines: Any, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers are stand-ins, whose replies call no tool: no attempt repairs anything."""
    # The placement believes this nvidia-smi; nothing here computes on a GPU.
    claimed = tmp_path / "nvidia-smi"
    claimed.write_text("#!/bin/sh\necho 81920; echo 81920\n")
    claimed.chmod(0o755)
    with monkeypatch.context() as there:
        there.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        far = add_node(machines, gpus=1)
    settings = ("engine.type=vllm", "engine.cache_mb=64", "train.episodes_in_flight=1")
    words = [word for setting in settings for word in ("--set", setting)]
    process = evaluation.start("served", "--cluster", machines.address, *words)
    eventually(lambda: bool(evaluation.lines("served")) or process.poll() is not None, PATIENCE_S, 0.05)
    assert process.poll() is None and processes_on(far, "api_server"), evaluation.output
    machines.remove_node(far, allow_graceful=False)
    assert process.wait(PATIENCE_S) == 0, evaluation.output
    assert "finished attempt(s) on what is left of the cluster." in evaluation.output
    results = evaluation.results("served")
    assert len(results) == len(evaluation.lines("served")) == 3 * (ATTEMPTS + 1)
    assert {passed for passed, *_ in results.values()} == {False}
