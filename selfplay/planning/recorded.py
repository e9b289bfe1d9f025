"""Reads a finished run: its episodes as a workload, and the speeds of its hardware.

Reads the run folder and writes nothing. Invariant: it uses only what was recorded in the requested updates.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfplay.agent.episode import Episode, Role
from selfplay.curriculum.rows import EpisodeRow
from selfplay.curriculum.store import Store
from selfplay.errors import RunError
from selfplay.metrics import read_metrics
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.planning.fitting import Timing, fit_server, fit_trainer
from selfplay.planning.hardware import ModelSize, ServerSpeed, TrainerSpeed
from selfplay.planning.workload import EpisodeShape, GroupShape, Stretch, Workload

# Called with the number of episodes that are read and the number to read.
Report = Callable[[int, int], None]
PHASES = ("injecting", "solving", "second order", "training")
_MAX_EPISODES = 6000  # of a longer run, the last updates are read


@dataclass(frozen=True)
class Recorded:
    """A run, or some of its updates.

    first, last     the updates that were read
    server          speed fitted to the turns
    trainer         speed fitted to the updates
    sync_s          mean seconds per update of saving and sending weights
    batch_tokens    mean trained tokens per update
    plans           (injector groups, solver groups) of each update
    second_order_s  seconds of second-order verdicts of each update
    phases_s        measured mean seconds of each phase of an update
    servers, in_flight, judges, max_lag: settings of the run
    """

    name: str
    first: int
    last: int
    workload: Workload
    server: ServerSpeed
    trainer: TrainerSpeed
    sync_s: float
    batch_tokens: float
    plans: tuple[tuple[int, int], ...]
    second_order_s: tuple[float, ...]
    phases_s: Mapping[str, float]
    servers: int
    in_flight: int
    judges: int
    max_lag: int

    @property
    def update_s(self) -> float:
        return sum(self.phases_s.values())


def update_rows(folder: RunFolder) -> dict[int, dict[str, Any]]:
    """The metrics of each finished update. Raises RunError if there are none."""
    rows = {
        int(row["update"]): row
        for row in read_metrics(folder.metrics)
        if "update" in row and "seconds/solving" in row
    }
    if not rows:
        raise RunError(
            f"{folder.metrics} holds no finished update, so there is nothing to plan from. Let the run "
            f"commit some (selfplay train --resume {folder.path.name}), or plan without a run: selfplay "
            "plan --workload paper."
        )
    return rows


def read_run(
    folder: RunFolder, first: int = 1, last: int = 0, report: Report = lambda done, total: None
) -> Recorded:
    """Read the updates `first` to `last` (0: the last one of the run).

    report: called with the episodes that are read, and with the number to read (0: not known yet).

    Raises RunError if they hold no update, no episode or no consumed solver group.
    """
    report(0, 0)
    rows = update_rows(folder)
    last = last or max(rows)
    config = folder.config()
    with Store.open(folder.database, writer=False) as store:
        episodes = store.episodes()
        first = _later_start(episodes, first, last)
        members: dict[str, list[EpisodeRow]] = defaultdict(list)
        for row in episodes:
            members[row.group_id].append(row)
        groups = _read_groups(folder, store, members, (first, last), report)
    chosen = [rows[update] for update in sorted(rows) if first <= update <= last]
    span = f"updates {first} to {last}"
    if not chosen or not any(group.shape.episodes for group in groups):
        raise RunError(
            f"the run {folder.path.name} has no episode of the {span} in {folder.episodes}. "
            "Give a run whose episodes are kept, or plan without one: selfplay plan --workload paper."
        )
    timings = [timing for group in groups for timing in group.timings]
    trained = [row for row in chosen if row.get("tokens")]
    return Recorded(
        name=folder.path.name,
        first=first,
        last=last,
        workload=_workload(folder.path.name, span, groups),
        server=fit_server(timings, config.engine.max_batch, config.engine.servers),
        trainer=fit_trainer([(float(row["tokens"]), float(row["seconds/training"])) for row in trained]),
        sync_s=_mean_of(chosen, "seconds/saving", "sync/seconds"),
        batch_tokens=_mean_of(trained, "tokens") if trained else 0.0,
        plans=_plans(groups),
        second_order_s=tuple(float(row.get("seconds/second_order", 0)) for row in chosen),
        phases_s=measured_phases(chosen),
        servers=len(config.engine.urls) or config.engine.servers,
        in_flight=config.train.episodes_in_flight,
        judges=config.train.workers,
        max_lag=config.max_lag,
    )


def measured_phases(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean seconds of each phase of an update. Saving and sending weights count as training."""
    return {
        "injecting": _mean_of(rows, "seconds/injecting"),
        "solving": _mean_of(rows, "seconds/solving"),
        "second order": _mean_of(rows, "seconds/second_order"),
        "training": _mean_of(rows, "seconds/training", "seconds/saving", "sync/seconds"),
    }


