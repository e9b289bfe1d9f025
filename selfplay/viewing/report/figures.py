"""The charts of a report. Each function takes runs and returns a drawing, or None if nothing was measured."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from selfplay.verdicts.confirmation import Confirmation
from selfplay.viewing.changes import diffstat
from selfplay.viewing.report.charts import Line, Point, histogram, line_chart, stacked_chart, windows
from selfplay.viewing.report.rates import rate_of

if TYPE_CHECKING:
    from selfplay.curriculum.rows import BugRow, EpisodeRow, VerdictRow
    from selfplay.viewing.report.run_data import RunData

MOST_POINTS = 24  # of a line whose values are pooled over updates
MOST_PARTS = 7  # of stacked bars; the rest is one part
Runs = Sequence["RunData"]
Drawings = list[Markup | None]  # one for each run
Series = Callable[["RunData"], list[Point]]


def over_runs(runs: Runs, series: Mapping[str, Series]) -> list[Line]:
    """A line for each series of each run.

    In one run the series have colours of their own. Of several, the run decides the colour, and the series
    how the line is dashed.
    """
    lines = []
    for number, run in enumerate(runs):
        for place, (name, points) in enumerate(series.items()):
            label = name if len(runs) == 1 else f"{run.name}: {name}" if name else run.name
            colour, dash = (place, 0) if len(runs) == 1 else (number, place)
            lines.append(Line(label, points(run), colour, dash))
    return lines


def metrics_chart(runs: Runs, names: Mapping[str, str], shares: bool = False) -> Markup | None:
    """Metrics of the updates. names: metric -> label."""

    def points_of(metric: str) -> Series:
        return lambda run: [Point(update, value) for update, value in run.metric(metric)]

    return line_chart(over_runs(runs, {label: points_of(metric) for metric, label in names.items()}), shares)


# ---- learning


def own_solve_rates(runs: Runs) -> Markup | None:
    """The share of graded attempts at the run's own bugs that repaired them, by update, with its interval."""
    return line_chart(over_runs(runs, {"own bugs": _own_points}), shares=True)


