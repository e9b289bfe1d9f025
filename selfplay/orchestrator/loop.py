"""One update after another: play, credit, train, commit, publish. Up to `train.max_async_updates` further updates are played meanwhile.

Leaves what is played to the waves and arithmetic to `credit` and `training`. Invariant: a step reads the database, so a run that is
killed anywhere repeats only the steps it was in; with nothing played ahead, steps come one by one and repeat exactly.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from selfplay.agent.episode import Episode, Role
from selfplay.algorithm.advantages import compute_advantages
from selfplay.algorithm.credit import Credit, SolveRate, credit_injector
from selfplay.algorithm.rewards import InjectorReward
from selfplay.algorithm.staleness import is_stale, lag, newest_wave, async_updates
from selfplay.algorithm.token_credit import changing_turns, success_of_calls, token_advantages
from selfplay.curriculum.store import EpisodeRow
from selfplay.errors import RunError
from selfplay.metrics import Value
from selfplay.orchestrator.context import Game
from selfplay.orchestrator.dispatcher import Dispatcher
from selfplay.orchestrator.waves import Waves, carries_gradient, says_enough
from selfplay.training.base import ExportedWeights
from selfplay.training.batch import Sample, with_gradient
from selfplay.viewing.progress import place_text

COUNTED = "episodes counted"
COUNTED_WAVES = "waves counted"


@dataclass(frozen=True)
class Batch:
    """What an update trains on. learned: episodes whose tokens may count, with their advantages; consumed: all that it is done with."""

    learned: list[tuple[EpisodeRow, float]]
    consumed: list[tuple[str, float]]
    groups: list[str]
    stats: dict[str, Value]


class TrainLoop:
    def __init__(self, game: Game) -> None:
        self._game = game
        self._dispatcher = Dispatcher(game)
        self._ahead = async_updates(game.config.train.max_async_updates, game.config.max_lag)
        self._waves = Waves(game, self._dispatcher, self._wave_phase)
        self._in_play: dict[int, asyncio.Task[None]] = {}
        # Updates that take turns play their own wave only; others go on with whatever waves a kill left unfinished.
        self._next_wave = 1 if self._ahead else game.store.last_update() + 1
        self._played = self._next_wave - 1  # waves that are whole
        waves = game.store.state(COUNTED_WAVES)
        self._counted_waves = set(
            json.loads(waves) if waves else range(1, game.store.last_update() + 1)
        )  # all of whose episodes are in a row
        self._counted = set(
            json.loads(game.store.state(COUNTED) or "[]")
        )  # the others' episodes that are in one
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._idle = IdleClock()

    async def run(self) -> None:
        """Play updates until `train.updates` are committed. Raises RunError when the machine fails too often, or the disk is full."""
        # One thread outside the dispatcher's pools: the C library keeps what each thread that ever trained has freed, a gigabyte each.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="train"))
        try:
            for update in range(self._game.store.last_update() + 1, self._game.config.train.updates + 1):
                await self._evaluate(update - 1)
                await self.update(update)
            await self._evaluate(self._game.store.last_update())
        except OSError as error:
            run = self._game.run.path
            raise RunError(
                f"cannot write in {run}: {error}. What was finished is saved; free space there, "
                f"then continue with: selfplay train --resume {run.name}"
            ) from error
        finally:
            for wave in self._in_play.values():
                wave.cancel()
            await asyncio.gather(*self._in_play.values(), return_exceptions=True)
            await asyncio.to_thread(self._dispatcher.close)

    async def update(self, update: int) -> None:
        game = self._game
        self._seconds.clear()
        self._dispatcher.start_update()
        game.store.begin_update(update)
        self._start_waves(update)
        with self._phase("playing") if self._ahead else nullcontext():
            await self._ready(update)
        row = await self._train_and_commit(update)
        game.sink.write(row)
        game.progress.update_finished(update, row)

    async def _evaluate(self, update: int) -> None:
        """The live engine's repair rate after `update`, where that is due and not finished. Training knows nothing of it."""
        game, key = self._game, f"evaluated/{update}"
        evaluations = game.evaluations
        if (
            evaluations is None
            or not evaluations.is_due(update, game.config.train.updates)
            or game.store.state(key)
        ):
            return
        game.progress.phase(f"evaluating {place_text(update)}")
        policy = {
            "model": game.config.policy.model,
            "run": game.run.path.name,
            "update": update,
            "weights": game.engine.weight_version,
        }
        row = await asyncio.to_thread(evaluations.play, update, policy, game.progress.evaluating)
        game.sink.write(row)
        game.store.set_state(key, "yes")
        game.progress.evaluated(update, row)
        self._idle.restart(self._dispatcher.host.engine_busy_s(), self._dispatcher.recorded)

    # -- playing -----------------------------------------------------------------------------------------------------

    def _start_waves(self, update: int) -> None:
        """All that may start now: what begins later begins with newer weights, and is not too old when its turn comes."""
        newest = newest_wave(update - 1, self._ahead, self._game.config.train.updates)
        for wave in range(self._next_wave, newest + 1):
            if self._waves.is_played(wave):
                self._played += 1
            else:
                self._in_play[wave] = asyncio.create_task(self._waves.play(wave), name=f"wave {wave}")
        self._next_wave = max(self._next_wave, newest + 1)

    async def _ready(self, update: int) -> None:
        """Wait until there is enough to train on: as many waves are whole as updates were begun, or groups from any waves suffice.

        So that whoever straggles is waited for by nobody else. Raises what a wave raised.
        """
        while True:
            for wave, task in list(self._in_play.items()):
                if task.done():
                    task.result()
                    del self._in_play[wave]
                    self._played += 1
            if self._played >= update or (
                self._ahead and self._complete_groups() >= self._wanted_groups(update)
            ):
                return
            await self._waves.bell.wait()

    def _complete_groups(self) -> int:
        """Groups that can be trained on now and carry a gradient, of the role that sets the pace."""
        self._credit_injectors()
        store = self._game.store
        groups = store.groups(role=self._pace, status="complete")
        return sum(
            carries_gradient(group, self._fresh(store.episodes(group_id=group.group_id))) for group in groups
        )

    def _fresh(self, rows: list[EpisodeRow]) -> list[EpisodeRow]:
        version, max_lag = self._game.trainer.weight_version, self._game.config.max_lag
        return [row for row in rows if not is_stale(row.weight_version_min, version, max_lag)]

    def _wanted_groups(self, update: int) -> int:
        return (
            self._waves.solver_slots(update)
            if self._pace is Role.SOLVER
            else self._game.config.train.injector_groups
        )

    @property
    def _pace(self) -> Role:
        """Injectors are paid when their bugs are measured: they join whatever update is next then, and solvers set the pace."""
        return Role.SOLVER if self._game.config.train.solver_groups else Role.INJECTOR

    # -- credit ------------------------------------------------------------------------------------------------------

    def _credit_injectors(self) -> None:
        """Rewards of injector groups all of whose bugs are measured; the others wait for a later update."""
        store, injector = self._game.store, self._game.config.injector
        for group in store.groups(role=Role.INJECTOR, status="open"):
            if not self._waves.is_admitted(group.update):
                continue
            credits: list[tuple[EpisodeRow, Credit]] = []
            rows = store.episodes(group_id=group.group_id)
            for row in rows:
                credit = self._injector_credit(row, injector.reward, injector.alpha)
                if credit is None:
                    break
                credits.append((row, credit))
            if len(credits) < group.size:
                continue
            with store.transaction():
                for row, credit in credits:
                    store.set_reward(row.episode_id, credit.reward, credit.note, masked=credit.masked)
                store.set_group_status(group.group_id, "complete")

    def _injector_credit(self, row: EpisodeRow, kind: InjectorReward, alpha: float) -> Credit | None:
        if row.masked:
            return Credit(None, "machine failure")
        store = self._game.store
        verdict = store.verdict(row.episode_id)
        bug = store.find_bug(f"{row.episode_id}-bug")
        accepted = verdict is not None and verdict.accepted
        rate = None
        if bug is not None and bug.status in ("measured", "void"):
            # Fewer than half of the attempts graded: measured, with no rate; the injector's episode is masked.
            # The first measurement decides: a bug may be played again before its whole group is measured.
            rate = SolveRate(bug.first_solve_rate, bug.attempts, bug.passes, bug.status == "void")
        return credit_injector(
            accepted, bug is None, verdict.failed_check if verdict else "", rate, kind, alpha
        )

    # -- training ----------------------------------------------------------------------------------------------------

    async def _train_and_commit(self, update: int) -> dict[str, Value]:
        game = self._game
        self._credit_injectors()
        batch = self._batch(update)
        metrics: dict[str, float] = {}
        with self._phase("training"):
            samples = await asyncio.to_thread(self._read_samples, batch.learned, batch.stats)
            if samples:
                with self._idle.stepping():
                    metrics = await asyncio.to_thread(game.trainer.step, samples)
        with self._phase("saving"):
            checkpoint = game.run.checkpoint(update)
            await asyncio.to_thread(game.trainer.save, checkpoint)
        row: dict[str, Value] = {
            "update": update,
            "carried_gradient": bool(samples),
            **batch.stats,
            **self._newly_played(),
            **metrics,
        }
        row |= self._idle.shares(self._dispatcher.host.engine_busy_s(), self._dispatcher.recorded)
        row |= {
            f"seconds/{phase.replace(' ', '_')}": round(seconds, 3)
            for phase, seconds in self._seconds.items()
        }
        with game.store.transaction():
            for episode_id, advantage in batch.consumed:
                game.store.consume(episode_id, update, advantage)
            for group_id in batch.groups:
                game.store.set_group_status(group_id, "consumed")
            if self._ahead:
                game.store.set_state(COUNTED, json.dumps(sorted(self._counted)))
                game.store.set_state(COUNTED_WAVES, json.dumps(sorted(self._counted_waves)))
            game.store.commit_update(
                update, checkpoint.name, game.trainer.weight_version, bool(samples), json.dumps(row)
            )
        game.run.discard_checkpoints(checkpoint.name, keep=game.config.train.keep_checkpoints)
        if samples:
            await asyncio.to_thread(self._publish)
            row |= getattr(game.engine, "last_sync", {})
        return row

    def _publish(self) -> None:
        """New weights to the engine, whatever it generates meanwhile: each token tells the version that drew it."""
        trainer = self._game.trainer
        self._game.engine.load_weights(ExportedWeights(trainer), trainer.weight_version)

    def _read_samples(
        self, learned: Sequence[tuple[EpisodeRow, float]], stats: dict[str, Value]
    ) -> list[Sample]:
        """Empty where no token is to be learned. Adds to `stats` how calls went: drawn again (`agent.resamples`), changing something new."""
        game = self._game
        samples: list[Sample] = []
        draws: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        episodes = [Episode.read(game.run.path / row.path) for row, _ in learned]
        groups: dict[str, list[Episode]] = defaultdict(list)
        for episode in episodes:
            groups[episode.group].append(episode)
        by_calls = game.config.trainer.call_reward_weight > 0
        expected = {
            group: success_of_calls(members) if by_calls else 0.0 for group, members in groups.items()
        }
        for episode, (_, advantage) in zip(episodes, learned, strict=True):
            advantages = token_advantages(
                episode, advantage, game.config.trainer, expected[episode.group], game.chat.decode
            )
            samples.append(
                Sample(episode.token_ids, episode.loss_mask, episode.logprobs, advantages, episode.role.value)
            )
            rejected, kept = draws[episode.role]
            draws[episode.role] = (
                rejected + sum(turn.rejected for turn in episode.turns),
                kept + len(episode.turns),
            )
        if game.config.agent.resamples:
            stats |= {
                f"{role}/rejected_samples": round(rejected / (rejected + kept), 4)
                for role, (rejected, kept) in draws.items()
            }
        for role in sorted({episode.role for episode in episodes} if by_calls else ()):
            played = [episode for episode in episodes if episode.role == role]
            stats[f"{role}/new_changes"] = round(success_of_calls(played), 4)
            stats[f"{role}/changes_tried"] = round(
                sum(len(changing_turns(episode)) for episode in played) / len(played), 2
            )
        return samples if with_gradient(samples) else []

    def _batch(self, update: int) -> Batch:
        """Complete groups, the oldest first; of those that set the pace no more than the update wants, where others follow at once."""
        game, config = self._game, self._game.config
        batch = Batch([], [], [], {})
        rewards: dict[str, list[float]] = {Role.INJECTOR: [], Role.SOLVER: []}
        counts: Counter[str] = Counter()
        lags: list[int] = []
        for group in game.store.groups(status="complete"):
            if (
                self._ahead
                and group.role == self._pace
                and counts[f"{group.role}/gradient_groups"] >= self._wanted_groups(update)
            ):
                continue  # the next update's
            rows = [
                row
                for row in game.store.episodes(group_id=group.group_id)
                if not row.masked and row.reward is not None
            ]
            rewards[group.role] += [row.reward for row in rows if row.reward is not None]
            fresh = self._fresh(rows)
            counts["stale"] += len(rows) - len(fresh)
            counts["masked"] += group.size - len(rows)
            counts[f"{group.role}/groups"] += 1
            batch.groups.append(group.group_id)
            advantages = [0.0] * len(fresh)
            if says_enough(group, len(fresh)):
                advantages = compute_advantages(
                    config.trainer.advantage,
                    [r.reward for r in fresh if r.reward is not None],
                    [r.action_tokens for r in fresh],
                )
            else:
                counts["dropped_groups"] += 1
            batch.consumed.extend(
                (row.episode_id, advantage) for row, advantage in zip(fresh, advantages, strict=True)
            )
            if not any(advantages):
                counts["zero_variance_groups"] += 1
                counts[f"{group.role}/zero_variance_groups"] += 1
                if not config.trainer.call_reward_weight:
                    continue
            else:
                counts[f"{group.role}/gradient_groups"] += 1
            if group.role not in config.train.trained_roles:
                counts["not_learned"] += len(fresh)
                continue
            lags += [lag(row.weight_version_min, game.trainer.weight_version) for row in fresh]
            batch.learned.extend(zip(fresh, advantages, strict=True))
        stats = batch.stats
        stats |= {f"groups/{name}": value for name, value in sorted(counts.items())}
        for role, values in rewards.items():
            if values:
                stats[f"{role}/reward"] = round(sum(values) / len(values), 4)
            if groups := counts[f"{role}/groups"]:
                stats[f"{role}/zero_variance"] = round(counts[f"{role}/zero_variance_groups"] / groups, 4)
        stats["lag/max"] = max(lags, default=0)
        stats["lag/mean"] = round(sum(lags) / len(lags), 3) if lags else 0.0
        return batch

    def _newly_played(self) -> dict[str, Value]:
        """What was played since the last update, whether it is trained on or not: episodes, sampled tokens, and the rates of success.

        injector/valid: accepted of the judged artifacts, repeated ones among them (their share of the accepted: injector/duplicate).
        solver/solved: passed of the graded attempts. failed_calls: of all turns those whose call failed, or was none.
        """
        store = self._game.store
        stats: dict[str, Value] = {}
        waves = [wave for wave in range(1, self._next_wave) if wave not in self._counted_waves]
        counted, self._counted = self._counted, set()
        self._counted_waves |= {wave for wave in waves if wave not in self._in_play}
        for role in Role:
            played = [row for wave in waves for row in store.episodes(update=wave, role=role)]
            rows = [row for row in played if row.episode_id not in counted]
            self._counted.update(row.episode_id for row in played if row.update not in self._counted_waves)
            stats[f"{role}/episodes"] = len(rows)
            stats[f"{role}/sampled_tokens"] = sum(row.action_tokens for row in rows)
            if turns := sum(row.turns for row in rows):
                stats[f"{role}/failed_calls"] = round(sum(row.failed_turns for row in rows) / turns, 4)
            if role is Role.INJECTOR:
                verdicts = [verdict for row in rows if (verdict := store.verdict(row.episode_id))]
                accepted = [verdict for verdict in verdicts if verdict.accepted]
                if verdicts:
                    stats["injector/valid"] = round(len(accepted) / len(verdicts), 4)
                if accepted:
                    repeated = sum(
                        store.find_bug(f"{verdict.episode_id}-bug") is None for verdict in accepted
                    )
                    stats["injector/duplicate"] = round(repeated / len(accepted), 4)
            else:
                attempts = [attempt for row in rows if (attempt := store.attempt(row.episode_id))]
                graded = [attempt.passed for attempt in attempts if attempt.passed is not None]
                if graded:
                    stats["solver/solved"] = round(sum(graded) / len(graded), 4)
        solved = [bug for bug in store.bugs(status="measured") if bug.solve_rate is not None]
        if solved:
            stats["curriculum/solve_rate"] = sum(bug.solve_rate or 0.0 for bug in solved) / len(solved)
        stats["curriculum/bugs"] = len(store.bugs())
        return stats

    def _wave_phase(self, name: str) -> AbstractContextManager[None]:
        """Steps of waves that overlap are neither told nor added up."""
        return nullcontext() if self._ahead else self._phase(name)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._game.progress.phase(name)
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - started


class IdleClock:
    """From one update to the next: the shares of the time without a step and without a request, and episodes an hour."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._stepped_s = self._busy_s = 0.0
        self._episodes = 0

    def restart(self, engine_busy_s: float, episodes: int) -> None:
        """engine_busy_s, episodes: as they have added up since the run began."""
        self._since, self._stepped_s, self._busy_s, self._episodes = (
            time.monotonic(),
            0.0,
            engine_busy_s,
            episodes,
        )

    @contextmanager
    def stepping(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._stepped_s += time.monotonic() - started

    def shares(self, engine_busy_s: float, episodes: int) -> dict[str, Value]:
        """Those since the last call, or `restart`; they begin anew."""
        passed = max(time.monotonic() - self._since, 1e-9)
        shares: dict[str, Value] = {
            "idle/trainer": round(max(0.0, 1 - self._stepped_s / passed), 4),
            "idle/engine": round(max(0.0, 1 - (engine_busy_s - self._busy_s) / passed), 4),
            "episodes_per_hour": round((episodes - self._episodes) * 3600 / passed, 1),
        }
        self.restart(engine_busy_s, episodes)
        return shares
