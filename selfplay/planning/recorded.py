"""A finished run as a workload and as speeds: its episodes' tokens and timings, the server's and the trainer's speed fitted to them.

Reads the run folder and writes nothing. Invariant: only what was recorded in the updates asked for is used.
"""

from __future__ import annotations

import json
import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from selfplay.agent.episode import Episode, Role
from selfplay.curriculum.rows import EpisodeRow
from selfplay.curriculum.store import Store
from selfplay.errors import RunError
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.planning.hardware import ModelSize, ServerSpeed, TrainerSpeed, hats
from selfplay.planning.workload import EpisodeShape, GroupShape, Stretch, Workload
from selfplay.viewing.summary import read_metrics

PHASES = ("injecting", "solving", "second order", "training")
_KNOTS = (
    0.0,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
)  # shares of drawn tokens between which a server's speed is a straight line
_MOST_EPISODES = 6000  # read from a run; of a longer one the last updates


@dataclass(frozen=True)
class Recorded:
    """A run, or some of its updates.

    server         fitted to the turns; trainer: to the updates; sync_s: saving and sending weights, mean seconds of an update
    batch_tokens   trained on in an update, on average
    plans          (injector groups, solver groups) of each update; second_order_s: seconds of its verdicts
    phases_s       measured mean seconds of an update's phases; update_s: of all of them
    servers, in_flight, judges, max_lag: as the run was configured
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
    """The metrics of each update. Raises RunError where there are none: nothing was played, nothing can be planned from it."""
    rows = {
        int(row["update"]): row
        for row in read_metrics(folder.metrics)
        if "update" in row and "seconds/solving" in row
    }
    if not rows:
        raise RunError(
            f"{folder.metrics} holds no finished update, so there is nothing to plan from. Let the run commit some "
            f"(selfplay train --resume {folder.path.name}), or plan without a run: selfplay plan --workload paper."
        )
    return rows


def read_run(folder: RunFolder, first: int = 1, last: int = 0) -> Recorded:
    """Updates `first` to `last` (0: the last there is). Raises RunError when the run holds no update or no episode of them."""
    rows = update_rows(folder)
    last = last or max(rows)
    config = folder.config()
    with Store.open(folder.database, writer=False) as store:
        first = _later_start(store, first, last)
        groups = _groups(folder, store, first, last)
    chosen = [rows[update] for update in sorted(rows) if first <= update <= last]
    if not chosen or not any(group.shape.episodes for group in groups):
        raise RunError(
            f"the run {folder.path.name} has no episode of the updates {first} to {last} in {folder.episodes}. "
            "Give a run whose episodes are kept, or plan without one: selfplay plan --workload paper."
        )
    plans: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
    for group in groups:
        plans[group.update][group.shape.role is Role.SOLVER] += 1
    known = [group for group in groups if group.is_decided and group.shape.episodes]
    injectors = tuple(group.shape for group in known if group.shape.role is Role.INJECTOR)
    solvers = tuple(group.shape for group in known if group.shape.role is Role.SOLVER)
    if not solvers:
        raise RunError(
            f"no solver group of the updates {first} to {last} of {folder.path.name} was consumed by an update, so what would be "
            "trained on is not known. Let the run commit more updates, or plan without one: selfplay plan --workload paper."
        )
    bugs = statistics.fmean([group.bugs for group in injectors]) if injectors else 0.0
    played = [sum(group.shape.role is role for group in groups) for role in (Role.INJECTOR, Role.SOLVER)]
    replays = max(0.0, played[1] / played[0] - bugs) if played[0] and injectors else 0.0
    timings = [timing for group in groups for timing in group.timings]
    server = fit_server(timings, config.engine.max_batch, config.engine.servers)
    trained = [row for row in chosen if row.get("tokens")]
    trainer = fit_trainer([(float(row["tokens"]), float(row["seconds/training"])) for row in trained])
    workload = Workload(
        name=f"run {folder.path.name}",
        injectors=injectors,
        solvers=solvers,
        replays=replays,
        assumptions=(
            f"read from {folder.path.name}, updates {first} to {last}: {sum(played)} groups, "
            f"{sum(len(group.shape.episodes) for group in groups)} episodes with their turns, tokens, sandbox and judging times",
            "sandbox and judging times are taken as they were on the run's machine, with what else ran there",
            f"in the run {bugs:.1f} new bugs came of an injector group and {replays:.1f} groups replayed others for each; "
            f"rewards differed in {_share(injectors):.0%} of injector and {_share(solvers):.0%} of solver groups",
        ),
    )
    return Recorded(
        name=folder.path.name,
        first=first,
        last=last,
        workload=workload,
        server=server,
        trainer=trainer,
        sync_s=statistics.fmean(
            [float(row.get("seconds/saving", 0)) + float(row.get("sync/seconds", 0)) for row in chosen]
        ),
        batch_tokens=statistics.fmean([float(row["tokens"]) for row in trained]) if trained else 0.0,
        plans=tuple((injecting, solving) for injecting, solving in plans.values()),
        second_order_s=tuple(float(row.get("seconds/second_order", 0)) for row in chosen),
        phases_s=measured_phases(chosen),
        servers=len(config.engine.urls) or config.engine.servers,
        in_flight=config.train.episodes_in_flight,
        judges=config.train.workers,
        max_lag=config.max_lag,
    )


def measured_phases(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean seconds of an update's phases; saving and sending weights count to training."""

    def mean(*keys: str) -> float:
        return statistics.fmean([sum(float(row.get(key, 0)) for key in keys) for row in rows])

    return {
        "injecting": mean("seconds/injecting"),
        "solving": mean("seconds/solving"),
        "second order": mean("seconds/second_order"),
        "training": mean("seconds/training", "seconds/saving", "sync/seconds"),
    }


