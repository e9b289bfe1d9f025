"""The metrics of an update: its batch, what was played since the last one, seconds by phase, idle shares.

It computes numbers from rows and clocks, and writes none of them. The names of metrics are a format, because
plots and `selfplay plan` read them.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfplay.agent.episode import Episode, Role
from selfplay.agent.tools import STANDARD, Toolbox
from selfplay.algorithm.token_credit import changing_turns, success_of_calls
from selfplay.curriculum.rows import AttemptRow, BugRow, EpisodeRow, VerdictRow
from selfplay.metrics import Value
from selfplay.orchestrator.batching import Batch
from selfplay.orchestrator.bug_rows import injected_bug_id
from selfplay.orchestrator.run_state import RunState
from selfplay.verdicts.confirmation import Confirmation

if TYPE_CHECKING:
    from selfplay.curriculum.store import Store

# Metric of the solver -> what it counts. Policies can learn such tricks, so a run shows how often they occur.
SECOND_GRADINGS = {
    "forged": Confirmation.FORGED,
    "not_repeated": Confirmation.NOT_REPEATED,
    "control_moved": Confirmation.NOT_CONFIRMED,
    "undisguised": Confirmation.UNDISGUISED,
}

# ---- the batch


def batch_metrics(batch: Batch) -> dict[str, Value]:
    """Counts of groups and episodes, mean rewards, shares of groups without a gradient, lags in updates."""
    counts = batch.counts
    metrics: dict[str, Value] = {f"groups/{name}": value for name, value in sorted(counts.items())}
    for role in Role:
        if rewards := batch.rewards[role]:
            metrics[f"{role}/reward"] = round(sum(rewards) / len(rewards), 4)
        if groups := counts[f"{role}/groups"]:
            metrics[f"{role}/zero_variance"] = round(counts[f"{role}/zero_variance_groups"] / groups, 4)
    metrics["lag/max"] = max(batch.lags, default=0)
    metrics["lag/mean"] = round(sum(batch.lags) / len(batch.lags), 3) if batch.lags else 0.0
    return metrics


def resampling_metrics(episodes: Sequence[Episode]) -> dict[str, Value]:
    """<role>/rejected_samples: share of the sampled turns that were sampled again (`agent.resamples`)."""
    metrics: dict[str, Value] = {}
    for role, played in _by_role(episodes):
        rejected = sum(turn.rejected for episode in played for turn in episode.turns)
        kept = sum(len(episode.turns) for episode in played)
        metrics[f"{role}/rejected_samples"] = round(rejected / (rejected + kept), 4)
    return metrics


def call_metrics(episodes: Sequence[Episode], tools: Toolbox = STANDARD) -> dict[str, Value]:
    """Of calls that were to change a file.

    <role>/new_changes: share that made a new change. <role>/changes_tried: mean number in an episode.
    """
    metrics: dict[str, Value] = {}
    for role, played in sorted(_by_role(episodes)):
        tried = sum(len(changing_turns(episode, tools)) for episode in played)
        metrics[f"{role}/new_changes"] = round(success_of_calls(played, tools), 4)
        metrics[f"{role}/changes_tried"] = round(tried / len(played), 2)
    return metrics


def _by_role(episodes: Iterable[Episode]) -> Collection[tuple[Role, list[Episode]]]:
    found: defaultdict[Role, list[Episode]] = defaultdict(list)
    for episode in episodes:
        found[episode.role].append(episode)
    return found.items()


# ---- what was played


@dataclass(frozen=True)
class Played:
    """Episodes, whether they are trained on or not, and how they were judged.

    repeated: number of accepted artifacts that repeat a bug of the run.
    """

    episodes: Sequence[EpisodeRow]
    verdicts: Sequence[VerdictRow] = ()
    repeated: int = 0
    attempts: Sequence[AttemptRow] = ()


def read_played(store: Store, episodes: Sequence[EpisodeRow]) -> Played:
    """The episodes with their verdicts and attempts from the database."""
    injected = [row.episode_id for row in episodes if row.role == Role.INJECTOR]
    solved = [row.episode_id for row in episodes if row.role == Role.SOLVER]
    verdicts = [verdict for episode_id in injected if (verdict := store.verdict(episode_id))]
    attempts = [attempt for episode_id in solved if (attempt := store.attempt(episode_id))]
    accepted = [verdict.episode_id for verdict in verdicts if verdict.accepted]
    repeated = sum(store.find_bug(injected_bug_id(episode_id)) is None for episode_id in accepted)
    return Played(episodes, verdicts, repeated, attempts)


def played_metrics(played: Played) -> dict[str, Value]:
    """Episodes, sampled tokens and rates of success, by role.

    <role>/failed_calls: share of the turns whose call failed, or that held no call.
    injector/valid: share of the judged artifacts that were accepted, repeated ones among them.
    injector/duplicate: share of the accepted artifacts that repeat a bug.
    injector/void: bugs that a control run voided.
    solver/solved: share of the graded attempts that passed.
    Of the graded attempts, the number of those with this `Confirmation`:
    solver/forged, solver/not_repeated, solver/undisguised, and solver/control_moved (NOT_CONFIRMED).
    """
    metrics: dict[str, Value] = {}
    for role in Role:
        rows = [row for row in played.episodes if row.role == role]
        metrics[f"{role}/episodes"] = len(rows)
        metrics[f"{role}/sampled_tokens"] = sum(row.action_tokens for row in rows)
        if turns := sum(row.turns for row in rows):
            metrics[f"{role}/failed_calls"] = round(sum(row.failed_turns for row in rows) / turns, 4)
        metrics |= _injector_rates(played) if role is Role.INJECTOR else _solver_rates(played)
    return metrics


def _injector_rates(played: Played) -> dict[str, Value]:
    metrics: dict[str, Value] = {}
    accepted = sum(verdict.accepted for verdict in played.verdicts)
    if played.verdicts:
        metrics["injector/valid"] = round(accepted / len(played.verdicts), 4)
    if accepted:
        metrics["injector/duplicate"] = round(played.repeated / accepted, 4)
    return metrics


def _solver_rates(played: Played) -> dict[str, Value]:
    graded = [attempt.passed for attempt in played.attempts if attempt.passed is not None]
    if not graded:
        return {}
    found = Counter(attempt.confirmed for attempt in played.attempts)
    void = {row.bug_id for row in played.attempts if row.confirmed is Confirmation.NOT_CONFIRMED}
    return {
        "injector/void": len(void),
        "solver/solved": round(sum(graded) / len(graded), 4),
        **{f"solver/{name}": found[kind] for name, kind in SECOND_GRADINGS.items()},
    }


def curriculum_metrics(bugs: Sequence[BugRow]) -> dict[str, Value]:
    """The number of bugs, and the mean of the measured solve rates."""
    metrics: dict[str, Value] = {}
    rates = [bug.solve_rate for bug in bugs if bug.status == "measured" and bug.solve_rate is not None]
    if rates:
        metrics["curriculum/solve_rate"] = sum(rates) / len(rates)
    metrics["curriculum/bugs"] = len(bugs)
    return metrics


class CountedEpisodes:
    """Which episodes the metrics count already, so that each counts once, also in a run that is resumed.

    A wave of which every episode is counted is one number, to keep the list of episodes short.
    """

    def __init__(self, state: RunState, last_update: int) -> None:
        waves = state.counted_waves()
        self._state = state
        self._waves = set(range(1, last_update + 1)) if waves is None else waves
        self._episodes = state.counted_episodes()  # of the other waves

    def count_new(self, store: Store, started: Iterable[int], in_play: Collection[int]) -> list[EpisodeRow]:
        """The recorded episodes that were not counted, which count from now on.

        started: all waves that began so far. in_play: those that may still record episodes.
        """
        waves = [wave for wave in started if wave not in self._waves]
        before, self._episodes = self._episodes, set()
        self._waves |= {wave for wave in waves if wave not in in_play}
        played = [row for wave in waves for row in store.episodes(update=wave)]
        self._episodes.update(row.episode_id for row in played if row.update not in self._waves)
        return [row for row in played if row.episode_id not in before]

    def save(self) -> None:
        self._state.set_counted(self._episodes, self._waves)


# ---- clocks


class PhaseClock:
    """Adds up the seconds of an update's phases."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._running: dict[str, float] = {}  # phase -> when it began

    def restart(self, earlier: Mapping[str, Value] | None = None) -> None:
        """earlier: the metrics of this clock in a process that was stopped in the same update."""
        self._seconds.clear()
        for name, seconds in (earlier or {}).items():
            if name.startswith("seconds/") and isinstance(seconds, int | float):
                self._seconds[name] += seconds

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        name = f"seconds/{phase.replace(' ', '_')}"
        self._running[name] = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - self._running.pop(name)

    def metrics(self) -> dict[str, Value]:
        """seconds/<phase> of the update until now, those of the running phase too."""
        now = time.monotonic()
        seconds = dict(self._seconds) | {
            name: self._seconds.get(name, 0.0) + now - began for name, began in self._running.items()
        }
        return {name: round(value, 3) for name, value in seconds.items()}


class IdleClock:
    """Shares of the time between two updates in which the trainer, or the engine, had nothing to do."""

    def __init__(self) -> None:
        self.restart(0.0, 0)

    def restart(self, engine_busy_s: float, episodes: int) -> None:
        """engine_busy_s, episodes: their sums since the run began."""
        self._since, self._stepped_s = time.monotonic(), 0.0
        self._busy_s, self._episodes = engine_busy_s, episodes

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """The trainer makes a step meanwhile."""
        started = time.monotonic()
        yield
        self._stepped_s += time.monotonic() - started

    def shares(self, engine_busy_s: float, episodes: int) -> dict[str, Value]:
        """The shares, and episodes an hour, since the last call or restart; then restart.

        engine_busy_s, episodes: their sums since the run began.
        """
        passed = max(time.monotonic() - self._since, 1e-9)
        shares: dict[str, Value] = {
            "idle/trainer": round(max(0.0, 1 - self._stepped_s / passed), 4),
            "idle/engine": round(max(0.0, 1 - (engine_busy_s - self._busy_s) / passed), 4),
            "episodes_per_hour": round((episodes - self._episodes) * 3600 / passed, 1),
        }
        self.restart(engine_busy_s, episodes)
        return shares
