"""`selfplay eval`: plays what an output folder does not hold yet, then shows the figures."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from selfplay import parts
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.workspaces import EpisodeContext, sandbox_limits
from selfplay.commands.train import check_model
from selfplay.config import load_config
from selfplay.errors import UsageError
from selfplay.evaluation.evaluator import Evaluator
from selfplay.evaluation.folder import Folder, entries_of, identity_of, policy_identity
from selfplay.evaluation.rates import summarise
from selfplay.evaluation.tasks import find_tasks
from selfplay.orchestrator.build import EngineInputs, build_engine
from selfplay.repositories.prepare import Preparer
from selfplay.sandbox import open_backend
from selfplay.viewing.scores import show_rates


@dataclass(frozen=True)
class EvaluationRequest:
    """What was typed. sources: names of frozen sets, or files of task records. output: None keeps nothing."""

    sources: Sequence[str]
    limit: int = 0
    attempts: int = 4
    greedy: bool = True
    output: Path | None = None


def start_evaluation(
    request: EvaluationRequest, config_file: Path | None, overrides: Sequence[str], *, as_json: bool = False
) -> dict[str, Any]:
    """Play, print tables (or JSON), and return the figures.

    Raises UsageError before anything was started, and when the output folder belongs to another evaluation.
    """
    attempts, greedy, output = request.attempts, request.greedy, request.output
    if not attempts and not greedy:
        raise UsageError(
            "--attempts 0 with --no-greedy plays nothing; "
            "give --attempts of at least 1, or leave --greedy on."
        )
    config = load_config(config_file, overrides)
    tasks = find_tasks(request.sources, request.limit)
    model = check_model(config)
    policy = policy_identity(config.policy.model, model)
    console = Console(stderr=as_json)
    with tempfile.TemporaryDirectory(prefix="selfplay-eval-") as scratch:
        folder = Folder(output or Path(scratch))
        folder.check(identity_of(config, policy, tasks))
        backend, why = open_backend(config.sandbox.type)
        kinds = [f"{attempts} at T = {config.agent.temperature:g}"] * bool(attempts) + ["1 greedy"] * greedy
        console.print(
            f"{len(tasks)} task(s), attempts each: {', '.join(kinds)}; sandboxes: {why}", highlight=False
        )
        limits = sandbox_limits(config)
        preparer = Preparer(backend, config, limits, console)
        environments = preparer.prepare_lines(task.repo for task in tasks)
        engine = build_engine(EngineInputs(config, model, [*environments.values()]))
        chat = ChatFormat(load_tokenizer(model))
        context = EpisodeContext(config, engine, chat, backend, limits)
        evaluator = Evaluator(context, environments, {"run": "eval", "owner": str(os.getpid())})
        try:
            with _progress(console) as progress:
                bar = progress.add_task("attempts", total=None)

                def advance(done: int, total: int) -> None:
                    progress.update(bar, completed=done, total=total)

                with parts.named_faults(config.parts()):
                    results = evaluator.play(tasks, attempts, greedy, folder, policy, advance)
        finally:
            engine.close()
        summary = {"policy": policy, **summarise(results, entries_of(folder), attempts)}
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        notes = [f"Episodes and results are in {output}; the same command continues there."] if output else []
        if left_out := sum(task.repo not in environments for task in tasks):
            notes.append(
                f"{left_out} task(s) were left out, since their repository does not run here (see above)."
            )
        show_rates(summary, console, config.agent.temperature, notes)
    return summary


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)