def _mean_of(rows: Sequence[Mapping[str, Any]], *keys: str) -> float:
    """The mean over rows of the sum of these keys. A missing key counts as 0."""
    return statistics.fmean([sum(float(row.get(key, 0)) for key in keys) for row in rows])


def run_model(folder: RunFolder) -> ModelSize:
    """The policy of the run's last checkpoint, from its config.json and the headers of its weight files.

    Raises RunError if the run has no checkpoint, or if the checkpoint does not describe its shape.
    """
    checkpoints = sorted(folder.checkpoints.glob("update-*/config.json"))
    if not checkpoints:
        raise RunError(
            f"{folder.checkpoints} holds no checkpoint, so the policy's size is not known. Give --parameters."
        )
    try:
        shape = json.loads(checkpoints[-1].read_text(encoding="utf-8"))
        heads = shape.get("num_key_value_heads") or shape["num_attention_heads"]
        head = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
        count = sum(_parameters(path) for path in sorted(checkpoints[-1].parent.glob("*.safetensors")))
        return ModelSize(
            float(count), int(shape["num_hidden_layers"]), int(shape["hidden_size"]), int(heads) * int(head)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{checkpoints[-1].parent} does not describe the policy's size ({error!r}). Give --parameters."
        ) from error


def _parameters(path: Path) -> int:
    """Number of parameters in a safetensors file, from its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, entry in header.items():
        if name != "__metadata__":
            size = 1
            for side in entry["shape"]:
                size *= side
            total += size
    return total


# ---- groups


@dataclass(frozen=True)
class _PlayedGroup:
    """A group of the run. is_consumed: an update consumed it, so its advantages are known."""

    update: int
    shape: GroupShape
    is_consumed: bool
    timings: tuple[Timing, ...]


def _later_start(episodes: Sequence[EpisodeRow], first: int, last: int) -> int:
    """The first update to read, so that at most _MAX_EPISODES episodes are read."""
    counts: dict[int, int] = defaultdict(int)
    for row in episodes:
        if first <= row.update <= last:
            counts[row.update] += 1
    total = 0
    for update in sorted(counts, reverse=True):
        total += counts[update]
        if total > _MAX_EPISODES:
            return min(last, update + 1)
    return first


def _read_groups(
    folder: RunFolder,
    store: Store,
    members: Mapping[str, Sequence[EpisodeRow]],
    span: tuple[int, int],
    report: Report,
) -> list[_PlayedGroup]:
    """The groups of the updates from span[0] to span[1]. members: episodes of each group."""
    first, last = span
    judge_s = {verdict.episode_id: verdict.duration_s for verdict in store.verdicts()}
    judge_s |= {attempt.episode_id: attempt.duration_s for attempt in store.attempts()}
    bugs: dict[str, int] = defaultdict(int)
    for bug in store.bugs(order=1):
        bugs[bug.injector_episode_id] += 1
    found = []
    chosen = [group for group in store.groups() if first <= group.update <= last]
    total = sum(len(members.get(group.group_id, ())) for group in chosen)
    done = 0
    report(done, total)
    for group in chosen:
        rows = members.get(group.group_id, ())
        shapes, timings = [], []
        for row in rows:
            episode = _read_episode(folder.path / row.path) if row.path else None
            if episode is not None and episode.turns:
                shapes.append(episode_shape(episode, judge_s.get(row.episode_id, 0.0)))
                timings += turn_timings(episode)
            done += 1
            report(done, total)
        consumed = [row for row in rows if row.consumed_update is not None and row.consumed_update <= last]
        shape = GroupShape(
            role=Role(group.role),
            episodes=tuple(shapes),
            bugs=sum(bugs[row.episode_id] for row in rows),
            has_gradient=any(row.advantage for row in consumed),
        )
        found.append(_PlayedGroup(group.update, shape, bool(consumed), tuple(timings)))
    return found


def _read_episode(path: Path) -> Episode | None:
    """The episode; None if the file is missing or damaged."""
    try:
        return Episode.read(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def episode_shape(episode: Episode, judge_s: float) -> EpisodeShape:
    """The costs of an episode. Seconds that belong to no turn count as spent before the first turn.

    Such seconds open the sandbox, prepare the workspace and read the submission.
    """
    parts = []
    held = 0
    for turn in episode.turns:
        begin, end = turn.tokens
        parts.append(Stretch(max(0, begin - held), end - begin, turn.act_s))
        held = end
    return EpisodeShape(_seconds_before(episode), tuple(parts), judge_s, len(parts))


def turn_timings(episode: Episode) -> list[Timing]:
    """The generation of each turn, with the seconds that belong to no turn before the first."""
    now = episode.started_at + _seconds_before(episode)
    timings = []
    held = 0
    for turn in episode.turns:
        begin, end = turn.tokens
        timings.append(Timing(now, now + turn.generate_s, max(0, begin - held), end - begin))
        now += turn.generate_s + turn.act_s
        held = end
    return timings


def _seconds_before(episode: Episode) -> float:
    return max(0.0, episode.duration_s - sum(turn.generate_s + turn.act_s for turn in episode.turns))


def _workload(name: str, span: str, groups: Sequence[_PlayedGroup]) -> Workload:
    """The workload of the consumed groups. Raises RunError if no solver group was consumed."""
    known = [group.shape for group in groups if group.is_consumed and group.shape.episodes]
    injectors = tuple(shape for shape in known if shape.role is Role.INJECTOR)
    solvers = tuple(shape for shape in known if shape.role is Role.SOLVER)
    if not solvers:
        raise RunError(
            f"no solver group of the {span} of {name} was consumed by an update, so it is not known what "
            "would be trained on. Let the run commit more updates, or plan without one: selfplay plan "
            "--workload paper."
        )
    bugs = statistics.fmean([shape.bugs for shape in injectors]) if injectors else 0.0
    played = {role: sum(group.shape.role is role for group in groups) for role in Role}
    replays = 0.0
    if injectors:
        replays = max(0.0, played[Role.SOLVER] / played[Role.INJECTOR] - bugs)
    episodes = sum(len(group.shape.episodes) for group in groups)
    assumptions = (
        f"read from {name}, {span}: {len(groups)} groups, {episodes} episodes with their turns, tokens, "
        "sandbox times and judging times",
        "sandbox and judging times are those of the run's machine, with everything else that ran on it",
        f"in the run an injector group made {bugs:.1f} new bugs and came with {replays:.1f} solver groups "
        f"on other bugs; rewards differed in {_gradient_share(injectors):.0%} of injector groups and in "
        f"{_gradient_share(solvers):.0%} of solver groups",
    )
    return Workload(f"run {name}", injectors, solvers, replays, assumptions)


def _gradient_share(groups: Sequence[GroupShape]) -> float:
    return sum(group.has_gradient for group in groups) / len(groups) if groups else 0.0


def _plans(groups: Sequence[_PlayedGroup]) -> tuple[tuple[int, int], ...]:
    """(injector groups, solver groups) of each update."""
    plans: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
    for group in groups:
        plans[group.update][group.shape.role is Role.SOLVER] += 1
    return tuple((injecting, solving) for injecting, solving in plans.values())
