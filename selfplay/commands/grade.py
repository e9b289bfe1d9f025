"""`selfplay eval --predictions`: grades the patches of others, on this machine or on those of a cluster."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.local_host import LocalHost
from selfplay.agent.workspaces import EpisodeContext, sandbox_limits
from selfplay.cluster.machines import policy_shape
from selfplay.cluster.placement import place
from selfplay.commands.clusters import model_on_cluster, on_cluster
from selfplay.commands.evaluation_request import EvaluationRequest, progress_bar
from selfplay.commands.policies import check_model
from selfplay.config import Config, load_config
from selfplay.errors import EngineError
from selfplay.evaluation.checked_tasks import checked_tasks
from selfplay.evaluation.checks import Checked, Checker
from selfplay.evaluation.folder import Folder, entries_of, identity_of
from selfplay.evaluation.predictions import (
    NO_PREDICTION,
    Grader,
    Grading,
    grade_predictions,
    read_predictions,
)
from selfplay.evaluation.rates import summarise
from selfplay.evaluation.task_environments import prepare_tasks
from selfplay.evaluation.tasks import Task, find_tasks
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.prepare import Preparer
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.verdicts.test_runs import TestRunner
from selfplay.viewing.scores import left_out_notes, show_rates

if TYPE_CHECKING:
    import torch

    from selfplay.cluster.ray_cluster import Places
    from selfplay.engines.base import Completion, GenerationRequest, Sampling


def start_grading(
    request: EvaluationRequest, config_file: Path | None, overrides: Sequence[str], *, as_json: bool = False
) -> dict[str, Any]:
    """Grade `request.predictions`, print tables (or JSON), and return the figures. Plays nothing.

    Raises UsageError before anything was started, and when the output folder belongs to another evaluation.
    """
    assert request.predictions is not None
    config = load_config(config_file, overrides)
    tasks = find_tasks(request.sources, request.limit)
    predictions = read_predictions(request.predictions)
    console = Console(stderr=as_json)
    with (
        tempfile.TemporaryDirectory(prefix="selfplay-eval-") as scratch,
        _places(request.cluster, config) as places,
        progress_bar(console) as progress,
    ):
        folder = Folder(request.output or Path(scratch))
        folder.check(identity_of(config, predictions.policy, tasks))
        backend, why = open_backend(config.sandbox.type)
        limits = sandbox_limits(config)
        console.print(f"{len(tasks)} task(s), predictions of others; sandboxes: {why}", highlight=False)
        prepared = prepare_tasks(tasks, Preparer(backend, config, limits, console), request.clones)
        bar = progress.add_task("predictions", total=None)
        labels = {"run": "eval", "owner": str(os.getpid())}
        runner = TestRunner(backend, config.validator, limits, labels, folder.secret())

        def describe(text: str) -> None:
            progress.update(bar, description=text)

        def advance(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, description="predictions")

        grading = Grading(Checker(runner, cache_root() / "checks", config.train.workers, describe))
        if places is not None:
            hosts = _Hosts(places, config, backend, runner, request.clones, console)
            grading = Grading(grading.checker, hosts.open, config.train.episodes_in_flight)
        results = grade_predictions(tasks, predictions, config, prepared, grading, folder, advance)
        left_out, not_counted = folder.left_out()
        found = summarise(results, entries_of(folder), predictions.attempts)
    summary = {"policy": predictions.policy, "left_out": left_out, "not_counted": not_counted, **found}
    if as_json:
        print(json.dumps(summary, indent=2))
        return summary
    missing = sum(result.reason == NO_PREDICTION for result in results)
    unknown = len(predictions.patches.keys() - {task.instance_id for task in tasks})
    notes = [f"{missing} task(s) without a prediction count as not repaired."] * bool(missing)
    notes += [f"{unknown} prediction(s) are of no task and were not graded."] * bool(unknown)
    show_rates(summary, console, None, [*notes, *left_out_notes(summary, len(tasks))])
    return summary


@contextmanager
def _places(address: str | None, config: Config) -> Iterator[Places | None]:
    """The cluster's nodes by their shares of the grades; None without a cluster. No server runs on them."""
    without_servers = config.model_copy(update={"engine": config.engine.model_copy(update={"type": "hf"})})
    with on_cluster(address, without_servers, trains=False) as cluster:
        if cluster is None:
            yield None
            return
        shape = policy_shape(without_servers)
        places = cluster.places(place(without_servers, shape, cluster.nodes(), trains=False))
        try:
            yield places
        finally:
            places.close()


@dataclass(frozen=True)
class _Hosts:
    """Opens the episode hosts of a cluster, which only grade here."""

    places: Places
    config: Config
    backend: SandboxBackend
    runner: TestRunner
    clones: Path | None
    console: Console

    def open(self, tasks: Sequence[Task], checked: Checked, _: Grader) -> Grader:
        model = model_on_cluster(check_model(self.config))
        chat, limits = ChatFormat(load_tokenizer(model)), sandbox_limits(self.config)
        context = EpisodeContext(self.config, _NoEngine(), chat, self.backend, limits)
        local = LocalHost(context, checked.environments, self.runner)
        source = checked_tasks(tasks, checked, self.clones)

        def report(line: str) -> None:
            self.console.print(line, markup=False, highlight=False)

        return self.places.open_hosts(self.config, source, model, local, report)


class _NoEngine:
    """Implements `Engine` for hosts that grade and never play."""

    weight_version = 0

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        raise EngineError("predictions are graded, and no policy is loaded")

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        raise EngineError("predictions are graded, and no policy is loaded")

    def close(self) -> None:
        pass
