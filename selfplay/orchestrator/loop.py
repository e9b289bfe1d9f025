"""One update after another: inject, admit, solve, settle, credit, train, commit. The steps are methods in that order.

Leaves playing and judging to the dispatcher and arithmetic to `credit` and `training`. Invariant: a step reads the database,
so a run that is killed anywhere repeats only the step it was in, on the members that were not yet recorded.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import Literal

from selfplay.artifact import Artifact
from selfplay.config import InjectorSettings
from selfplay.curriculum.sampling import choose_solver_bugs, choose_strategy, choose_target
from selfplay.curriculum.store import BugRow, EpisodeRow, GroupRow
from selfplay.engines.base import derive_seed
from selfplay.environments import Environment
from selfplay.episode import Episode, Role
from selfplay.errors import RunError, SandboxUnavailable
from selfplay.metrics import Value
from selfplay.orchestrator.credit import Credit, SolveRate, credit_injector, credit_solver, learned_tokens, measure_solve_rate
from selfplay.orchestrator.dispatcher import Dispatcher
from selfplay.orchestrator.game import Game
from selfplay.orchestrator.staleness import is_stale, lag
from selfplay.rewards import InjectorReward
from selfplay.targets import Target, usable_targets
from selfplay.training.advantages import compute_advantages
from selfplay.training.batch import Sample
from selfplay.validator import Thresholds, Verdict, validate_second_order
from selfplay.viewing.progress import place_text


class TrainLoop:
    def __init__(self, game: Game) -> None:
        self._game = game
        self._dispatcher = Dispatcher(game)
        self._seconds: defaultdict[str, float] = defaultdict(float)

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
            await asyncio.to_thread(self._dispatcher.close)

    async def update(self, update: int) -> None:
        game = self._game
        self._seconds.clear()
        self._dispatcher.start_update()
        game.store.begin_update(update)
        with self._phase("injecting"):
            groups = self._plan_injector_groups(update)
            await self._dispatcher.play_groups(groups)
            self._admit(groups, update)
        with self._phase("solving"):
            groups = self._plan_solver_groups(update)
            await self._dispatcher.play_groups(groups)
            self._settle(groups)
        with self._phase("second order"):
            await self._admit_second_order(groups, update)
        self._credit_injectors()
        row = await self._train_and_commit(update)
        game.sink.write(row)
        game.progress.update_finished(update, row)

    async def _evaluate(self, update: int) -> None:
        """The live engine's repair rate after `update`, where that is due and not finished. Training knows nothing of it."""
        game, key = self._game, f"evaluated/{update}"
        evaluations = game.evaluations
        if evaluations is None or not evaluations.is_due(update, game.config.train.updates) or game.store.state(key):
            return
        game.progress.phase(f"evaluating {place_text(update)}")
        policy = {"model": game.config.policy.model, "run": game.run.path.name, "update": update, "weights": game.engine.weight_version}
        row = await asyncio.to_thread(evaluations.play, update, policy, game.progress.evaluating)
        game.sink.write(row)
        game.store.set_state(key, "yes")
        game.progress.evaluated(update, row)

    # -- injecting ---------------------------------------------------------------------------------------------------

    def _plan_injector_groups(self, update: int) -> list[GroupRow]:
        """This update's injector groups, made once and stored. None are added while bugs queue for their solvers."""
        game, config = self._game, self._game.config
        if game.store.state(f"planned/{update}/injector"):
            return game.store.groups(update=update, role=Role.INJECTOR)
        rng = random.Random(derive_seed(config.seed, update, "injector groups"))
        waiting = len(game.store.bugs(status="fresh", order=1))
        wanted = config.train.injector_groups if waiting < max(1, config.train.solver_groups) else 0
        earlier = game.store.groups(role=Role.INJECTOR)
        uses = Counter(group.repository for group in earlier)
        target_uses = Counter(group.target_json for group in earlier if group.target_json)
        groups = []
        for number in range(wanted):
            least = min(uses[name] for name in game.environments)
            repository = rng.choice(sorted(name for name in game.environments if uses[name] == least))
            uses[repository] += 1
            target_json = ""
            if "target" in config.injector.given:
                environment = game.environments[repository]
                usable = targets_of(environment, config.injector)
                target_json = choose_target(sorted(json.dumps(asdict(t), sort_keys=True) for t in usable), target_uses, rng)
                target_uses[target_json] += 1
            groups.append(
                GroupRow(
                    group_id=f"u{update:04d}-inj{number}",
                    update=update,
                    role=Role.INJECTOR,
                    repository=repository,
                    strategy=choose_strategy({str(name): weight for name, weight in config.injector.strategies.items()}, rng),
                    target_json=target_json,
                    bug_id="",
                    size=config.train.injector_group_size or config.train.group_size,
                )
            )
        self._store_plan(f"planned/{update}/injector", groups)
        return groups

    def _store_plan(self, key: str, groups: list[GroupRow]) -> None:
        with self._game.store.transaction():
            for group in groups:
                self._game.store.add_group(group)
            self._game.store.set_state(key, "yes")

    def _admit(self, groups: list[GroupRow], update: int) -> None:
        """Accepted artifacts become bugs in the order of group and member, never of completion, so that duplicates repeat."""
        store = self._game.store
        for group in groups:
            environment = self._game.environments[group.repository]
            duplicates = 0
            for row in store.episodes(group_id=group.group_id):
                recorded = store.verdict(row.episode_id)
                if recorded is None or not recorded.accepted:
                    continue
                verdict = Verdict.from_json(json.loads(recorded.checks_json))
                episode = self._read(row)
                bug_id = f"{row.episode_id}-bug"
                added = store.add_bug(
                    BugRow(
                        bug_id=bug_id,
                        repository=group.repository,
                        environment_key=environment.key,
                        base_commit=environment.base_commit,
                        order=1,
                        parent_bug_id=None,
                        parent_episode_id=None,
                        injector_episode_id=row.episode_id,
                        strategy=group.strategy,
                        target=group.target_json,
                        artifact=Artifact.from_files(episode.submission).to_files(),
                        attempt_patch="",
                        fail_to_pass=verdict.fail_to_pass,
                        pass_to_pass=verdict.pass_to_pass,
                        failure=verdict.failure,
                        tree_digest=verdict.buggy_digest,
                        status="fresh",
                        created_update=update,
                    )
                )
                duplicates += not added and store.find_bug(bug_id) is None
            if duplicates:
                self._game.progress.message(f"{group.group_id}: {duplicates} valid artifact(s) repeat a bug of this run (duplicate)")

    # -- solving -----------------------------------------------------------------------------------------------------

    def _plan_solver_groups(self, update: int) -> list[GroupRow]:
        game, config = self._game, self._game.config
        if game.store.state(f"planned/{update}/solver"):
            return game.store.groups(update=update, role=Role.SOLVER)
        rng = random.Random(derive_seed(config.seed, update, "solver groups"))
        chosen = choose_solver_bugs(
            game.store.bugs(status="fresh"),
            game.store.bugs(status="measured"),
            self._solver_slots(update),
            config.solver.second_order_share,
            rng,
            config.solver.replay_share,
        )
        if not chosen and not config.train.injector_groups:
            raise RunError(
                f"update {update} has nothing to play: no bug is left in the curriculum (void ones are not played) and "
                "train.injector_groups = 0 adds none. Start a run with train.injector_groups of 1 or more, or with other train.bugs."
            )
        groups = [
            GroupRow(
                group_id=f"u{update:04d}-sol{number}",
                update=update,
                role=Role.SOLVER,
                repository=bug.repository,
                strategy=bug.strategy,
                target_json="",
                bug_id=bug.bug_id,
                size=config.train.group_size,
            )
            for number, bug in enumerate(chosen)
            if bug.repository in game.environments
        ]
        self._store_plan(f"planned/{update}/solver", groups)
        return groups

    def _solver_slots(self, update: int) -> int:
        """How many bugs are played now. With train.even solvers also take the places of injectors that wait for the queue of bugs."""
        train = self._game.config.train
        if not train.even:
            return train.solver_groups
        injecting = sum(group.size for group in self._game.store.groups(update=update, role=Role.INJECTOR))
        planned = train.injector_groups * (train.injector_group_size or train.group_size) + train.solver_groups * train.group_size
        return (planned - injecting) // train.group_size

    def _settle(self, groups: list[GroupRow]) -> None:
        """Solve rates of the bugs that were just played, and the solvers' rewards."""
        store = self._game.store
        for group in groups:
            rows = store.episodes(group_id=group.group_id)
            rate = self._solve_rate(group, rows)
            with store.transaction():
                for row in rows:
                    attempt = store.attempt(row.episode_id)
                    self._give(row, credit_solver(attempt.passed if attempt else None, rate.is_void))
                if rate.is_void:
                    store.set_bug_status(group.bug_id, "void")
                else:
                    store.set_solve_rate(group.bug_id, rate.rate, rate.graded, rate.passes)
                store.set_group_status(group.group_id, "void" if rate.is_void else "complete")

    def _solve_rate(self, group: GroupRow, rows: list[EpisodeRow]) -> SolveRate:
        attempts = [self._game.store.attempt(row.episode_id) for row in rows]
        outcomes = [attempt.passed if attempt else None for attempt in attempts]
        return measure_solve_rate(outcomes, [attempt.confirmed if attempt else None for attempt in attempts], group.size)

    async def _admit_second_order(self, groups: list[GroupRow], update: int) -> None:
        """At most one failed attempt of each first-order bug becomes a bug of order two: the first, by member, that validates."""
        game = self._game
        if game.config.solver.second_order_share == 0:
            return
        for group in groups:
            parent = game.store.bug(group.bug_id)
            if parent.order != 1 or parent.status != "measured" or game.store.state(f"second/{group.group_id}"):
                continue
            found = await self._second_order_bug(group, parent, update)
            with game.store.transaction():
                if found is not None:
                    game.store.add_bug(found)
                game.store.set_state(f"second/{group.group_id}", found.bug_id if found else "none")

    async def _second_order_bug(self, group: GroupRow, parent: BugRow, update: int) -> BugRow | None:
        game = self._game
        thresholds = Thresholds(*(low for low, _ in self._threshold_ranges()))
        environment = game.environments[group.repository]
        failed = [a for a in game.store.attempts(parent.bug_id, group_id=group.group_id) if a.passed is False and a.patch]
        for attempt in failed[:2]:
            try:
                verdict = await self._dispatcher.judging(
                    lambda patch=attempt.patch: validate_second_order(  # type: ignore[misc]
                        parent.state(), patch, environment, thresholds, game.runner, game.config.validator
                    )
                )
            except SandboxUnavailable:
                return None
            if verdict.accepted:
                return BugRow(
                    bug_id=f"{attempt.episode_id}-bug2",
                    repository=parent.repository,
                    environment_key=parent.environment_key,
                    base_commit=parent.base_commit,
                    order=2,
                    parent_bug_id=parent.bug_id,
                    parent_episode_id=attempt.episode_id,
                    injector_episode_id=parent.injector_episode_id,
                    strategy=parent.strategy,
                    target=parent.target,
                    artifact=parent.artifact,
                    attempt_patch=attempt.patch,
                    fail_to_pass=verdict.fail_to_pass,
                    pass_to_pass=verdict.pass_to_pass,
                    failure=verdict.failure,
                    tree_digest=verdict.buggy_digest,
                    status="fresh",
                    created_update=update,
                )
        return None

    def _threshold_ranges(self) -> tuple[tuple[int, int], ...]:
        injector = self._game.config.injector
        return injector.min_passing_tests, injector.min_failing_tests, injector.min_changed_files

    # -- credit ------------------------------------------------------------------------------------------------------

    def _credit_injectors(self) -> None:
        """Rewards of injector groups all of whose bugs are measured; the others wait for a later update."""
        store, injector = self._game.store, self._game.config.injector
        for group in store.groups(role=Role.INJECTOR, status="open"):
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
                    self._give(row, credit)
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
        return credit_injector(accepted, bug is None, verdict.failed_check if verdict else "", rate, kind, alpha)

    def _give(self, row: EpisodeRow, credit: Credit) -> None:
        self._game.store.set_reward(row.episode_id, credit.reward, credit.note, masked=credit.masked)

    # -- training ----------------------------------------------------------------------------------------------------

    async def _train_and_commit(self, update: int) -> dict[str, Value]:
        game = self._game
        samples, consumed, finished, stats = self._batch(update)
        metrics: dict[str, float] = {}
        with self._phase("training"):
            if samples:
                metrics = await asyncio.to_thread(game.trainer.step, samples)
        with self._phase("saving"):
            checkpoint = game.run.checkpoint(update)
            await asyncio.to_thread(game.trainer.save, checkpoint)
        row: dict[str, Value] = {"update": update, "carried_gradient": bool(samples), **stats, **metrics}
        row |= {f"seconds/{phase.replace(' ', '_')}": round(seconds, 3) for phase, seconds in self._seconds.items()}
        with game.store.transaction():
            for episode_id, advantage in consumed:
                game.store.consume(episode_id, update, advantage)
            for group_id in finished:
                game.store.set_group_status(group_id, "consumed")
            game.store.commit_update(update, checkpoint.name, game.trainer.weight_version, bool(samples), json.dumps(row))
        game.run.discard_uncommitted(checkpoint.name, keep=game.config.train.keep_checkpoints)
        if samples:
            await asyncio.to_thread(game.engine.load_weights, game.trainer.export_weights(), game.trainer.weight_version)
            row |= getattr(game.engine, "last_sync", {})
        return row

    def _batch(self, update: int) -> tuple[list[Sample], list[tuple[str, float]], list[str], dict[str, Value]]:
        """The samples of all complete groups, the (episode, advantage) pairs they consume, the groups done with, and counts."""
        game, config = self._game, self._game.config
        samples: list[Sample] = []
        consumed: list[tuple[str, float]] = []
        finished: list[str] = []
        rewards: dict[str, list[float]] = {Role.INJECTOR: [], Role.SOLVER: []}
        counts: Counter[str] = Counter()
        lags: list[int] = []
        for group in game.store.groups(status="complete"):
            rows = [row for row in game.store.episodes(group_id=group.group_id) if not row.masked and row.reward is not None]
            rewards[group.role] += [row.reward for row in rows if row.reward is not None]
            fresh = [r for r in rows if not is_stale(r.weight_version_min, game.trainer.weight_version, config.max_lag)]
            counts["stale"] += len(rows) - len(fresh)
            counts["masked"] += group.size - len(rows)
            counts[f"{group.role}/groups"] += 1
            finished.append(group.group_id)
            # A group that keeps no more than half of its episodes says too little about its mean (recipes.md).
            advantages = [0.0] * len(fresh)
            if 2 * len(fresh) > group.size:
                advantages = compute_advantages(
                    config.trainer.advantage, [r.reward for r in fresh if r.reward is not None], [r.action_tokens for r in fresh]
                )
            else:
                counts["dropped_groups"] += 1
            consumed += [(row.episode_id, advantage) for row, advantage in zip(fresh, advantages, strict=True)]
            if not any(advantages):
                counts["zero_variance_groups"] += 1
                counts[f"{group.role}/zero_variance_groups"] += 1
                continue
            counts[f"{group.role}/gradient_groups"] += 1
            if group.role not in config.train.learn:
                counts["not_learned"] += len(fresh)
                continue
            for row, advantage in zip(fresh, advantages, strict=True):
                lags.append(lag(row.weight_version_min, game.trainer.weight_version))
                samples.append(_sample(self._read(row), advantage, config.trainer.credit))
        stats: dict[str, Value] = {}
        stats |= {f"groups/{name}": value for name, value in sorted(counts.items())}
        for role, values in rewards.items():
            if values:
                stats[f"{role}/reward"] = round(sum(values) / len(values), 4)
            if groups := counts[f"{role}/groups"]:
                stats[f"{role}/zero_variance"] = round(counts[f"{role}/zero_variance_groups"] / groups, 4)
        stats |= self._played(update)
        solved = [bug for bug in game.store.bugs(status="measured") if bug.solve_rate is not None]
        if solved:
            stats["curriculum/solve_rate"] = sum(bug.solve_rate or 0.0 for bug in solved) / len(solved)
        stats["curriculum/bugs"] = len(game.store.bugs())
        stats["lag/max"] = max(lags, default=0)
        return samples, consumed, finished, stats

    def _played(self, update: int) -> dict[str, Value]:
        """What was played in this update, whether it is trained on or not: episodes, sampled tokens, and the rates of success.

        injector/valid: accepted of the judged artifacts, repeated ones among them (their share of the accepted: injector/duplicate).
        solver/solved: passed of the graded attempts.
        """
        store = self._game.store
        stats: dict[str, Value] = {}
        for role in Role:
            rows = store.episodes(update=update, role=role)
            stats[f"{role}/episodes"] = len(rows)
            stats[f"{role}/sampled_tokens"] = sum(row.action_tokens for row in rows)
            if role is Role.INJECTOR:
                verdicts = [verdict for row in rows if (verdict := store.verdict(row.episode_id))]
                accepted = [verdict for verdict in verdicts if verdict.accepted]
                if verdicts:
                    stats["injector/valid"] = round(len(accepted) / len(verdicts), 4)
                if accepted:
                    repeated = sum(store.find_bug(f"{verdict.episode_id}-bug") is None for verdict in accepted)
                    stats["injector/duplicate"] = round(repeated / len(accepted), 4)
            else:
                attempts = [attempt for row in rows if (attempt := store.attempt(row.episode_id))]
                graded = [attempt.passed for attempt in attempts if attempt.passed is not None]
                if graded:
                    stats["solver/solved"] = round(sum(graded) / len(graded), 4)
        return stats

    def _read(self, row: EpisodeRow) -> Episode:
        return Episode.read(self._game.run.path / row.path)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._game.progress.phase(name)
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - started


def targets_of(environment: Environment, settings: InjectorSettings) -> list[Target]:
    """The functions that an injector may be given: short enough, and tested by a file that can carry an artifact."""
    return usable_targets(environment.targets, environment.baseline.passed, settings.max_target_lines, settings.min_passing_tests[1])


def _sample(episode: Episode, advantage: float, credit: Literal["episode", "kept"]) -> Sample:
    mask = learned_tokens(episode, advantage, credit)
    return Sample(episode.token_ids, mask, episode.logprobs, advantage, episode.role.value, 1.0)