def _own_points(run: RunData) -> list[Point]:
    by_update: dict[int, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for attempt in run.attempts:
        if attempt.passed is not None:
            by_update[run.update_of(attempt.episode_id)][attempt.bug_id].append(attempt.passed)
    return _pooled(by_update)


def _pooled(by_update: Mapping[int, Mapping[str, Sequence[bool]]]) -> list[Point]:
    points = []
    for window in windows(by_update, MOST_POINTS):
        bugs: dict[str, list[bool]] = defaultdict(list)
        for update in window:
            for bug, outcomes in by_update.get(update, {}).items():
                bugs[bug] += outcomes
        if bugs:
            rate = rate_of([sum(some) / len(some) for some in bugs.values()])
            points.append(Point(_middle(window), rate.mean, rate.low, rate.high))
    return points


def _middle(window: range) -> float:
    return (window[0] + window[-1]) / 2


def evaluated_rates(runs: Runs) -> Markup | None:
    """The repair rate on bugs outside the run, such as those of people, by set, with its interval."""
    sets = sorted({name for run in runs for found in run.evaluations for name in found.rates()})

    def points_of(name: str) -> Series:
        return lambda run: [
            Point(found.update, rate.mean, rate.low, rate.high)
            for found in run.evaluations
            if (rate := found.rates().get(name)) is not None
        ]

    return line_chart(over_runs(runs, {f"set {name}": points_of(name) for name in sets}), shares=True)


# ---- bugs


def difficulty(runs: Runs) -> Drawings:
    """How many measured bugs have which solve rate."""
    from selfplay.viewing.summary import solve_rate_bins

    rates = [[bug.solve_rate for bug in run.bugs if bug.solve_rate is not None] for run in runs]
    return [histogram([(label, float(count)) for label, count in solve_rate_bins(some)]) for some in rates]


def new_bug_rates(runs: Runs) -> Markup | None:
    """The first measured solve rate of the bugs of an update: the mean over bugs, with its interval."""

    def points(run: RunData) -> list[Point]:
        found = _by_creation(run, lambda bug: bug.first_solve_rate)
        rates = [(x, rate_of(values)) for x, values in found]
        return [Point(x, rate.mean, rate.low, rate.high) for x, rate in rates]

    return line_chart(over_runs(runs, {"new bugs": points}), shares=True)


def new_bug_sizes(runs: Runs) -> Markup | None:
    """Mean changed lines of new bugs, and mean number of tests that they break."""

    def means(value: Callable[[BugRow], float | None]) -> Series:
        return lambda run: [Point(x, sum(some) / len(some)) for x, some in _by_creation(run, value)]

    series = {
        "changed lines": means(lambda bug: _changed_lines(bug.artifact.get("bug_inject.diff", ""))),
        "broken tests": means(lambda bug: float(len(bug.fail_to_pass))),
    }
    return line_chart(over_runs(runs, series))


def _by_creation(
    run: RunData, value: Callable[[BugRow], float | None]
) -> Iterable[tuple[float, list[float]]]:
    for window in windows((bug.created_update for bug in run.bugs), MOST_POINTS):
        values = [value(bug) for bug in run.bugs if bug.created_update in window]
        if known := [one for one in values if one is not None]:
            yield _middle(window), known


def _changed_lines(diff: str) -> float | None:
    """Added and removed lines together. None for what is no diff."""
    shown = diffstat(diff)
    if not shown:
        return None
    added, removed = shown.rpartition(", ")[2].split()
    return float(abs(int(added)) + abs(int(removed.replace("−", "-"))))


def diversity(runs: Runs) -> Markup | None:
    """Bugs and different functions so far, and the effective number of functions: exp of their entropy."""
    series = {
        "bugs": lambda run: _so_far(run, len),
        "functions": lambda run: _so_far(run, lambda names: len(set(names))),
        "effective": lambda run: _so_far(run, _effective),
    }
    return line_chart(over_runs(runs, series))


def _so_far(run: RunData, figure: Callable[[list[str]], float]) -> list[Point]:
    bugs = sorted(run.bugs, key=lambda bug: bug.created_update)
    names = [(bug.created_update, run.function_of(bug)) for bug in bugs]
    return [
        Point(window[-1], figure([name for update, name in names if update <= window[-1]]))
        for window in windows((update for update, _ in names), MOST_POINTS)
    ]


def _effective(names: list[str]) -> float:
    counts = Counter(names).values()
    total = sum(counts)
    return math.exp(-sum(count / total * math.log(count / total) for count in counts))


def strategies(runs: Runs) -> Drawings:
    """Which strategies injectors were asked for."""
    return _stacked(
        [[(row.update, row.strategy) for row in run.episodes if row.role == "injector"] for run in runs]
    )


# ---- judging


def rejections(runs: Runs) -> Drawings:
    """Verdicts by update: accepted, duplicates, and the checks that rejected."""
    found = [
        [(run.update_of(verdict.episode_id), _verdict_name(run, verdict)) for verdict in run.verdicts]
        for run in runs
    ]
    return _stacked(found, first=("accepted", "duplicate", "no artifact"))


def _verdict_name(run: RunData, verdict: VerdictRow) -> str:
    if verdict.accepted:
        return "duplicate" if verdict.episode_id in run.duplicates else "accepted"
    return "no artifact" if verdict.failed_check.startswith("not_submitted/") else verdict.failed_check


def tricks(runs: Runs) -> Markup | None:
    """What second gradings found, by update. Kinds that no run has are left out, unless all are."""
    kinds = {
        "forged": Confirmation.FORGED,
        "passed once only": Confirmation.NOT_REPEATED,
        "control run moved": Confirmation.NOT_CONFIRMED,
        "no disguise": Confirmation.UNDISGUISED,
    }

    found = {attempt.confirmed for run in runs for attempt in run.attempts}
    shown = {name: kind for name, kind in kinds.items() if kind in found} or {"none": Confirmation.FORGED}

    def points_of(kind: Confirmation) -> Series:
        def points(run: RunData) -> list[Point]:
            counts = Counter(
                run.update_of(attempt.episode_id) for attempt in run.attempts if attempt.confirmed is kind
            )
            updates = sorted({run.update_of(attempt.episode_id) for attempt in run.attempts})
            return [Point(update, counts[update]) for update in updates]

        return points

    return line_chart(over_runs(runs, {name: points_of(kind) for name, kind in shown.items()}))


# ---- episodes


def finishes(runs: Runs, role: str) -> Drawings:
    """Where episodes of a role end, by update."""
    rows = [[(row.update, row.finish) for row in run.episodes if row.role == role] for run in runs]
    return _stacked(rows, first=("submitted",))


def lengths(runs: Runs, column: str) -> Markup | None:
    """The median length of episodes by role, with the range from the tenth to the ninetieth percentile."""

    def points_of(role: str) -> Series:
        return lambda run: _spread(run.episodes, role, column)

    return line_chart(over_runs(runs, {role: points_of(role) for role in ("injector", "solver")}))


def _spread(episodes: Iterable[EpisodeRow], role: str, column: str) -> list[Point]:
    by_update: dict[int, list[float]] = defaultdict(list)
    for row in episodes:
        if row.role == role:
            by_update[row.update].append(float(getattr(row, column)))
    points = []
    for window in windows(by_update, MOST_POINTS):
        if values := sorted(value for update in window for value in by_update.get(update, ())):
            low, middle, high = (values[round(share * (len(values) - 1))] for share in (0.1, 0.5, 0.9))
            points.append(Point(_middle(window), middle, low, high))
    return points


# ---- time


def speed(runs: Runs) -> Markup | None:
    """Tokens that the policy sampled, in a second of an update's time."""

    def points(run: RunData) -> list[Point]:
        found = []
        for row in run.updates:
            seconds = sum(value for _, value in phases(row))
            tokens = sum(row.get(f"{role}/sampled_tokens") or 0 for role in ("injector", "solver"))
            if seconds and tokens:
                found.append(Point(row["update"], tokens / seconds))
        return found

    return line_chart(over_runs(runs, {"tokens/s": points}))


def time_by_phase(runs: Runs) -> Drawings:
    """The seconds of each update, by phase."""
    names = list(dict.fromkeys(name for run in runs for row in run.updates for name, _ in phases(row)))
    drawings = []
    for run in runs:
        parts: dict[str, dict[int, float]] = {name: {} for name in names}
        for row in run.updates:
            for name, value in phases(row):
                parts[name][row["update"]] = value
        drawings.append(stacked_chart(parts, shares=False))
    return drawings


def phases(row: Mapping[str, object]) -> list[tuple[str, float]]:
    """(phase, seconds) of an update's metrics."""
    return [
        (name.removeprefix("seconds/").replace("_", " "), float(value))
        for name, value in row.items()
        if name.startswith("seconds/") and isinstance(value, int | float)
    ]


# ---- pieces


def _stacked(found: Sequence[Sequence[tuple[int, str]]], first: Sequence[str] = ()) -> Drawings:
    """For each run the shares of names by update. A name has one colour in all runs.

    found: (update, name) of each run. The names of `first` come first, then the most frequent ones; the rest
    is "other".
    """
    totals = Counter(name for some in found for _, name in some)
    names = [name for name in first if name in totals]
    frequent = [name for name, _ in totals.most_common() if name not in names][: MOST_PARTS - len(names)]
    names += sorted(frequent)
    drawings = []
    for some in found:
        parts: dict[str, dict[int, float]] = {name: {} for name in names}
        for (update, name), count in Counter(some).items():
            values = parts.setdefault(name if name in names else "other", {})
            values[update] = values.get(update, 0.0) + count
        drawings.append(stacked_chart(parts))
    return drawings