def run_model(folder: RunFolder) -> ModelSize:
    """The policy of the run's last checkpoint, from its config.json and the heads of its weight files.

    Raises RunError where there is none, or where it does not say its shape.
    """
    checkpoints = sorted(folder.checkpoints.glob("update-*/config.json"))
    if not checkpoints:
        raise RunError(
            f"{folder.checkpoints} holds no checkpoint that would tell the policy's size. Give --parameters."
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
            f"{checkpoints[-1].parent} does not tell the policy's size ({error!r}). Give --parameters."
        ) from error


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its head: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, entry in head.items():
        if name != "__metadata__":
            size = 1
            for side in entry["shape"]:
                size *= side
            total += size
    return total


# ---- groups


@dataclass(frozen=True)
class Timing:
    """One turn on the run's clock: begins and ends drawing (seconds), reads and draws so many tokens."""

    begins: float
    ends: float
    read: int
    drawn: int


@dataclass(frozen=True)
class _Recorded:
    update: int
    shape: GroupShape
    is_decided: bool  # its advantages are known
    timings: tuple[Timing, ...]


def _later_start(store: Store, first: int, last: int) -> int:
    """The first update of those from which not too many episodes are read."""
    counts: dict[int, int] = defaultdict(int)
    for row in store.episodes():
        if first <= row.update <= last:
            counts[row.update] += 1
    total = 0
    for update in sorted(counts, reverse=True):
        total += counts[update]
        if total > _MOST_EPISODES:
            return min(last, update + 1)
    return first


def _groups(folder: RunFolder, store: Store, first: int, last: int) -> list[_Recorded]:
    judged = {verdict.episode_id: verdict.duration_s for verdict in store.verdicts()}
    judged |= {attempt.episode_id: attempt.duration_s for attempt in store.attempts()}
    bugs: dict[str, int] = defaultdict(int)
    for bug in store.bugs(order=1):
        bugs[bug.injector_episode_id] += 1
    members: dict[str, list[EpisodeRow]] = defaultdict(list)
    for row in store.episodes():
        members[row.group_id].append(row)
    found = []
    for group in store.groups():
        if not first <= group.update <= last:
            continue
        rows = members[group.group_id]
        shapes, timings = [], []
        for row in rows:
            episode = _episode(folder.path / row.path) if row.path else None
            if episode is not None and episode.turns:
                shapes.append(episode_shape(episode, judged.get(row.episode_id, 0.0)))
                timings += turn_timings(episode)
        decided = [row for row in rows if row.consumed_update is not None and row.consumed_update <= last]
        shape = GroupShape(
            role=Role(group.role),
            episodes=tuple(shapes),
            bugs=sum(bugs[row.episode_id] for row in rows),
            carries=any(row.advantage for row in decided),
        )
        found.append(_Recorded(group.update, shape, bool(decided), tuple(timings)))
    return found


