"""Builds what a run needs from its settings: trainer, engine, hosts, and the context that holds them all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfplay import parts
from selfplay.agent.chat import load_tokenizer, open_chat
from selfplay.agent.hosts import EpisodeHost
from selfplay.agent.local_host import LocalHost
from selfplay.agent.workspaces import EpisodeContext
from selfplay.algorithm.staleness import async_updates
from selfplay.config import Config
from selfplay.curriculum.store import Store
from selfplay.engines.base import Engine
from selfplay.engines.choice import choose_engine
from selfplay.engines.precision import choose_dtype, stored_parameters
from selfplay.errors import PrerequisiteError, RunError
from selfplay.evaluation.evaluator import Evaluator
from selfplay.evaluation.run_evaluations import RunEvaluations
from selfplay.evaluation.tasks import Task
from selfplay.metrics import open_sinks
from selfplay.orchestrator.context import RunContext
from selfplay.orchestrator.group_plans import targets_of
from selfplay.orchestrator.histories import check_histories
from selfplay.orchestrator.places import Places
from selfplay.orchestrator.progress import Progress
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.prepare import ListedRepositories
from selfplay.runtime.cores import usable_cores
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.training.base import ExportedWeights, Trainer
from selfplay.verdicts.test_runs import TestRunner

if TYPE_CHECKING:
    from selfplay.engines.vllm_engine import WeightSync

Transfer = Literal["files", "nccl", "ipc", "gloo"]  # how new weights travel, as `engine.sync` says


@dataclass(frozen=True)
class Evaluated:
    """What a run evaluates on. environments: of the tasks, by repository line. left_out: reasons, by id."""

    tasks: Sequence[Task] = ()
    environments: Mapping[str, Environment] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedRun:
    """What exists before the models are loaded. environments: by repository name. model: the policy's
    folder or id.
    """

    run: RunFolder
    config: Config
    store: Store
    environments: dict[str, Environment]
    backend: SandboxBackend
    limits: Limits
    labels: Mapping[str, str]
    model: str
    progress: Progress
    evaluated: Evaluated = Evaluated()


def build_context(prepared: PreparedRun, places: Places | None = None) -> RunContext:
    """Load the policy where the last committed update left it. places: what runs on other machines; None:
    nothing.

    Raises EngineError, TrainerError, PrerequisiteError, or RunError if no repository can be played on.
    """
    config, run, progress = prepared.config, prepared.run, prepared.progress
    check_targets(config, prepared.environments, progress.message)
    check_histories(config, prepared.environments, progress.message)
    progress.phase("loading the policy")
    committed = prepared.store.last_checkpoint()
    with (
        ExitStack() as started
    ):  # after a failure: servers on other nodes would live on beside those of the next try
        trainer = build_trainer(TrainerInputs(config, prepared.model, run.path / "logs", places))
        started.callback(trainer.close)
        if committed:
            trainer.load(run.checkpoints / committed)
        chat = open_chat(prepared.model, config.policy, config.agent)
        chat.check()
        known = [*prepared.environments.values(), *prepared.evaluated.environments.values()]
        servers = ServerPlan(run.path / "logs", progress.message, places, trainer, run.newest_checkpoint)
        engine = build_engine(EngineInputs(config, prepared.model, known, servers))
        started.callback(engine.close)
        if committed:
            engine.load_weights(ExportedWeights(trainer), trainer.weight_version)
        episodes = EpisodeContext(config, engine, chat, prepared.backend, prepared.limits)
        runner = TestRunner(
            prepared.backend, config.validator, prepared.limits, prepared.labels, run.secret()
        )
        local = LocalHost(episodes, prepared.environments, runner)
        host: EpisodeHost = local
        if places is not None:
            lines = run.repositories_file.read_text(encoding="utf-8")
            listed = ListedRepositories(lines)
            host = places.open_hosts(config, listed, prepared.model, local, progress.message)
        started.pop_all()
    return RunContext(
        run=run,
        store=prepared.store,
        environments=prepared.environments,
        episodes=episodes,
        host=host,
        trainer=trainer,
        sink=open_sinks(config.metrics.sinks, run.path),
        progress=progress,
        labels=prepared.labels,
        evaluations=_evaluations(prepared, episodes),
    )


def _evaluations(prepared: PreparedRun, episodes: EpisodeContext) -> RunEvaluations | None:
    if not prepared.evaluated.tasks:
        return None
    evaluated = prepared.evaluated
    checks = cache_root() / "checks"
    evaluator = Evaluator(episodes, evaluated.environments, prepared.labels, evaluated.left_out, checks)
    return RunEvaluations(
        prepared.run.evaluations, prepared.config.evaluation, prepared.evaluated.tasks, evaluator
    )


@dataclass(frozen=True)
class TrainerInputs:
    """What a trainer is made from. logs: a folder for its processes. places: where they run; None: on this
    machine.
    """

    config: Config
    model: str
    logs: Path
    places: Places | None = None


def build_trainer(inputs: TrainerInputs) -> Trainer:
    """The trainer that `trainer.type` names. Raises PartError if one's own fails."""
    trainer: Trainer = parts.call("trainer.type", inputs.config.trainer.type, inputs)
    return trainer


