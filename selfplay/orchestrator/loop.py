"""One update after another: play, credit, train, commit, publish.

Up to `train.max_async_updates` further updates are played meanwhile. `waves` plays, `crediting` rewards,
`batching` chooses what to train on, `run_metrics` computes the figures.

Invariants:
- Each step reads the database. A run that is killed anywhere repeats only the steps it was in.
- An update's checkpoint is written first, then committed by one transaction, then its weights are published.
  So the database never names weights that are lost.
- If nothing is played ahead, the steps follow one another and repeat exactly.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from selfplay.agent.episode import Episode, Role
from selfplay.agent.token_ratios import ratios_file, write_ratios
from selfplay.agent.tools import toolbox
from selfplay.algorithm.staleness import async_updates, newest_wave
from selfplay.curriculum.rows import EpisodeRow, GroupRow
from selfplay.errors import RunError, StoreError
from selfplay.metrics import Value
from selfplay.orchestrator.advice import advice_on_submissions
from selfplay.orchestrator.alarms import check_logprob_diff
from selfplay.orchestrator.batching import Batch, BatchRules, carries_gradient, make_batch, make_samples
from selfplay.orchestrator.crediting import Crediting
from selfplay.orchestrator.dispatcher import Dispatcher
from selfplay.orchestrator.progress import evaluation_time
from selfplay.orchestrator.run_metrics import (
    CountedEpisodes,
    IdleClock,
    PhaseClock,
    batch_metrics,
    call_metrics,
    curriculum_metrics,
    played_metrics,
    read_played,
    resampling_metrics,
)
from selfplay.orchestrator.run_state import RunState
from selfplay.orchestrator.waves import Waves
from selfplay.training.base import ExportedWeights
from selfplay.training.batch import Sample

if TYPE_CHECKING:
    from selfplay.orchestrator.context import RunContext

SAVE_SECONDS_S = 5.0


class TrainLoop:
    """Runs the updates of a run, from the last committed one to `train.updates`."""

    def __init__(self, context: RunContext) -> None:
        config, store = context.config, context.store
        self._context = context
        self._state = RunState(store)
        self._crediting = Crediting(store, self._state, config)
        self._dispatcher = Dispatcher(context)
        self._waves = Waves(context, self._dispatcher, self._wave_phase)
        self._phases = PhaseClock()
        self._timed: int | None = None  # the update that the phases belong to
        self._idle = IdleClock()
        self._counted = CountedEpisodes(self._state, store.last_update())
        self._max_async = async_updates(config.train.max_async_updates, config.max_lag)
        self._in_play: dict[int, asyncio.Task[None]] = {}
        # After a kill any wave may be unfinished; only that of the next update if nothing is played ahead.
        self._next_wave = 1 if self._max_async else store.last_update() + 1
        self._finished_waves = self._next_wave - 1

    async def run(self) -> None:
        """Play and train until `train.updates` are committed.

        Raises RunError if the machine fails too often, no bug is left to play, or the disk is full.
        """
        context = self._context
        # Training has one thread, outside the dispatcher's pools: the C library keeps about a gigabyte of
        # freed memory for each thread that ever trained.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="train"))
        clock = asyncio.create_task(self._keep_seconds(), name="seconds")
        try:
            for update in range(context.store.last_update() + 1, context.config.train.updates + 1):
                await self._evaluate(update - 1)
                await self.update(update)
            await self._evaluate(context.store.last_update())
        except OSError as error:
            run = context.run.path
            raise RunError(
                f"cannot write in {run}: {error}. What was finished is saved; free space there, "
                f"then continue with: selfplay train --resume {run.name}"
            ) from error
        finally:
            for task in (clock, *self._in_play.values()):
                task.cancel()
            await asyncio.gather(clock, *self._in_play.values(), return_exceptions=True)
            with suppress(StoreError):  # the run ends for a reason of its own
                self._save_seconds()
            await asyncio.to_thread(self._dispatcher.close)

    async def update(self, update: int) -> None:
        """Play, credit, train, commit and publish one update."""
        context = self._context
        self._dispatcher.start_update()
        context.store.begin_update(update)
        begun = context.store.update(update)
        self._phases.restart(json.loads(begun.metrics_json) if begun is not None else {})
        self._timed = update
        self._start_waves(update)
        with self._phase("playing") if self._max_async else nullcontext():
            await self._wait_for_groups(update)
        row = await self._train_and_commit(update)
        self._timed = None
        context.sink.write(row)
        context.progress.update_finished(update, row)
        injectors = context.store.episodes(update=update, role=Role.INJECTOR)
        if advice := advice_on_submissions(update, injectors):
            context.progress.message(advice)

    async def _evaluate(self, update: int) -> None:
        """Measure the repair rate after `update`, if that is due and not finished.

        Training does not depend on it.
        """
        context, evaluations = self._context, self._context.evaluations
        if evaluations is None or not evaluations.is_due(update, context.config.train.updates):
            return
        if self._state.is_evaluated(update):
            return
        context.progress.phase(f"evaluating {evaluation_time(update)}")
        policy = {
            "model": context.config.policy.model,
            "run": context.run.path.name,
            "update": update,
            "weights": context.engine.weight_version,
        }
        row = await asyncio.to_thread(evaluations.play, update, policy, context.progress.evaluating)
        context.sink.write(row)
        self._state.set_evaluated(update)
        context.progress.evaluated(update, row)
        for warning in evaluations.warnings(update):
            context.progress.message(warning)
        self._idle.restart(self._dispatcher.host.engine_busy_s(), self._dispatcher.recorded)

    # ---- playing

    def _start_waves(self, update: int) -> None:
        """Start the waves that may start now. Later ones wait, so that their episodes do not become stale."""
        newest = newest_wave(update - 1, self._max_async, self._context.config.train.updates)
        for wave in range(self._next_wave, newest + 1):
            if self._waves.is_played(wave):
                self._finished_waves += 1
            else:
                self._in_play[wave] = asyncio.create_task(self._waves.play(wave), name=f"wave {wave}")
        self._next_wave = max(self._next_wave, newest + 1)

    async def _wait_for_groups(self, update: int) -> None:
        """Wait until as many waves as updates are finished, or enough groups of any waves are complete.

        So a slow group delays only the update that trains on it. Raises what a wave raised.
        """
        while True:
            for wave, task in list(self._in_play.items()):
                if task.done():
                    task.result()
                    del self._in_play[wave]
                    self._finished_waves += 1
            if self._finished_waves >= update:
                return
            if self._max_async and self._groups_with_gradient(update) >= self._wanted_groups(update):
                return
            await self._waves.bell.wait()

    def _groups_with_gradient(self, update: int) -> int:
        """Groups of the paced role that the update could train on now."""
        self._crediting.credit_injectors()
        rules = self._batch_rules(update)
        groups = self._complete_groups(self._paced_role)
        return sum(carries_gradient(group, rules.fresh(rows)) for group, rows in groups)

    def _wanted_groups(self, update: int) -> int:
        """Groups of the paced role, with a gradient, that are enough for the update."""
        if self._paced_role is Role.SOLVER:
            return self._waves.solver_slots(update)
        return self._context.config.train.injector_groups

    @property
    def _paced_role(self) -> Role:
        """The role whose groups decide when an update has enough to train on.

        It is the solver if there are any: injectors are rewarded once their bugs are measured, and join the
        next update.
        """
        return Role.SOLVER if self._context.config.train.solver_groups else Role.INJECTOR

    # ---- training

    def _complete_groups(self, role: Role | None = None) -> Iterator[tuple[GroupRow, list[EpisodeRow]]]:
        """Rewarded groups that no update has trained on, with their episodes, oldest first.

        role: None for both.
        """
        store = self._context.store
        for group in store.groups(role=role, status="complete"):
            yield group, store.episodes(group_id=group.group_id)

    def _batch_rules(self, update: int) -> BatchRules:
        config = self._context.config
        return BatchRules(
            config.trainer,
            config.train.trained_roles,
            self._context.trainer.weight_version,
            config.max_lag,
            paced_role=self._paced_role,
            paced_groups=self._wanted_groups(update) if self._max_async else None,
        )

    async def _train_and_commit(self, update: int) -> dict[str, Value]:
        """Returns the update's metrics."""
        context = self._context
        self._crediting.credit_injectors()
        batch = make_batch(self._complete_groups(), self._batch_rules(update))
        step_metrics: dict[str, float] = {}
        with self._phase("training"):
            samples, sample_metrics = await asyncio.to_thread(self._read_samples, batch.trained)
            if samples:
                with self._idle.stepping():
                    step_metrics = await asyncio.to_thread(context.trainer.step, samples)
                check_logprob_diff(step_metrics, context.config, update, context.run.path.name)
        with self._phase("saving"):
            checkpoint = context.run.checkpoint(update)
            await asyncio.to_thread(context.trainer.save, checkpoint)
            if samples:
                ids = [episode.episode_id for episode, _ in batch.trained]
                ratios = {i: some.tolist() for i, some in zip(ids, context.trainer.ratios, strict=True)}
                await asyncio.to_thread(write_ratios, ratios_file(context.run.path, update), ratios)
        row: dict[str, Value] = {
            "update": update,
            "carried_gradient": bool(samples),
            **batch_metrics(batch),
            **sample_metrics,
            **self._played_metrics(),
            **step_metrics,
            **self._idle.shares(self._dispatcher.host.engine_busy_s(), self._dispatcher.recorded),
            **self._phases.metrics(),
        }
        self._commit(update, batch, checkpoint, row)
        context.run.discard_checkpoints(checkpoint.name, keep=context.config.train.keep_checkpoints)
        if samples:
            await asyncio.to_thread(self._publish)
            row |= getattr(context.engine, "last_sync", {})
        return row

    def _read_samples(
        self, trained: Sequence[tuple[EpisodeRow, float]]
    ) -> tuple[list[Sample], dict[str, Value]]:
        """The episodes as samples, and metrics of their turns."""
        context, config = self._context, self._context.config
        episodes = [Episode.read(context.run.path / row.path) for row, _ in trained]
        advantages = [advantage for _, advantage in trained]
        metrics: dict[str, Value] = {}
        if config.agent.resamples:
            metrics |= resampling_metrics(episodes)
        if config.trainer.call_reward_weight > 0:
            metrics |= call_metrics(episodes, toolbox(config.agent))
        pairs = list(zip(episodes, advantages, strict=True))
        return make_samples(pairs, config.trainer, context.chat.decode, toolbox(config.agent)), metrics

    def _played_metrics(self) -> dict[str, Value]:
        """Metrics of what was played since the last update, whether it is trained on or not."""
        store = self._context.store
        rows = self._counted.count_new(store, range(1, self._next_wave), self._in_play)
        return played_metrics(read_played(store, rows)) | curriculum_metrics(store.bugs())

    def _commit(self, update: int, batch: Batch, checkpoint: Path, row: dict[str, Value]) -> None:
        """Record the update with all that it is done with, in one transaction."""
        store = self._context.store
        version, has_gradient = self._context.trainer.weight_version, bool(row["carried_gradient"])
        with store.transaction():
            for episode_id, advantage in batch.consumed:
                store.consume(episode_id, update, advantage)
            for group_id in batch.groups:
                store.set_group_status(group_id, "consumed")
            if self._max_async:
                self._counted.save()
            store.commit_update(update, checkpoint.name, version, has_gradient, json.dumps(row))

    def _publish(self) -> None:
        """Load the new weights into the engine, while it generates.

        Each token carries the version of the weights that sampled it.
        """
        trainer = self._context.trainer
        self._context.engine.load_weights(ExportedWeights(trainer), trainer.weight_version)

    # ---- phases

    def _wave_phase(self, name: str) -> AbstractContextManager[None]:
        """Steps of waves are neither shown nor timed if waves overlap."""
        return nullcontext() if self._max_async else self._phase(name)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._context.progress.phase(name)
        with self._phases.measure(name):
            yield
        self._save_seconds()

    async def _keep_seconds(self) -> None:
        """Save the seconds of the update now and then: a process that is killed has spent them too."""
        while True:
            await asyncio.sleep(SAVE_SECONDS_S)
            self._save_seconds()

    def _save_seconds(self) -> None:
        if self._timed is not None:
            self._context.store.set_update_metrics(self._timed, json.dumps(self._phases.metrics()))
