"""Builds a Game from settings, and runs the loop over it: new, or resumed from its last committed update.

Order matters: everything that can be wrong with what the person typed is found before anything is fetched, built or written.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from selfplay.agent.chat import ChatFormat, load_tokenizer, policy_path
from selfplay.agent.prompting import check_prompts
from selfplay.agent.solver import spec_tokens
from selfplay.agent.workspaces import sandbox_limits
from selfplay.algorithm.staleness import async_updates
from selfplay.cluster.machines import policy_shape
from selfplay.cluster.placement import fewer, place
from selfplay.config import Config, build_config, load_config, parse_overrides
from selfplay.curriculum.store import Store
from selfplay.engines.base import Engine
from selfplay.engines.vllm_servers import check_installed
from selfplay.errors import (
    EnvironmentBuildError,
    PrerequisiteError,
    RepositoryError,
    RunError,
    ServerLost,
    TrainerError,
    UsageError,
)
from selfplay.evaluation.comparison import summarise
from selfplay.evaluation.evaluator import Evaluator
from selfplay.evaluation.folder import Folder, entries_of, identity_of, policy_identity
from selfplay.evaluation.run_evaluations import RunEvaluations
from selfplay.evaluation.tasks import Task, find_tasks, read_tasks, write_tasks
from selfplay.metrics import JsonlSink
from selfplay.orchestrator.context import Game
from selfplay.orchestrator.given_bugs import put_given_bugs, read_given_bugs
from selfplay.orchestrator.hosts import EpisodeHost, LocalHost
from selfplay.orchestrator.run_folder import RunFolder, create_run, open_run
from selfplay.repositories.build import prepare_environment
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.environment import Environment
from selfplay.repositories.fetching import fetch
from selfplay.repositories.specs import RepositorySpec, absolute_line, parse_spec, read_repository_list
from selfplay.runtime.cores import usable_cores
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.sandbox.prewarmed import prewarmed_sandboxes
from selfplay.training.base import ExportedWeights, Trainer, check_trainer
from selfplay.verdicts.test_runs import TestRunner
from selfplay.viewing.progress import TrainProgress
from selfplay.viewing.scores import show_rates
from selfplay.viewing.summary import print_summary

if TYPE_CHECKING:
    from selfplay.cluster.ray_cluster import Cluster, Places


def start_training(
    repos: Path, config_file: Path | None, overrides: Sequence[str], address: str | None = None
) -> None:
    """`selfplay train --repos`: raises UsageError before anything was started, RunError when the name is taken.

    address: of a Ray cluster (`--cluster`), on which the run is placed.
    """
    config = load_config(config_file, overrides)
    specs = read_repository_list(repos)
    given = _check_given_bugs(config, specs)
    tasks = find_tasks(config.evaluation.tasks, config.evaluation.limit)
    check_trainer(config.trainer)
    model = _check_model(config)
    backend, why = open_backend(config.sandbox.type)
    with _on_cluster(address, config) as cluster:
        run, config = create_run(
            config, "".join(f"{absolute_line(spec)}\n" for spec in specs), datetime.now(), given
        )
        if tasks:
            write_tasks(tasks, run.evaluation_tasks)
        console = Console()
        console.print(f"Run [bold]{run.path.name}[/bold] in {run.path}; sandboxes: {why}", highlight=False)
        _play_on(cluster, run, config, specs, backend, model, console)


def start_evaluation(
    sources: Sequence[str],
    config_file: Path | None,
    overrides: Sequence[str],
    *,
    limit: int = 0,
    attempts: int = 4,
    greedy: bool = True,
    output: Path | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """`selfplay eval`: plays what `output` does not hold yet, prints tables (or JSON) and returns the figures.

    Raises UsageError before anything was started, and when `output` belongs to another evaluation.
    """
    if not attempts and not greedy:
        raise UsageError(
            "--attempts 0 with --no-greedy plays nothing; give --attempts of at least 1, or leave --greedy on."
        )
    config = load_config(config_file, overrides)
    tasks = find_tasks(sources, limit)
    model = _check_model(config)
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
        environments = prepare_tasks(tasks, backend, config, limits, console)
        engine = build_engine(config, model, environments.values())
        chat = ChatFormat(load_tokenizer(model))
        evaluator = Evaluator(
            config, engine, chat, backend, environments, limits, {"run": "eval", "owner": str(os.getpid())}
        )
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        try:
            with Progress(*columns, console=console) as progress:
                bar = progress.add_task("attempts", total=None)
                results = evaluator.play(
                    tasks,
                    attempts,
                    greedy,
                    folder,
                    policy,
                    lambda done, total: progress.update(bar, completed=done, total=total),
                )
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


def resume_training(name: str, root: Path, overrides: Sequence[str], address: str | None = None) -> None:
    """`selfplay train --resume`: the run's own settings; only how long and how parallel it runs may change."""
    run = open_run(name, root)
    config = run.config()
    changed = parse_overrides(overrides)
    allowed = {
        "train.updates",
        "train.workers",
        "train.episodes_in_flight",
        "train.max_opening",
        "train.max_machine_failures",
        "trainer.ranks",
        "engine.servers",
    }
    if refused := sorted(set(changed) - allowed):
        raise UsageError(
            f"--set {refused[0]}: a resumed run keeps its settings; only {', '.join(sorted(allowed))} may change."
        )
    values = config.model_dump()
    for key, value in changed.items():
        section, _, setting = key.partition(".")
        values[section][setting] = value
    config = build_config(values, "--set")
    specs = read_repository_list(run.repositories_file)
    check_trainer(config.trainer)
    model = _check_model(config)
    backend, why = open_backend(config.sandbox.type)
    with _on_cluster(address, config) as cluster:
        console = Console()
        console.print(f"Resuming [bold]{run.path.name}[/bold]; sandboxes: {why}", highlight=False)
        run.write_config(config)
        _play_on(cluster, run, config, specs, backend, model, console)


