"""`selfplay eval`: plays what an output folder does not hold yet, then shows the figures."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from selfplay import parts
from selfplay.agent.chat import open_chat
from selfplay.agent.hosts import EpisodeHost
from selfplay.agent.local_host import LocalHost
from selfplay.agent.workspaces import EpisodeContext, sandbox_limits
from selfplay.commands.clusters import Done, model_on_cluster, on_cluster, play_on_what_is_left
from selfplay.commands.evaluation_request import EvaluationRequest, progress_bar
from selfplay.commands.policies import check_model, fitted_context, with_engine
from selfplay.config import Config, load_config
from selfplay.errors import UsageError
from selfplay.evaluation.checked_tasks import checked_tasks
from selfplay.evaluation.checks import Checked
from selfplay.evaluation.evaluator import Evaluator
from selfplay.evaluation.folder import AttemptResult, Folder, entries_of, identity_of, policy_identity
from selfplay.evaluation.rates import summarise
from selfplay.evaluation.task_environments import Prepared, prepare_tasks
from selfplay.evaluation.tasks import Task, find_tasks
from selfplay.orchestrator.build import EngineInputs, ServerPlan, build_engine
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.prepare import Preparer
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.viewing.scores import conditions_note, left_out_notes, show_rates

if TYPE_CHECKING:
    from selfplay.cluster.ray_cluster import Cluster, Places


def start_evaluation(
    request: EvaluationRequest, config_file: Path | None, overrides: Sequence[str], *, as_json: bool = False
) -> dict[str, Any]:
    """Play, print tables (or JSON), and return the figures.

    Raises UsageError before anything was started, and when the output folder belongs to another evaluation.
    """
    attempts, greedy = request.attempts, request.greedy
    if not attempts and not greedy:
        raise UsageError(
            "--attempts 0 with --no-greedy plays nothing; "
            "give --attempts of at least 1, or leave --greedy on."
        )
    if any(override.startswith("agent.temperature=") for override in overrides):
        raise UsageError(
            "--set agent.temperature is training's; `selfplay eval` samples at evaluation.temperature. "
            "Write --set evaluation.temperature=… instead."
        )
    config = load_config(config_file, overrides)
    tasks = find_tasks(request.sources, request.limit)
    model = check_model(config, trains=False)
    config = fitted_context(config, model)
    console = Console(stderr=as_json)
    config = with_engine(config, model, console)
    policy = policy_identity(config.policy.model, model)
    with (
        tempfile.TemporaryDirectory(prefix="selfplay-eval-") as scratch,
        on_cluster(request.cluster, config, trains=False) as cluster,
    ):
        folder = Folder((request.output or Path(scratch)).absolute())
        folder.check(identity_of(config, policy, tasks))
        backend, why = open_backend(config.sandbox.type)
        sampled = f"{attempts} at T = {config.evaluation.temperature:g}"
        kinds = [sampled] * bool(attempts) + ["1 greedy"] * greedy
        console.print(
            f"{len(tasks)} task(s), attempts each: {', '.join(kinds)}; sandboxes: {why}", highlight=False
        )
        results = _play_on(
            cluster, request, _Evaluation(config, tasks, model, policy, folder, backend, console)
        )
        left_out, not_counted = folder.left_out()
        found = summarise(results, entries_of(folder), attempts)
        summary = {
            "policy": policy,
            "conditions": conditions_of(config),
            "left_out": left_out,
            "not_counted": not_counted,
            **found,
        }
    if as_json:
        print(json.dumps(summary, indent=2))
        return summary
    notes = [conditions_note(summary), *left_out_notes(summary, len(tasks))]
    if request.output:
        notes.append(
            f"Episodes, results.jsonl and preds.json are in {request.output}; "
            "the same command continues there."
        )
    show_rates(summary, console, config.evaluation.temperature, notes)
    return summary


def conditions_of(config: Config) -> dict[str, float]:
    """Under which conditions attempts are played; a rate means little without them."""
    return {
        "temperature": config.evaluation.temperature,
        "top_p": config.evaluation.top_p,
        "max_turns": config.agent.max_turns,
        "context_tokens": config.agent.context_tokens,
    }


@dataclass(frozen=True)
class _Evaluation:
    """What an evaluation is made of before its environments are there. model: the policy's folder or id."""

    config: Config
    tasks: Sequence[Task]
    model: str
    policy: Mapping[str, Any]
    folder: Folder
    backend: SandboxBackend
    console: Console


def _play_on(cluster: Cluster | None, request: EvaluationRequest, wanted: _Evaluation) -> list[AttemptResult]:
    """Prepare the tasks' repositories, and play what the folder does not hold.

    On a cluster, the loss of the last rollout server costs the attempts in flight.
    """
    preparer = Preparer(wanted.backend, wanted.config, sandbox_limits(wanted.config), wanted.console)
    prepared = prepare_tasks(wanted.tasks, preparer, request.clones)
    if cluster is None:
        return _play(request, wanted, prepared)
    wanted = replace(wanted, model=model_on_cluster(wanted.model))
    return play_on_what_is_left(
        cluster,
        wanted.config,
        lambda config, places: _play(request, replace(wanted, config=config), prepared, places),
        Done(lambda: len(wanted.folder.results()), lambda done: f"{done} finished attempt(s)"),
        wanted.console,
        trains=False,
    )


def _play(
    request: EvaluationRequest, wanted: _Evaluation, prepared: Prepared, places: Places | None = None
) -> list[AttemptResult]:
    """Load the policy and play. places: what runs on other machines; None: nothing."""
    config, console, model = wanted.config, wanted.console, wanted.model

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    servers = ServerPlan(report=say, places=places)
    engine = build_engine(EngineInputs(config, model, [*prepared.environments.values()], servers))
    try:
        with progress_bar(console) as progress, parts.named_faults(config.parts()):
            bar = progress.add_task("attempts", total=None)

            def advance(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total, description="attempts")

            def host_of(tasks: Sequence[Task], checked: Checked, local: LocalHost) -> EpisodeHost:
                if places is None:
                    return local
                source = checked_tasks(tasks, checked, request.clones)
                return places.open_hosts(config, source, model, local, say)

            chat = open_chat(model, config.policy, config.agent)
            evaluator = Evaluator(
                EpisodeContext(config, engine, chat, wanted.backend, sandbox_limits(config)),
                prepared.environments,
                {"run": "eval", "owner": str(os.getpid())},
                prepared.left_out,
                cache_root() / "checks",
                lambda text: progress.update(bar, description=text),
                host_of,
            )
            return evaluator.play(
                wanted.tasks, request.attempts, request.greedy, wanted.folder, wanted.policy, advance
            )
    finally:
        engine.close()