def torch_trainer(inputs: TrainerInputs) -> Trainer:
    from selfplay.training.torch_trainer import (
        TorchTrainer,  # loads in seconds: after all that can be refused
    )

    config = inputs.config
    trainer = TorchTrainer(inputs.model, config.trainer, config.agent.context_tokens, config.seed)
    if async_updates(config.train.max_async_updates, config.max_lag):
        # Engine and test runs go on during a step. Threads that wait for a busy core cost far more than they
        # give.
        trainer.threads = max(1, trainer.threads // 2)
    return trainer


def deepspeed_trainer(inputs: TrainerInputs) -> Trainer:
    from selfplay.training.deepspeed_trainer import DeepSpeedTrainer
    from selfplay.training.ranks.controller import RankLaunch

    config, places = inputs.config, inputs.places
    launch = RankLaunch(inputs.logs, places.links if places else None)
    return DeepSpeedTrainer(inputs.model, config.trainer, config.agent.context_tokens, config.seed, launch)


@dataclass(frozen=True)
class ServerPlan:
    """How rollout servers run.

    logs: the folder of their logs. report: hears of servers that are lost and replaced. places: where they
    run. trainer, newest_checkpoint: where new weights come from; None if they never change.
    """

    logs: Path | None = None
    report: Callable[[str], None] = lambda _: None
    places: Places | None = None
    trainer: Trainer | None = None
    newest_checkpoint: Callable[[], Path | None] = lambda: None


@dataclass(frozen=True)
class EngineInputs:
    """What an engine is made from. environments: all that it may play on; the scripted engine reads their
    trees.
    """

    config: Config
    model: str
    environments: Sequence[Environment]
    servers: ServerPlan = ServerPlan()


def build_engine(inputs: EngineInputs) -> Engine:
    """The engine that `engine.type` names. Raises PartError if one's own fails."""
    engine: Engine = parts.call("engine.type", inputs.config.engine.type, inputs)
    return engine


def scripted_engine(inputs: EngineInputs) -> Engine:
    """The teacher plays both roles."""
    from selfplay.engines.scripted_engine import ScriptedEngine
    from selfplay.teacher.player import TeacherPlayer

    chat = open_chat(inputs.model, inputs.config.policy, inputs.config.agent)
    teacher = TeacherPlayer([environment.tree for environment in inputs.environments], chat=chat)
    return ScriptedEngine(teacher, load_tokenizer(inputs.model))


def auto_engine(inputs: EngineInputs) -> Engine:
    """The engine that `choose_engine` takes for the model."""
    chosen, _ = choose_engine(inputs.config.engine, inputs.model)
    return build_engine(replace(inputs, config=inputs.config.model_copy(update={"engine": chosen})))


def hf_engine(inputs: EngineInputs) -> Engine:
    from selfplay.engines.hf_engine import HFEngine

    config = inputs.config
    # While a trainer steps beside it, each takes half of the cores.
    is_beside_trainer = async_updates(config.train.max_async_updates, config.max_lag) > 0
    return HFEngine(
        inputs.model,
        config.engine.max_batch,
        config.agent.context_tokens,
        config.engine.dtype,
        cache_mb=config.engine.cache_mb,
        threads=max(1, usable_cores() // 2) if is_beside_trainer else 0,
    )


def vllm_engine(inputs: EngineInputs) -> Engine:
    from selfplay.engines.vllm_engine import VllmEngine
    from selfplay.engines.vllm_launch import Launch, on_gpu
    from selfplay.engines.vllm_servers import OwnServer, ServerSet

    config, servers = inputs.config, inputs.servers
    settings, places = config.engine, servers.places
    on_gpus = places.on_gpus if places else on_gpu()
    transfer: Transfer = settings.sync if servers.trainer else "files"
    if transfer != "files" and on_gpus != (transfer != "gloo"):
        raise PrerequisiteError(
            f"engine.sync = {transfer!r} is for {'CPUs' if transfer == 'gloo' else 'GPUs'}, "
            f"and the servers run on {'GPUs' if on_gpus else 'CPUs'} here. "
            f"Set engine.sync = {'nccl' if on_gpus else 'gloo'!r}, or 'files'."
        )
    # A model of unknown size comes by its name, so it is a large one.
    dtype = choose_dtype(settings.dtype, stored_parameters(inputs.model) or sys.maxsize, on_gpus)
    launch = Launch(
        model=inputs.model,
        context_tokens=config.agent.context_tokens,
        max_batch=settings.max_batch,
        cache_mb=settings.cache_mb,
        gpu_memory=settings.gpu_memory,
        dtype=dtype,
        options=settings.options,
        start_timeout_s=settings.start_timeout_s,
        logs=servers.logs,
        threads=max(1, usable_cores() // 2 // settings.servers),
        transfer="" if transfer == "files" else transfer,
    )
    sync = _weight_sync(inputs, dtype, transfer)
    return VllmEngine(
        launch,
        sync,
        ServerSet(settings.servers, settings.urls, places.open_server if places else OwnServer),
        request_timeout_s=settings.request_timeout_s,
        report=servers.report,
    )


def _weight_sync(inputs: EngineInputs, dtype: str, transfer: Transfer) -> WeightSync:
    import torch

    from selfplay.weights.checkpoint_names import CheckpointNames
    from selfplay.weights.weight_sync import FileWeightSync, NativeWeightSync

    servers, timeout_s = inputs.servers, inputs.config.engine.sync_timeout_s
    if transfer == "files" or servers.trainer is None:
        names = CheckpointNames.of_folder(inputs.model)
        return FileWeightSync(inputs.model, getattr(torch, dtype), timeout_s, names=names)
    return NativeWeightSync(
        inputs.model, getattr(torch, dtype), transfer, servers.trainer, servers.newest_checkpoint, timeout_s
    )


def check_targets(
    config: Config, environments: dict[str, Environment], report: Callable[[str], None]
) -> None:
    """Leave out, and report, repositories without a usable target if injectors get one.

    Raises RunError when none is left.
    """
    if "target" not in config.injector.help or not config.train.injector_groups:
        return
    injector = config.injector
    wanted = (
        f"a covered function of at most {injector.max_target_lines} lines "
        f"in whose test file {injector.min_passing_tests[1]} tests pass"
    )
    for name, environment in list(environments.items()):
        if not targets_of(environment, injector):
            del environments[name]
            report(f"{name} is left out of the game: it lacks {wanted} (injector.max_target_lines)")
    if not environments:
        raise RunError(
            f"injector.help has 'target', but no repository has {wanted}. "
            "Raise injector.max_target_lines, or list others."
        )