@contextmanager
def _on_cluster(address: str | None, config: Config) -> Iterator[Cluster | None]:
    """Connected, and sure that the run fits there; None without an address. Raises PrerequisiteError or PlacementError."""
    if address is None:
        yield None
        return
    from selfplay.cluster.ray_cluster import Cluster

    cluster = Cluster(address)
    try:
        place(config, policy_shape(config), cluster.nodes())
        yield cluster
    finally:
        cluster.close()


def _play_on(
    cluster: Cluster | None,
    run: RunFolder,
    config: Config,
    specs: list[RepositorySpec],
    backend: SandboxBackend,
    model: str,
    console: Console,
) -> None:
    """Play to the end. On a cluster a lost trainer rank, with its node or alone, or the loss of the last rollout server costs the update
    that was running: what is left of the cluster is planned for anew, and the run goes on from its last committed update."""
    if cluster is None:
        _play(run, config, specs, backend, model, console)
        return
    # Actors work in a folder of Ray's: what is said relative to this process' own means nothing to them.
    run = RunFolder(run.path.absolute())
    model = str(Path(model).absolute()) if Path(model).exists() else model
    failures, reached = 0, -1
    while True:
        fitting, placement = fewer(config, policy_shape(config), cluster.nodes())
        places = cluster.places(placement)
        try:
            _play(run, fitting, specs, backend, model, console, places)
            return
        except (TrainerError, ServerLost) as error:
            with _open_store(run) as store:
                done = store.last_update()
            failures, reached = failures + 1 if done == reached else 1, done
            if failures > config.cluster.restarts:
                raise
            console.print(
                f"{error}\nGoing on from update {done} on what is left of the cluster.",
                markup=False,
                highlight=False,
            )
        finally:
            places.close()


def _check_given_bugs(config: Config, specs: Sequence[RepositorySpec]) -> str:
    """The records of `train.bugs` as text, "" without any. Raises UsageError for those that cannot be given, or when nobody makes bugs."""
    if config.train.bugs:
        path = Path(config.train.bugs)
        given = {
            (parse_spec(task.repo).name, task.patch): task.instance_id
            for task in read_given_bugs(path, {spec.name for spec in specs})
        }
        evaluated = {
            (parse_spec(task.repo).name, task.patch)
            for task in find_tasks(config.evaluation.tasks, config.evaluation.limit)
        }
        if both := sorted(given[bug] for bug in given.keys() & evaluated):
            raise UsageError(
                f"train.bugs and evaluation.tasks share {len(both)} bug(s), {both[0]!r} for one: "
                "a policy is not evaluated on what it trains on. Take them out of one of the two."
            )
        return path.read_text(encoding="utf-8")
    if not config.train.injector_groups:
        raise UsageError(
            "train.injector_groups = 0 makes no bugs, and train.bugs names no file of them: there is nothing to solve. "
            "Set train.injector_groups to 1 or more, or train.bugs to a file that `selfplay inspect-bugs --order 1 --tasks FILE` wrote."
        )
    return ""


