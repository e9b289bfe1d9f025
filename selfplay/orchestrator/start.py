"""Builds a Game from settings, and runs the loop over it: new, or resumed from its last committed update.

Order matters: everything that can be wrong with what the person typed is found before anything is fetched, built or written.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console

from selfplay.chat import ChatFormat, load_tokenizer, policy_path
from selfplay.config import Config, build_config, load_config, parse_overrides
from selfplay.curriculum.store import Store
from selfplay.engines.base import Engine
from selfplay.environments import Environment, prepare_environment
from selfplay.errors import EnvironmentBuildError, RepositoryError, RunError, UsageError
from selfplay.metrics import JsonlSink
from selfplay.orchestrator.game import Game
from selfplay.orchestrator.recovery import RunFolder, create_run, open_run
from selfplay.prompting import check_prompts
from selfplay.repos import RepositorySpec, absolute_line, cache_root, fetch, read_repository_list
from selfplay.roles import sandbox_limits
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.test_runs import TestRunner
from selfplay.viewing.progress import TrainProgress
from selfplay.viewing.summary import print_summary


def start_training(repos: Path, config_file: Path | None, overrides: Sequence[str]) -> None:
    """`selfplay train --repos`: raises UsageError before anything was started, RunError when the name is taken."""
    config = load_config(config_file, overrides)
    specs = read_repository_list(repos)
    model = _check_model(config)
    backend, why = open_backend(config.sandbox.type)
    run, config = create_run(config, "".join(f"{absolute_line(spec)}\n" for spec in specs), datetime.now())
    console = Console()
    console.print(f"Run [bold]{run.path.name}[/bold] in {run.path}; sandboxes: {why}", highlight=False)
    _play(run, config, specs, backend, model, console)


def resume_training(name: str, root: Path, overrides: Sequence[str]) -> None:
    """`selfplay train --resume`: the run's own settings; only how long and how parallel it runs may change."""
    run = open_run(name, root)
    config = run.config()
    changed = parse_overrides(overrides)
    allowed = {"train.updates", "train.workers", "train.episodes_in_flight", "train.max_machine_failures"}
    if refused := sorted(set(changed) - allowed):
        raise UsageError(f"--set {refused[0]}: a resumed run keeps its settings; only {', '.join(sorted(allowed))} may change.")
    values = config.model_dump()
    for key, value in changed.items():
        section, _, setting = key.partition(".")
        values[section][setting] = value
    config = build_config(values, "--set")
    specs = read_repository_list(run.repositories_file)
    model = _check_model(config)
    backend, why = open_backend(config.sandbox.type)
    console = Console()
    console.print(f"Resuming [bold]{run.path.name}[/bold]; sandboxes: {why}", highlight=False)
    run.config_file.write_text(config.resolved(), encoding="utf-8")
    _play(run, config, specs, backend, model, console)


def _check_model(config: Config) -> str:
    """The policy's folder or id; raises EngineError, naming it, when it cannot be one. Templates are checked here too."""
    check_prompts()
    model = policy_path(config.policy.model)
    ChatFormat(load_tokenizer(model)).check()
    return model


def _play(run: RunFolder, config: Config, specs: list[RepositorySpec], backend: SandboxBackend, model: str, console: Console) -> None:
    from selfplay.orchestrator.loop import TrainLoop

    if swept := backend.sweep():
        console.print(f"Removed what earlier runs left behind: {len(swept)} item(s).")
    with _open_store(run) as store:
        limits = sandbox_limits(config)
        environments = prepare_all(specs, backend, config, limits, console, store)
        committed = store.last_checkpoint()
        run.discard_uncommitted(committed, keep=config.train.keep_checkpoints)
        with TrainProgress(console, config.train.updates, done=store.last_update()) as progress:
            game = build_game(run, config, store, environments, backend, limits, model, committed, progress)
            try:
                asyncio.run(TrainLoop(game).run())
            finally:
                game.engine.close()
                game.sink.close()
        print_summary(store, run.path, console)


@contextmanager
def _open_store(run: RunFolder) -> Iterator[Store]:
    store = Store.open(run.database)
    try:
        yield store
    finally:
        store.close()


