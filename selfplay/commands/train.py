"""`selfplay train`: a new run, or one that continues from its last committed update.

Order matters: everything that can be wrong with what the person typed is found before anything is fetched,
built or written.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from selfplay import parts
from selfplay.agent.chat import open_chat
from selfplay.agent.solver import spec_tokens
from selfplay.agent.workspaces import sandbox_limits
from selfplay.commands.accelerators import run_devices
from selfplay.commands.clusters import Done, model_on_cluster, on_cluster, play_on_what_is_left
from selfplay.commands.policies import (
    check_memory,
    check_model,
    check_training_settings,
    fitted_context,
    with_engine,
)
from selfplay.config import Config, build_config, load_config, parse_overrides
from selfplay.curriculum.rows import EnvironmentRow
from selfplay.curriculum.store import Store
from selfplay.errors import UsageError
from selfplay.evaluation.task_environments import prepare_tasks
from selfplay.evaluation.tasks import find_tasks, read_tasks, write_tasks
from selfplay.orchestrator.build import Evaluated, PreparedRun, build_context
from selfplay.orchestrator.given_bugs import check_given_bugs, put_given_bugs, read_given_bugs
from selfplay.orchestrator.loop import TrainLoop
from selfplay.orchestrator.own_parts import check_own_parts
from selfplay.orchestrator.run_folder import RunFolder, create_run, open_run
from selfplay.orchestrator.run_state import RunState
from selfplay.repositories.environment import Environment
from selfplay.repositories.prepare import Preparer
from selfplay.repositories.specs import RepositorySpec, absolute_line, read_repository_list
from selfplay.sandbox import open_backend
from selfplay.sandbox.base import SandboxBackend
from selfplay.sandbox.prewarmed import prewarmed_sandboxes
from selfplay.training.base import check_trainer
from selfplay.viewing.progress import TrainProgress, counts_so_far
from selfplay.viewing.summary import print_summary

if TYPE_CHECKING:
    from selfplay.cluster.ray_cluster import Cluster, Places

# Settings that decide only how long and how parallel a run is: a resumed run may change them.
CHANGEABLE = (
    "engine.servers",
    "train.episodes_in_flight",
    "train.max_machine_failures",
    "train.max_opening",
    "train.updates",
    "train.workers",
    "trainer.max_rollout_logprob_diff",
    "trainer.ranks",
)


@dataclass(frozen=True)
class PlannedRun:
    """A run whose settings were checked. model: the policy's folder or id."""

    run: RunFolder
    config: Config
    specs: Sequence[RepositorySpec]
    backend: SandboxBackend
    model: str
    console: Console


def start_training(
    repos: Path, config_file: Path | None, overrides: Sequence[str], address: str | None = None
) -> None:
    """`selfplay train --repos`. address: of a Ray cluster (`--cluster`) that the run is placed on.

    Raises UsageError before anything was started, RunError when the run's name is taken.
    """
    config = load_config(config_file, overrides)
    specs = read_repository_list(repos)
    given = check_given_bugs(config, specs)
    tasks = find_tasks(config.evaluation.tasks, config.evaluation.limit)
    check_trainer(config.trainer)
    check_training_settings(config)
    model = check_model(config)
    config = fitted_context(config, model)
    if address is None:
        check_memory(config)
    console = Console()
    config = with_engine(config, model, console)
    backend, why = open_backend(config.sandbox.type)
    with on_cluster(address, config) as cluster:
        lines = "".join(f"{absolute_line(spec)}\n" for spec in specs)
        run, config = create_run(config, lines, datetime.now(), given, tasks)
        console.print(f"Run [bold]{run.path.name}[/bold] in {run.path}; sandboxes: {why}", highlight=False)
        planned = PlannedRun(run, config, specs, backend, model, console)
        with _interrupt_says_how_to_continue(run, address):
            _report_changed_parts(planned)
            _play_on(cluster, planned)


def resume_training(name: str, root: Path, overrides: Sequence[str], address: str | None = None) -> None:
    """`selfplay train --resume`: the run keeps its settings, except those in CHANGEABLE."""
    run = open_run(name, root)
    config = _changed(run.config(), overrides)
    specs = read_repository_list(run.repositories_file)
    check_trainer(config.trainer)
    model = check_model(config)
    backend, why = open_backend(config.sandbox.type)
    with on_cluster(address, config) as cluster:
        console = Console()
        console.print(f"Resuming [bold]{run.path.name}[/bold]; sandboxes: {why}", highlight=False)
        run.write_config(config)
        planned = PlannedRun(run, config, specs, backend, model, console)
        with _interrupt_says_how_to_continue(run, address):
            _report_changed_parts(planned)
            _play_on(cluster, planned)


def _changed(config: Config, overrides: Sequence[str]) -> Config:
    """The settings of a run to be resumed, with what --set changes.

    Raises UsageError for what may not change.
    """
    changed = parse_overrides(overrides)
    if refused := sorted(set(changed) - set(CHANGEABLE)):
        raise UsageError(
            f"--set {refused[0]}: a resumed run keeps its settings; only {', '.join(CHANGEABLE)} may change."
        )
    values = config.model_dump()
    for key, value in changed.items():
        section, _, setting = key.partition(".")
        values[section][setting] = value
    return build_config(values, "--set")