def _put_given_bugs(
    run: RunFolder,
    config: Config,
    store: Store,
    environments: dict[str, Environment],
    model: str,
    console: Console,
) -> None:
    """Those of the run folder, into the curriculum of a new run (or of one that was killed before this)."""
    if not run.given_bugs_file.is_file():
        return
    chat = ChatFormat(load_tokenizer(model))
    put_given_bugs(
        read_given_bugs(
            run.given_bugs_file, {spec.name for spec in read_repository_list(run.repositories_file)}
        ),
        store,
        environments,
        lambda bug: spec_tokens(chat, bug) > config.solver.max_spec_tokens,
        lambda text: console.print(text, markup=False, highlight=False),
    )


def _check_model(config: Config) -> str:
    """The policy's folder or id; raises EngineError, naming it, when it cannot be one. Templates and vLLM are looked for here too."""
    check_prompts()
    if config.engine.type == "vllm" and not config.engine.urls:
        check_installed()
    model = policy_path(config.policy.model)
    ChatFormat(load_tokenizer(model)).check()
    return model


def _play(
    run: RunFolder,
    config: Config,
    specs: list[RepositorySpec],
    backend: SandboxBackend,
    model: str,
    console: Console,
    places: Places | None = None,
) -> None:
    """places: what runs on other machines, None for nothing."""
    from selfplay.orchestrator.loop import TrainLoop

    if swept := backend.sweep():
        console.print(f"Removed what earlier runs left behind: {len(swept)} item(s).")
    with _open_store(run) as store, prewarmed_sandboxes(backend, config.sandbox.prewarmed) as backend:
        limits = sandbox_limits(config)
        environments = prepare_all(specs, backend, config, limits, console, store)
        _put_given_bugs(run, config, store, environments, model, console)
        tasks, evaluated = _prepare_evaluation(run, config, specs, environments, backend, limits, console)
        committed = store.last_checkpoint()
        run.discard_uncommitted(committed, keep=config.train.keep_checkpoints)
        run.mend_metrics(
            [row for row in store.updates() if row.committed_at],
            lambda update: store.state(f"evaluated/{update}") is not None,
        )
        with TrainProgress(console, config.train.updates, done=store.last_update()) as progress:
            game = build_game(
                run,
                config,
                store,
                environments,
                backend,
                limits,
                model,
                committed,
                progress,
                tasks,
                evaluated,
                places,
            )
            try:
                asyncio.run(TrainLoop(game).run())
            finally:
                game.engine.close()
                game.trainer.close()
                game.sink.close()
        print_summary(store, run.path, console)


def _prepare_evaluation(
    run: RunFolder,
    config: Config,
    specs: Sequence[RepositorySpec],
    environments: Mapping[str, Environment],
    backend: SandboxBackend,
    limits: Limits,
    console: Console,
) -> tuple[list[Task], dict[str, Environment]]:
    """The run's own copy of its evaluation tasks, and their environments by repository line: the run's, and those it never plays on."""
    if not config.evaluation.tasks:
        return [], {}
    if not run.evaluation_tasks.is_file():
        write_tasks(find_tasks(config.evaluation.tasks, config.evaluation.limit), run.evaluation_tasks)
    tasks = read_tasks(run.evaluation_tasks)
    known = {absolute_line(spec): environments[spec.name] for spec in specs if spec.name in environments}
    return tasks, prepare_tasks(tasks, backend, config, limits, console, known)


def prepare_tasks(
    tasks: Sequence[Task],
    backend: SandboxBackend,
    config: Config,
    limits: Limits,
    console: Console,
    known: Mapping[str, Environment] = MappingProxyType({}),
) -> dict[str, Environment]:
    """The environments of all tasks, by repository line; `known` are not prepared again. Raises RunError when there is none."""
    environments: dict[str, Environment] = {}
    for line in dict.fromkeys(task.repo for task in tasks):
        spec = parse_spec(line)
        found = known.get(absolute_line(spec)) or _prepare(spec, backend, config, limits, console)
        if found is not None:
            environments[line] = found
    if not environments:
        raise RunError(
            "none of the tasks' repositories runs here, so there is nothing to evaluate on. The reasons stand above."
        )
    return environments


@contextmanager
def _open_store(run: RunFolder) -> Iterator[Store]:
    store = Store.open(run.database)
    try:
        yield store
    finally:
        store.close()