def prepare_all(
    specs: Sequence[RepositorySpec], backend: SandboxBackend, config: Config, limits: Limits, console: Console, store: Store | None = None
) -> dict[str, Environment]:
    """Each repository fetched and its environment admitted; those that fail are reported and left out.

    Raises RunError when none is left.
    """
    environments: dict[str, Environment] = {}
    cache = cache_root()
    for spec in specs:
        with console.status(f"{spec.name}: fetching") as status:
            try:
                environment = prepare_environment(fetch(spec, cache), backend, config.environment, limits, cache, status.update)
            except (RepositoryError, EnvironmentBuildError) as error:
                console.print(f"[red]✗[/red] {spec.name}: left out.", highlight=False)
                console.print(str(error), markup=False, highlight=False)
                tail = getattr(error, "log_tail", "")
                if tail:
                    console.print(tail, markup=False, highlight=False, style="dim")
                if store is not None:
                    store.record_environment(spec.name, "", "", "", 0, (), "failed", str(error), tail)
                continue
        environments[spec.name] = environment
        excluded = f", {len(environment.excluded_ids)} unstable left out" if environment.excluded_ids else ""
        licence = f", {environment.licence}" if environment.licence else ""
        console.print(
            f"[green]✓[/green] {spec.name}: {len(environment.baseline.passed)} tests pass{excluded}, "
            f"{len(environment.targets)} covered functions{licence}",
            highlight=False,
        )
        if store is not None:
            store.record_environment(
                spec.name,
                environment.base_commit,
                environment.key,
                environment.licence,
                len(environment.baseline.passed),
                sorted(environment.excluded_ids),
                "ready",
            )
    if not environments:
        raise RunError(
            "no repository's tests run here, so there is nothing to play on. The reasons stand above; mend one, or list another."
        )
    return environments


def build_game(
    run: RunFolder,
    config: Config,
    store: Store,
    environments: dict[str, Environment],
    backend: SandboxBackend,
    limits: Limits,
    model: str,
    committed: str,
    progress: TrainProgress,
) -> Game:
    from selfplay.training.torch_trainer import TorchTrainer  # torch takes seconds to load: after all that can be refused

    labels = {"run": run.path.name, "owner": str(os.getpid())}
    _check_targets(config, environments)
    progress.phase("loading the policy")
    trainer = TorchTrainer(model, config.trainer, config.agent.context_tokens, config.seed)
    if committed:
        trainer.load(run.checkpoints / committed)
    chat = ChatFormat(load_tokenizer(model))
    chat.check()
    engine = build_engine(config, model, environments)
    if committed:
        engine.load_weights(trainer.export_weights(), trainer.weight_version)
    runner = TestRunner(backend, config.validator, limits, labels)
    sink = JsonlSink(run.metrics)
    return Game(config, run, store, environments, backend, limits, labels, engine, chat, trainer, runner, sink, progress)


def build_engine(config: Config, model: str, environments: dict[str, Environment]) -> Engine:
    """The engine that `engine.type` names; a scripted one plays the teacher, which knows the original trees."""
    if config.engine.type == "scripted":
        from selfplay.engines.scripted_engine import ScriptedEngine
        from selfplay.teacher import TeacherPlayer

        return ScriptedEngine(TeacherPlayer([environment.tree for environment in environments.values()]), load_tokenizer(model))
    from selfplay.engines.hf_engine import HFEngine

    return HFEngine(model, config.engine.max_batch, config.agent.context_tokens)


def _check_targets(config: Config, environments: dict[str, Environment]) -> None:
    """Leave out repositories without a usable target where injectors are given one. Raises RunError when none is left."""
    from selfplay.orchestrator.loop import targets_of

    if "target" not in config.injector.given:
        return
    for name, environment in list(environments.items()):
        if not targets_of(environment, config.injector):
            del environments[name]
    if not environments:
        raise RunError(
            f"injector.given has 'target', but no repository has a covered function of at most {config.injector.max_target_lines} lines "
            f"in whose test file {config.injector.min_passing_tests[1]} tests pass. Raise injector.max_target_lines, or list others."
        )