@contextmanager
def _interrupt_says_how_to_continue(run: RunFolder, address: str | None) -> Iterator[None]:
    """Add the command that continues the run to a KeyboardInterrupt. The command line prints such notes."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        command = ["selfplay", "train", "--resume", run.path.name, "--runs", str(run.path.parent)]
        command += [] if address is None else ["--cluster", address]
        interrupt.add_note(f"the run continues with: {shlex.join(command)}")
        raise


def _play_on(cluster: Cluster | None, planned: PlannedRun) -> None:
    """Play to the end. On a cluster, losing a trainer rank or the last rollout server costs one update.

    The run is then placed anew on what is left of the cluster, and goes on from its last committed update.
    """
    if cluster is None:
        planned.console.print(run_devices(planned.config), markup=False, highlight=False)
        _play(planned)
        return
    planned = replace(
        planned, run=RunFolder(planned.run.path.absolute()), model=model_on_cluster(planned.model)
    )

    def committed() -> int:
        with _open_store(planned.run) as store:
            return store.last_update()

    play_on_what_is_left(
        cluster,
        planned.config,
        lambda config, places: _play(replace(planned, config=config), places),
        Done(committed, lambda update: f"update {update}"),
        planned.console,
    )


def _play(planned: PlannedRun, places: Places | None = None) -> None:
    """places: what runs on other machines; None: nothing."""
    run, config, console = planned.run, planned.config, planned.console
    if swept := planned.backend.sweep():
        console.print(f"Removed what earlier runs left behind: {len(swept)} item(s).")
    with (
        _open_store(run) as store,
        prewarmed_sandboxes(planned.backend, config.sandbox.prewarmed) as backend,
    ):
        limits = sandbox_limits(config)
        preparer = Preparer(backend, config, limits, console, _StoredEnvironments(store))
        environments = preparer.prepare_all(planned.specs)
        _put_given_bugs(planned, store, environments)
        evaluated = _prepare_evaluation(planned, replace(preparer, records=None), environments)
        _repair_folder(run, config, store)
        labels = {"run": run.path.name, "owner": str(os.getpid())}
        done, before = store.last_update(), counts_so_far(store)
        with TrainProgress(console, config.train.updates, done, before) as progress:
            prepared = PreparedRun(
                run=run,
                config=config,
                store=store,
                environments=environments,
                backend=backend,
                limits=limits,
                labels=labels,
                model=planned.model,
                progress=progress,
                evaluated=evaluated,
            )
            context = build_context(prepared, places)
            try:
                with parts.named_faults(config.parts()):
                    asyncio.run(TrainLoop(context).run())
            finally:
                context.engine.close()
                context.trainer.close()
                context.sink.close()
        print_summary(store, run.path, console)


def _report_changed_parts(planned: PlannedRun) -> None:
    for line in check_own_parts(planned.config, planned.run):
        planned.console.print(line, style="yellow", markup=False, highlight=False)


def _repair_folder(run: RunFolder, config: Config, store: Store) -> None:
    """Remove what a kill left unfinished: checkpoints that no update names, metrics that none committed."""
    run.discard_uncommitted(store.last_checkpoint(), keep=config.train.keep_checkpoints)
    committed = [row for row in store.updates() if row.committed_at]
    run.repair_metrics(committed, RunState(store).is_evaluated)


def _put_given_bugs(planned: PlannedRun, store: Store, environments: Mapping[str, Environment]) -> None:
    """The bugs of `train.bugs` go into the curriculum, unless they are there."""
    run, console = planned.run, planned.console
    if not run.given_bugs_file.is_file():
        return
    chat = open_chat(planned.model, planned.config.policy, planned.config.agent)
    put_given_bugs(
        read_given_bugs(run.given_bugs_file, {spec.name for spec in planned.specs}),
        store,
        environments,
        lambda bug: spec_tokens(chat, bug) > planned.config.solver.max_spec_tokens,
        lambda text: console.print(text, markup=False, highlight=False),
        planned.config.validator.max_patch_bytes,
    )


def _prepare_evaluation(
    planned: PlannedRun, preparer: Preparer, environments: Mapping[str, Environment]
) -> Evaluated:
    """The run's copy of its evaluation tasks, and their environments: its own, and others."""
    run, settings = planned.run, planned.config.evaluation
    if not settings.tasks:
        return Evaluated()
    if not run.evaluation_tasks.is_file():  # killed in an earlier version, before it had them
        write_tasks(find_tasks(settings.tasks, settings.limit), run.evaluation_tasks)
    tasks = read_tasks(run.evaluation_tasks)
    known = {
        absolute_line(spec): environments[spec.name] for spec in planned.specs if spec.name in environments
    }
    prepared = prepare_tasks(tasks, preparer, known=known)
    for name, reason in prepared.left_out.items():
        preparer.console.print(f"evaluation task {name} is left out: {reason}", markup=False, highlight=False)
    return Evaluated(tasks, prepared.environments, prepared.left_out)


@dataclass(frozen=True)
class _StoredEnvironments:
    """The run's environments, as its database remembers them."""

    store: Store

    def has_played(self, repository: str) -> bool:
        return any(group.repository == repository for group in self.store.groups())

    def record_ready(self, environment: Environment) -> None:
        row = EnvironmentRow(
            name=environment.repository,
            base_commit=environment.base_commit,
            environment_key=environment.key,
            licence=environment.licence,
            tests=len(environment.baseline.passed),
            excluded=tuple(sorted(environment.excluded_ids)),
            status="ready",
        )
        self.store.record_environment(row)

    def record_failed(self, repository: str, reason: str, log_tail: str) -> None:
        self.store.record_environment(
            EnvironmentRow(repository, "", "", "", 0, (), "failed", reason, log_tail)
        )


@contextmanager
def _open_store(run: RunFolder) -> Iterator[Store]:
    store = Store.open(run.database)
    try:
        yield store
    finally:
        store.close()