def prepare_all(
    specs: Sequence[RepositorySpec],
    backend: SandboxBackend,
    config: Config,
    limits: Limits,
    console: Console,
    store: Store | None = None,
) -> dict[str, Environment]:
    """Each repository fetched and its environment admitted; those that fail are reported and left out.

    Raises RunError when none is left.
    """
    environments: dict[str, Environment] = {}
    for spec in specs:
        environment = _prepare(spec, backend, config, limits, console, store)
        if environment is not None:
            environments[spec.name] = environment
    if not environments:
        raise RunError(
            "no repository's tests run here, so there is nothing to play on. The reasons stand above; mend one, or list another."
        )
    return environments


def _prepare(
    spec: RepositorySpec,
    backend: SandboxBackend,
    config: Config,
    limits: Limits,
    console: Console,
    store: Store | None = None,
) -> Environment | None:
    """The repository's environment, None where it cannot be had; either is told, and recorded in `store`."""
    cache = cache_root()
    with console.status(f"{spec.name}: fetching") as status:
        try:
            environment = prepare_environment(
                fetch(spec, cache), backend, config.environment, limits, cache, status.update
            )
        except (RepositoryError, EnvironmentBuildError) as error:
            if store is not None and any(group.repository == spec.name for group in store.groups()):
                raise RunError(
                    f"this run has played on {spec.name}, which cannot be had now: {error}\nMend that, then resume."
                ) from error
            console.print(f"[red]✗[/red] {spec.name}: left out.", highlight=False)
            console.print(str(error), markup=False, highlight=False)
            tail = getattr(error, "log_tail", "")
            if tail:
                console.print(tail, markup=False, highlight=False, style="dim")
            if store is not None:
                store.record_environment(spec.name, "", "", "", 0, (), "failed", str(error), tail)
            return None
    excluded = f", {len(environment.excluded_ids)} unstable left out" if environment.excluded_ids else ""
    licence = f", {environment.licence}" if environment.licence else ""
    console.print(
        f"[green]✓[/green] {spec.name}: {len(environment.baseline.passed)} tests pass{excluded}, "
        f"{len(environment.targets)} covered functions{licence}",
        highlight=False,
    )
    if environment.command and "target" in config.injector.help:
        told = "pytest does not run its tests, so it has no targets: no injector plays on it while injector.help names 'target'"
        console.print(f"  {told}", markup=False, highlight=False)
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
    return environment


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
    tasks: Sequence[Task] = (),
    evaluated: Mapping[str, Environment] = MappingProxyType({}),
    places: Places | None = None,
) -> Game:
    """tasks, evaluated: what the run evaluates on, and the environments of these tasks by repository line. places: as `_play`."""
    labels = {"run": run.path.name, "owner": str(os.getpid())}
    check_targets(config, environments, progress.message)
    progress.phase("loading the policy")
    trainer = build_trainer(config, model, run.path / "logs", places)
    engine: Engine | None = None
    try:
        if committed:
            trainer.load(run.checkpoints / committed)
        chat = ChatFormat(load_tokenizer(model))
        chat.check()
        known = [*environments.values(), *evaluated.values()]
        engine = build_engine(
            config,
            model,
            known,
            run.path / "logs",
            progress.message,
            places,
            (trainer, run.newest_checkpoint),
        )
        if committed:
            engine.load_weights(ExportedWeights(trainer), trainer.weight_version)
        runner = TestRunner(backend, config.validator, limits, labels)
        host: EpisodeHost | None = None
        if places is not None:
            local = LocalHost(config, environments, engine, chat, backend, limits, runner)
            lines = run.repositories_file.read_text(encoding="utf-8")
            host = places.open_hosts(config, lines, model, local, progress.message)
    except BaseException:
        if engine is not None:
            engine.close()  # servers on other nodes would live beside those of the next try
        trainer.close()
        raise
    sink = JsonlSink(run.metrics)
    evaluations = None
    if tasks:
        evaluator = Evaluator(config, engine, chat, backend, evaluated, limits, labels)
        evaluations = RunEvaluations(run.evaluations, config.evaluation, tasks, evaluator)
    return Game(
        config,
        run,
        store,
        environments,
        backend,
        limits,
        labels,
        engine,
        chat,
        trainer,
        runner,
        sink,
        progress,
        evaluations,
        host,
    )