def _episode(path: Path) -> Episode | None:
    """None for a file that is gone or torn."""
    try:
        return Episode.read(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def episode_shape(episode: Episode, judge_s: float) -> EpisodeShape:
    """What an episode took. Seconds that belong to no turn (sandbox, workspace, reading what was handed in) stand before the first."""
    parts = []
    held = 0
    for turn in episode.turns:
        begin, end = turn.tokens
        parts.append(Stretch(max(0, begin - held), end - begin, turn.act_s))
        held = end
    turns_s = sum(turn.generate_s + turn.act_s for turn in episode.turns)
    return EpisodeShape(max(0.0, episode.duration_s - turns_s), tuple(parts), judge_s, len(parts))


def turn_timings(episode: Episode) -> list[Timing]:
    """When each turn drew its tokens, taking the seconds that belong to no turn as spent before the first."""
    at = episode.started_at + max(
        0.0, episode.duration_s - sum(turn.generate_s + turn.act_s for turn in episode.turns)
    )
    timings = []
    held = 0
    for turn in episode.turns:
        begin, end = turn.tokens
        timings.append(Timing(at, at + turn.generate_s, max(0, begin - held), end - begin))
        at += turn.generate_s + turn.act_s
        held = end
    return timings


def _share(groups: Sequence[GroupShape]) -> float:
    return sum(group.carries for group in groups) / len(groups) if groups else 0.0


# ---- speeds


def fit_server(timings: Sequence[Timing], most: int, servers: int = 1) -> ServerSpeed:
    """Seconds of drawing = drawn · f(n) + c · tokens read on the server meanwhile; n: requests on it, averaged over the turn.

    f is the line through a value at each of the knots (quantiles of n, weighed by drawn tokens). Least squares over all turns, each weighed
    by 1 / drawn, so that predicted seconds add up to the measured ones; what would be negative is 0. With several servers turns are taken
    as spread evenly. Raises RunError when no turn was timed.
    """
    timed = [timing for timing in timings if timing.ends > timing.begins and timing.drawn]
    if not timed:
        raise RunError(
            "no turn of the run has a generation time, so its engine's speed is unknown. Give a run that was played by a model."
        )
    edges = sorted([(timing.begins, 1) for timing in timed] + [(timing.ends, -1) for timing in timed])
    times = [time for time, _ in edges]
    counts = list(accumulate(change for _, change in edges))
    area = [
        0.0,
        *accumulate(
            count * (end - begin) for count, begin, end in zip(counts, times, times[1:], strict=False)
        ),
    ]
    begun = sorted((timing.begins, timing.read) for timing in timed)
    begins = [time for time, _ in begun]
    reads = [0, *accumulate(read for _, read in begun)]

    def integral(time: float) -> float:
        place = bisect_right(times, time) - 1
        return area[place] + counts[place] * (time - times[place])

    areas = [integral(t.ends) - integral(t.begins) for t in timed]
    fullness = [max(1.0, area / (t.ends - t.begins) / servers) for area, t in zip(areas, timed, strict=True)]
    knots = _knots(sorted((n, t.drawn) for n, t in zip(fullness, timed, strict=True)))
    rows = []
    for timing, n in zip(timed, fullness, strict=True):
        read = (reads[bisect_left(begins, timing.ends)] - reads[bisect_left(begins, timing.begins)]) / servers
        rows.append([*(timing.drawn * share for share in hats(knots, n)), max(float(timing.read), read)])
    *seconds, reading = _least_squares(
        rows, [t.ends - t.begins for t in timed], [1.0 / t.drawn for t in timed]
    )
    return ServerSpeed(most=most, read_s=reading, measured=tuple(zip(knots, seconds, strict=True)))


def _knots(weighed: Sequence[tuple[float, float]]) -> list[float]:
    """Values at fixed shares of the whole weight, the ends among them, at least 1 apart. weighed: rising (value, weight)."""
    total = sum(weight for _, weight in weighed)
    knots: list[float] = []
    passed = 0.0
    wanted = list(_KNOTS)
    for value, weight in weighed:
        passed += weight
        while wanted and passed >= wanted[0] * total - 1e-9 * total:
            wanted.pop(0)
            if not knots or value >= knots[-1] + 1:
                knots.append(value)
    return knots


def fit_trainer(updates: Sequence[tuple[float, float]]) -> TrainerSpeed:
    """Seconds of an update = a + b · tokens, least squares over (tokens, seconds); neither is negative. No updates: no time."""
    if not updates:
        return TrainerSpeed()
    fixed, each = _least_squares(
        [(1.0, tokens) for tokens, _ in updates], [seconds for _, seconds in updates], [1.0] * len(updates)
    )
    return TrainerSpeed(fixed_s=fixed, token_s=each)


def _least_squares(
    rows: Sequence[Sequence[float]], values: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """Weighted least squares with coefficients of at least 0: the most negative one is taken out until none is."""
    used = list(range(len(rows[0])))
    while used:
        matrix = [
            [sum(w * row[i] * row[j] for row, w in zip(rows, weights, strict=True)) for j in used]
            for i in used
        ]
        right = [
            sum(w * row[i] * value for row, value, w in zip(rows, values, weights, strict=True)) for i in used
        ]
        solved = _solve(matrix, right)
        lowest = min(range(len(used)), key=lambda place: solved[place])
        if solved[lowest] >= 0:
            found = dict(zip(used, solved, strict=True))
            return [found.get(place, 0.0) for place in range(len(rows[0]))]
        del used[lowest]
    return [0.0] * len(rows[0])


def _solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Gauss with pivots; a direction that the data does not tell of gets 0."""
    size = len(right)
    work = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    scale = [abs(matrix[place][place]) or 1.0 for place in range(size)]
    free = []
    for place in range(size):
        pivot = max(range(place, size), key=lambda line: abs(work[line][place]))
        work[place], work[pivot] = work[pivot], work[place]
        if abs(work[place][place]) < 1e-12 * scale[place]:
            free.append(place)
            work[place] = [1.0 if column == place else 0.0 for column in range(size + 1)]
        for line in range(size):
            if line != place:
                factor = work[line][place] / work[place][place]
                work[line] = [a - factor * b for a, b in zip(work[line], work[place], strict=True)]
    return [work[place][size] / work[place][place] for place in range(size)]