def build_trainer(config: Config, model: str, logs: Path, places: Places | None = None) -> Trainer:
    """The trainer that `trainer.type` names; the processes of one that has any run where `places` says and write into `logs`."""
    # Both take seconds to load: after all that can be refused.
    if config.trainer.type == "deepspeed":
        from selfplay.training.deepspeed_trainer import DeepSpeedTrainer

        return DeepSpeedTrainer(
            model,
            config.trainer,
            config.agent.context_tokens,
            config.seed,
            logs,
            links=places.links if places else None,
        )
    from selfplay.training.torch_trainer import TorchTrainer

    trainer = TorchTrainer(model, config.trainer, config.agent.context_tokens, config.seed)
    if async_updates(config.train.max_async_updates, config.max_lag):
        # An engine in this process and test runs go on during a step: threads that wait for a busy core cost far more than they give.
        trainer.threads = max(1, trainer.threads // 2)
    return trainer


def build_engine(
    config: Config,
    model: str,
    environments: Iterable[Environment],
    logs: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
    places: Places | None = None,
    trained: tuple[Trainer, Callable[[], Path | None]] | None = None,
) -> Engine:
    """The engine that `engine.type` names; a scripted one plays the teacher, which knows the original trees.

    logs: the folder of servers' logs. tell: hears of servers that are lost and replaced. places: where servers run. trained: by whom its
    weights are, and where its newest checkpoint lies; None where they never change.
    """
    if config.engine.type == "scripted":
        from selfplay.engines.scripted_engine import ScriptedEngine
        from selfplay.teacher.player import TeacherPlayer

        return ScriptedEngine(
            TeacherPlayer([environment.tree for environment in environments]), load_tokenizer(model)
        )
    if config.engine.type == "vllm":
        return _open_vllm(config, model, logs, tell, places, trained)
    from selfplay.engines.hf_engine import HFEngine

    return HFEngine(
        model, config.engine.max_batch, config.agent.context_tokens, cache_mb=config.engine.cache_mb
    )


def _open_vllm(
    config: Config,
    model: str,
    logs: Path | None,
    tell: Callable[[str], None],
    places: Places | None,
    trained: tuple[Trainer, Callable[[], Path | None]] | None,
) -> Engine:
    import torch

    from selfplay.engines.vllm_engine import VllmEngine, WeightSync
    from selfplay.engines.vllm_servers import Launch, OwnServer, on_gpu
    from selfplay.weights.weight_sync import FileWeightSync, NativeWeightSync

    settings = config.engine
    on_gpus = places.on_gpus if places else on_gpu()
    dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if on_gpus else "float32"
    native = settings.sync if trained else "files"
    if native != "files" and on_gpus != (native != "gloo"):
        raise PrerequisiteError(
            f"engine.sync = {native!r} is for {'CPUs' if native == 'gloo' else 'GPUs'}, and the servers run on "
            f"{'GPUs' if on_gpus else 'CPUs'} here. Set engine.sync = {'nccl' if on_gpus else 'gloo'!r}, or 'files'."
        )
    launch = Launch(
        model=model,
        context_tokens=config.agent.context_tokens,
        max_batch=settings.max_batch,
        cache_mb=settings.cache_mb,
        gpu_memory=settings.gpu_memory,
        dtype=dtype,
        options=settings.options,
        start_timeout_s=settings.start_timeout_s,
        logs=logs,
        threads=max(1, usable_cores() // 2 // settings.servers),
        transfer="" if native == "files" else native,
    )
    sync: WeightSync
    if native == "files":
        sync = FileWeightSync(model, getattr(torch, dtype), settings.sync_timeout_s)
    else:
        assert trained is not None
        sync = NativeWeightSync(model, getattr(torch, dtype), native, *trained, settings.sync_timeout_s)
    open_server = places.open_server if places else OwnServer
    return VllmEngine(
        launch,
        sync,
        settings.servers,
        settings.urls,
        request_timeout_s=settings.request_timeout_s,
        tell=tell,
        open_server=open_server,
    )


def check_targets(config: Config, environments: dict[str, Environment], tell: Callable[[str], None]) -> None:
    """Leave out, and tell, repositories without a usable target where injectors are given one. Raises RunError when none is left."""
    from selfplay.orchestrator.waves import targets_of

    if "target" not in config.injector.help or not config.train.injector_groups:
        return
    injector = config.injector
    wanted = f"a covered function of at most {injector.max_target_lines} lines in whose test file {injector.min_passing_tests[1]} tests pass"
    for name, environment in list(environments.items()):
        if not targets_of(environment, injector):
            del environments[name]
            tell(f"{name} is left out of the game: it lacks {wanted} (injector.max_target_lines)")
    if not environments:
        raise RunError(
            f"injector.help has 'target', but no repository has {wanted}. Raise injector.max_target_lines, or list others."
        )
