"""Tables and plots of the learning experiment, from the recordings of its runs.

selfplay.evaluation.statistics has the arithmetic, and learning.py plays the runs.
Invariant: equal recordings give equal bytes. The page names what is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.learning_nearness import ELSEWHERE, PLAYED, SAME_FUNCTION, classes_of
from selfplay.errors import RunError
from selfplay.evaluation.folder import MODES, Folder, Mode, TaskEntry, entries_of
from selfplay.evaluation.rates import rates_by_bug
from selfplay.evaluation.statistics import Difference, estimate, paired_difference
from selfplay.evaluation.tasks import Task
from selfplay.metrics import read_metrics
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.viewing.summary import evaluation_folders

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEGIN, END = "<!-- learning: begin, written by make learning -->", "<!-- learning: end -->"
NAMES = {"selfplay": "self-play", "repair": "repair-only", "injection": "injection-only"}
MODE_NAMES: dict[Mode, str] = {"greedy": "greedy", "sampled": "T = 1"}
# Colours of Okabe and Ito, which colour-blind readers can distinguish too.
COLOURS = {"selfplay": "#0072b2", "repair": "#d55e00", "injection": "#009e73"}
STROKES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
SET_ORDER = {"own": 0, "human": 1}
WINDOW = 7  # updates in a running mean
Rates = Mapping[str, float]  # bug -> share of its attempts that passed


@dataclass(frozen=True)
class Evaluation:
    """The rates of all bugs after `update` updates, by mode."""

    update: int
    rates: Mapping[Mode, Rates]


@dataclass(frozen=True)
class Curve:
    """One run. rows: one row of metrics for each update. entries: the set and the part of each bug."""

    arm: str
    seed: int
    evaluations: Sequence[Evaluation]
    rows: Sequence[Mapping[str, Any]]
    entries: Mapping[str, TaskEntry]
    evaluating_s: float

    def row_values(self, key: str) -> list[tuple[int, float]]:
        """(update, value) for the updates that have a value."""
        return [
            (row["update"], float(row[key])) for row in self.rows if isinstance(row.get(key), int | float)
        ]

    def after(self, update: int) -> Evaluation:
        """The evaluation after this many updates. Raises StopIteration if there is none."""
        return next(evaluation for evaluation in self.evaluations if evaluation.update == update)

    def total(self, key: str) -> float:
        return sum(value for _, value in self.row_values(key))


def read_curve(arm: str, seed: int, run: RunFolder, before: Folder | None = None) -> Curve:
    """The finished part of a run. An evaluation without a row in the metrics is not finished, and left out.

    before: an evaluation of the run's first policy, for a run that has none itself.
    """
    rows = read_metrics(run.metrics)
    evaluating_s: dict[int, float] = {}
    for row in rows:
        # After a kill, an evaluation has a second row for its last part. The longest row counts.
        if "evaluation" in row:
            evaluating_s[row["evaluation"]] = max(
                row["seconds/evaluating"], evaluating_s.get(row["evaluation"], 0.0)
            )
    folders = [(update, folder) for update, folder in evaluation_folders(run.path) if update in evaluating_s]
    if before is not None and before.identity() and 0 not in evaluating_s:
        folders.insert(0, (0, before))
    entries = {bug: entry for _, folder in folders for bug, entry in entries_of(folder).items()}
    by_update = {row["update"]: row for row in rows if "update" in row}
    evaluations = [read_evaluation(update, folder) for update, folder in folders]
    return Curve(
        arm,
        seed,
        evaluations,
        [by_update[update] for update in sorted(by_update)],
        entries,
        sum(evaluating_s.values()),
    )


def read_evaluation(update: int, folder: Folder) -> Evaluation:
    results = folder.results()
    return Evaluation(
        update,
        {
            mode: {bug: sum(passed) / len(passed) for bug, passed in rates_by_bug(results, mode).items()}
            for mode in MODES
        },
    )


def on_fixed_bugs(run: RunFolder, update: int) -> Folder:
    """The evaluation of a run's policy on the bugs that the repair arm trains on."""
    return Folder(run.path / "on-fixed-bugs" / f"u{update:04d}")


@dataclass(frozen=True)
class FixedBugs:
    """The bugs that the repair arm trains on. before: the evaluation of the first policy on them."""

    tasks: Sequence[Task]
    before: Folder


@dataclass(frozen=True)
class Nearness:
    """A run's first and last policy on the fixed bugs. groups: name -> bugs, for "all" and each class."""

    curve: Curve
    groups: Mapping[str, Sequence[str]]

    @property
    def before(self) -> Evaluation:
        return self.curve.evaluations[0]

    @property
    def after(self) -> Evaluation:
        return self.curve.evaluations[-1]


def read_nearness(arm: str, seed: int, run: RunFolder, bugs: FixedBugs) -> Nearness | None:
    """The run's evaluations on the fixed bugs, None if one is missing."""
    folders = sorted((run.path / "on-fixed-bugs").glob("u????"))
    if not folders or bugs.before.identity() is None:
        return None
    classes = classes_of(bugs.tasks, run)
    groups = {"all": [task.instance_id for task in bugs.tasks], PLAYED: classes[PLAYED]}
    if len(classes[PLAYED]) < len(bugs.tasks):
        groups |= {"not played": [*classes[SAME_FUNCTION], *classes[ELSEWHERE]]} | classes
    evaluations = [
        read_evaluation(0, bugs.before),
        read_evaluation(int(folders[-1].name[1:]), Folder(folders[-1])),
    ]
    return Nearness(
        Curve(arm, seed, evaluations, [], dict.fromkeys(groups["all"], TaskEntry("")), 0.0), groups
    )


# ---- choosing what is compared


def sets_of(curves: Iterable[Curve]) -> dict[str, list[str]]:
    """Name -> ids of its bugs, for each set, and for each part of a set that has several parts."""
    entries = {bug: entry for curve in curves for bug, entry in curve.entries.items()}
    groups: dict[str, list[str]] = {}
    for bug, entry in sorted(entries.items()):
        groups.setdefault(entry.set or "all", []).append(bug)
        if entry.part:
            groups.setdefault(f"{entry.set}/{entry.part}", []).append(bug)
    ranked = sorted(groups, key=lambda name: (SET_ORDER.get(name.partition("/")[0], len(SET_ORDER)), name))
    return {
        name: groups[name]
        for name in ranked
        if "/" not in name or len(groups[name]) < len(groups[name.partition("/")[0]])
    }


def whole_sets(groups: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    return {name: ids for name, ids in groups.items() if "/" not in name}


def pooled(evaluations: Sequence[Evaluation], mode: Mode) -> Rates:
    """The mean rate of each bug over runs. Bugs that one of the runs lacks are left out."""
    rates = [evaluation.rates.get(mode, {}) for evaluation in evaluations]
    common = set.intersection(*(set(some) for some in rates)) if rates else set()
    return {bug: fmean(some[bug] for some in rates) for bug in sorted(common)}


def change(before: Rates, after: Rates, bugs: Sequence[str]) -> Difference | None:
    """The difference of two policies, paired by bug. None if no bug has a rate in both."""
    both = [bug for bug in bugs if bug in before and bug in after]
    return paired_difference([before[bug] for bug in both], [after[bug] for bug in both]) if both else None


# ---- tables


RATES_HEAD = (
    "arm",
    "seed",
    "updates",
    "set",
    "mode",
    "bugs",
    "before",
    "after",
    "difference, 95 % interval",
    "shown",
)


def rates_table(curves: Sequence[Curve]) -> list[str]:
    """Rates before and after, for each arm, seed, number of updates, set and mode.

    Then for each arm over its seeds.
    """
    groups = sets_of(curves)
    whole = whole_sets(groups)
    together = (
        {" and ".join(whole): [bug for bugs in whole.values() for bug in bugs]} if len(whole) > 1 else {}
    )
    lines = _head(*RATES_HEAD)
    for arm, some in _by_arm(curves):
        done = [curve for curve in some if len(curve.evaluations) > 1]
        for curve in done:
            for later in curve.evaluations[1:]:
                lines += _rate_rows(arm, str(curve.seed), curve.evaluations[:1], [later], whole | together)
        if len(done) > 1 and (update := last_common(done)):
            lines += _rate_rows(
                arm,
                "all",
                [c.evaluations[0] for c in done],
                [c.after(update) for c in done],
                groups | together,
            )
    return lines


def last_common(curves: Sequence[Curve]) -> int:
    """The largest number of updates after which all curves have an evaluation, 0 if there is none."""
    return max(set.intersection(*({e.update for e in curve.evaluations} for curve in curves)), default=0)


def _rate_rows(
    arm: str,
    seed: str,
    before: Sequence[Evaluation],
    after: Sequence[Evaluation],
    groups: Mapping[str, Sequence[str]],
) -> list[str]:
    lines = []
    for name, bugs in groups.items():
        for mode, mode_name in MODE_NAMES.items():
            a, b = pooled(before, mode), pooled(after, mode)
            if found := change(a, b, bugs):
                cells = (
                    NAMES[arm],
                    seed,
                    str(after[0].update),
                    name,
                    mode_name,
                    str(found.count),
                    _rate(a, bugs),
                    _rate(b, bugs),
                    _points(found),
                    _shown(found),
                )
                lines.append(_line(*cells))
    return lines


def nearness_table(fixed: Sequence[Nearness]) -> list[str]:
    """Rates before and after for each class of the fixed bugs.

    Over seeds, a bug counts for the seeds where it has the class.
    """
    lines = _head(*RATES_HEAD)
    for arm in NAMES:
        runs = sorted((run for run in fixed if run.curve.arm == arm), key=lambda run: run.curve.seed)
        for run in runs:
            lines += _nearness_rows(arm, str(run.curve.seed), [run])
        if len(runs) > 1 and len({run.after.update for run in runs}) == 1:
            lines += _nearness_rows(arm, "all", runs)
    return lines


def _nearness_rows(arm: str, seed: str, runs: Sequence[Nearness]) -> list[str]:
    lines = []
    for name in dict.fromkeys(name for run in runs for name in run.groups):
        if name != "all" and all(len(run.groups.get(name, ())) == len(run.groups["all"]) for run in runs):
            continue  # equal to the row of all bugs
        before, after, bugs = _over_seeds([(run.before, run.after, run.groups.get(name, ())) for run in runs])
        lines += _rate_rows(arm, seed, [before], [after], {name: bugs})
    return lines


Measured = tuple[Evaluation, Evaluation, Sequence[str]]  # before, after, and the bugs that count


def _over_seeds(measured: Sequence[Measured]) -> Measured:
    """The mean rate of each bug over the seeds where it counts."""
    before = _of_bugs([(before, bugs) for before, _, bugs in measured])
    after = _of_bugs([(after, bugs) for _, after, bugs in measured])
    return before, after, list(dict.fromkeys(bug for *_, bugs in measured for bug in bugs))


def _of_bugs(evaluations: Sequence[tuple[Evaluation, Sequence[str]]]) -> Evaluation:
    rates: dict[Mode, Rates] = {}
    for mode in MODES:
        some = [
            (bug, at.rates[mode][bug])
            for at, bugs in evaluations
            for bug in bugs
            if bug in at.rates.get(mode, {})
        ]
        rates[mode] = {bug: fmean(rate for named, rate in some if named == bug) for bug, _ in some}
    return Evaluation(evaluations[0][0].update, rates)


def arms_table(curves: Sequence[Curve]) -> list[str]:
    """Each pair of arms after equally many updates: means over the seeds that both have, paired by bug."""
    groups = sets_of(curves)
    lines = _head(
        "arms", "seeds", "updates", "set", "mode", "bugs", "difference after, 95 % interval", "shown"
    )
    arms = _by_arm(curves)
    for index, (first, some) in enumerate(arms):
        for second, others in arms[index + 1 :]:
            ours = {c.seed: c for c in some if len(c.evaluations) > 1}
            theirs = {c.seed: c for c in others if len(c.evaluations) > 1}
            # An unfinished run is compared with the other one at the same update. Only the seeds that came
            # furthest count.
            common = {
                seed: last_common([ours[seed], theirs[seed]]) for seed in sorted(ours.keys() & theirs.keys())
            }
            update = max(common.values(), default=0)
            seeds = [seed for seed, reached in common.items() if reached == update]
            for name, bugs in groups.items() if update else ():
                for mode, mode_name in MODE_NAMES.items():
                    a = pooled([ours[seed].after(update) for seed in seeds], mode)
                    b = pooled([theirs[seed].after(update) for seed in seeds], mode)
                    if found := change(b, a, bugs):
                        pair = f"{NAMES[first]} − {NAMES[second]}"
                        seeds_text = ", ".join(map(str, seeds))
                        lines.append(
                            _line(
                                pair,
                                seeds_text,
                                str(update),
                                name,
                                mode_name,
                                str(found.count),
                                _points(found),
                                _shown(found),
                            )
                        )
    return lines


def compute_table(curves: Sequence[Curve]) -> list[str]:
    """The compute of each run, which should be equal, and its results."""
    lines = _head(
        "arm", "seed", "updates", "with gradient", "episodes", "sampled tokens", "trained tokens",
        "minutes played", "minutes evaluated", "artifacts valid", "attempts passed",
    )  # fmt: skip
    for curve in sorted(curves, key=lambda curve: (list(NAMES).index(curve.arm), curve.seed)):
        seconds = sum(sum(v for k, v in row.items() if k.startswith("seconds/")) for row in curve.rows)
        lines.append(
            _line(
                NAMES[curve.arm],
                str(curve.seed),
                str(len(curve.rows)),
                str(sum(bool(row.get("carried_gradient")) for row in curve.rows)),
                f"{curve.total('injector/episodes') + curve.total('solver/episodes'):.0f}",
                f"{curve.total('injector/sampled_tokens') + curve.total('solver/sampled_tokens'):.0f}",
                f"{curve.total('action_tokens'):.0f}",
                f"{seconds / 60:.0f}",
                f"{curve.evaluating_s / 60:.0f}",
                _share(curve, "injector/valid", "injector/episodes"),
                _share(curve, "solver/solved", "solver/episodes"),
            )
        )
    return lines


def _share(curve: Curve, rate: str, count: str) -> str:
    """The mean of a rate over updates, weighted by the number of episodes."""
    counts = dict(curve.row_values(count))
    pairs = [(value, counts.get(update, 0.0)) for update, value in curve.row_values(rate)]
    total = sum(weight for _, weight in pairs)
    return f"{sum(value * weight for value, weight in pairs) / total:.0%}" if total else "–"


def _by_arm(curves: Sequence[Curve]) -> list[tuple[str, list[Curve]]]:
    found = {arm: sorted((c for c in curves if c.arm == arm), key=lambda c: c.seed) for arm in NAMES}
    return [(arm, some) for arm, some in found.items() if some]


def _rate(rates: Rates, bugs: Sequence[str]) -> str:
    found = estimate([rates[bug] for bug in bugs if bug in rates])
    return f"{100 * found.mean:.1f} %" + (f" ± {100 * found.error:.1f}" if found.error is not None else "")


def _points(found: Difference) -> str:
    interval = (
        ""
        if found.low is None or found.high is None
        else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    )
    return f"{100 * found.mean:+.1f}{interval}"


def _shown(found: Difference) -> str:
    return {1: "up", -1: "down", 0: "no"}[found.direction]


def _head(*names: str) -> list[str]:
    return [_line(*names), _line(*("---" for _ in names))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


# ---- plots


def draw_rates(curves: Sequence[Curve]) -> Figure:
    """Repair rates over updates with standard errors over bugs.

    One column for each set, one row for each mode.
    """
    groups = whole_sets(sets_of(curves))
    figure, axes = _panels(len(MODE_NAMES), max(1, len(groups)), 4.4, 2.7)
    runs = [curve for _, some in _by_arm(curves) for curve in some]
    last = max((e.update for curve in runs for e in curve.evaluations), default=1)
    for row, (mode, mode_name) in enumerate(MODE_NAMES.items()):
        for column, (name, bugs) in enumerate(groups.items()):
            axis = axes[row][column]
            for index, curve in enumerate(runs):
                points = [
                    (e.update, [e.rates[mode][bug] for bug in bugs if bug in e.rates.get(mode, {})])
                    for e in curve.evaluations
                ]
                found = [(update, estimate(values)) for update, values in points if values]
                # Error bars stand side by side.
                shift = (index - (len(runs) - 1) / 2) * 0.008 * max(last, 1)
                axis.errorbar(
                    [update + shift for update, _ in found],
                    [100 * rate.mean for _, rate in found],
                    yerr=[100 * (rate.error or 0.0) for _, rate in found],
                    capsize=2,
                    markersize=4,
                    elinewidth=0.8,
                    **_style(curve, curves),
                )
            axis.set_title(f"{name}, {mode_name} ({len(bugs)} bugs)")
            axis.set_ylim(bottom=0)
            axis.set_xlabel("update")
            axis.set_ylabel("repaired, %")
    _legend(figure, axes[0][0])
    return figure


def draw_nearness(fixed: Sequence[Nearness], curves: Sequence[Curve]) -> Figure:
    """Changes of the repair rate with 95 % intervals, from the nearest class of bugs to the farthest.

    There is one panel for each mode and one colour for each arm. The seeds of an arm are one point with an
    interval, and one stroke each. Seeds that ended after different numbers of updates have
    separate points.
    """
    frozen = sets_of(curves)
    names = [
        PLAYED,
        SAME_FUNCTION,
        ELSEWHERE,
        *(name for name in frozen if not any(other.startswith(f"{name}/") for other in frozen)),
    ]
    by_arm = [[run for run in fixed if run.curve.arm == arm] for arm in NAMES]
    points = [
        part
        for runs in by_arm
        for part in ([runs] if len({run.after.update for run in runs}) == 1 else [[run] for run in runs])
    ]
    apart = min(0.22, 0.8 / len(points))  # distance of points that share a row
    figure, axes = _panels(1, len(MODE_NAMES), 5.2, 0.42 * len(names) + 0.8)
    for axis, (mode, mode_name) in zip(axes[0], MODE_NAMES.items(), strict=True):
        for number, runs in enumerate(points):
            arm, seeds = runs[0].curve.arm, [str(run.curve.seed) for run in runs]
            colour, label = (
                COLOURS[arm],
                f"{NAMES[arm]}, seed{'s' if len(seeds) > 1 else ''} {' and '.join(seeds)}",
            )
            for index, name in enumerate(names):
                measured = [found for run in runs if (found := _measured(run, name, frozen, curves))]
                means = [one.mean for part in measured if (one := _change_of([part], mode))]
                found = _change_of(measured, mode)
                if found is None or found.low is None or found.high is None:
                    continue
                low, high = 100 * (found.mean - found.low), 100 * (found.high - found.mean)
                y = index + (number - (len(points) - 1) / 2) * apart
                axis.errorbar(
                    [100 * found.mean],
                    [y],
                    [[0], [0]],
                    [[low], [high]],
                    "o",
                    color=colour,
                    capsize=2,
                    markersize=4,
                    elinewidth=0.9,
                    label=label,
                )
                if len(runs) > 1:
                    axis.plot(
                        [100 * mean for mean in means],
                        [y] * len(means),
                        "|",
                        color=colour,
                        markersize=8,
                        markeredgewidth=1.4,
                    )
        axis.set_yticks(range(len(names)), [name if name in frozen else f"fixed: {name}" for name in names])
        axis.invert_yaxis()
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_title(mode_name)
        axis.set_xlabel("change of the repair rate, points")
    axes[0][1].set_yticklabels([])
    _legend(figure, *axes[0])
    return figure


def _measured(
    run: Nearness, name: str, frozen: Mapping[str, Sequence[str]], curves: Sequence[Curve]
) -> Measured | None:
    """The run's first and last policy on a class of the fixed bugs or on a frozen set.

    None if one was not measured.
    """
    if name in run.groups:
        return run.before, run.after, run.groups[name]
    curve = next(curve for curve in curves if (curve.arm, curve.seed) == (run.curve.arm, run.curve.seed))
    far = [e for e in curve.evaluations if e.update in (0, run.after.update)]
    return (far[0], far[1], frozen[name]) if name in frozen and len(far) == 2 else None


def _change_of(measured: Sequence[Measured], mode: Mode) -> Difference | None:
    if not measured:
        return None
    before, after, bugs = _over_seeds(measured)
    return change(before.rates[mode], after.rates[mode], bugs)


SIGNALS: tuple[tuple[str, str, Callable[[float], float]], ...] = (
    ("injector/valid", "artifacts that validate, %", lambda v: 100 * v),
    ("solver/solved", "attempts that pass, %", lambda v: 100 * v),
    ("injector/entropy", "injector: entropy, nats a token", float),
    ("solver/entropy", "solver: entropy, nats a token", float),
    ("injector/zero_variance", "injector: groups without variance, %", lambda v: 100 * v),
    ("solver/zero_variance", "solver: groups without variance, %", lambda v: 100 * v),
    ("solver/new_changes", "solver: calls for a change that made one, %", lambda v: 100 * v),
    ("solver/kl", "solver: KL to the reference policy, nats a token", float),
    ("rollout_logprob_diff", "mean |log-probability gap|, trainer − engine", float),
)


def draw_signals(curves: Sequence[Curve]) -> Figure:
    """The runs' own measurements over updates, and the seconds of an update by phase.

    A pale line shows the values, a strong one their running mean.
    """
    figure, axes = _panels(5, 2, 4.4, 2.3)
    flat = [axis for row in axes for axis in row]
    for axis, (key, title, scale) in zip(flat, SIGNALS, strict=False):
        for curve in (curve for _, some in _by_arm(curves) for curve in some):
            points = curve.row_values(key)
            updates, values = [update for update, _ in points], [scale(value) for _, value in points]
            if not values:
                continue
            style = _style(curve, curves)
            axis.plot(updates, values, linewidth=0.6, alpha=0.3, color=style["color"])
            axis.plot(updates, running_mean(values, WINDOW), **{**style, "marker": ""})
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("update")
    _draw_seconds(flat[len(SIGNALS)], curves)
    _legend(figure, flat[0], flat[1])
    return figure


def _draw_seconds(axis: Axes, curves: Sequence[Curve]) -> None:
    """One bar for each arm: the mean update, split into its phases. Evaluations are not part of an update."""
    phases = sorted(
        {key for curve in curves for row in curve.rows for key in row if key.startswith("seconds/")}
    )
    arms = _by_arm(curves)
    left = [0.0] * len(arms)
    shades = ("#4477aa", "#ee6677", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#228833")
    for phase, shade in zip(phases, shades, strict=False):
        widths = [
            sum(c.total(phase) for c in some) / max(1, sum(len(c.rows) for c in some)) for _, some in arms
        ]
        if max(widths, default=0.0) < 0.01 * max(map(sum, zip(left, widths, strict=True)), default=0.0):
            continue  # too thin to be seen; the legend stays short
        axis.barh(
            [NAMES[arm] for arm, _ in arms],
            widths,
            left=left,
            color=shade,
            label=phase.removeprefix("seconds/").replace("_", " "),
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_title("seconds an update, by phase")
    axis.set_xlim(0, 1.45 * max(left, default=1.0) or 1.0)  # room for the legend
    if phases:
        axis.legend(fontsize=7, frameon=False, loc="center right")


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the `window` values around each value, of fewer at the ends."""
    half = window // 2
    return [fmean(values[max(0, index - half) : index + half + 1]) for index in range(len(values))]


def _style(curve: Curve, curves: Sequence[Curve]) -> dict[str, Any]:
    """The colour shows the arm, the stroke and the marker show the seed."""
    index = sorted({c.seed for c in curves}).index(curve.seed) % len(STROKES)
    label = f"{NAMES[curve.arm]}, seed {curve.seed}"
    return {
        "color": COLOURS[curve.arm],
        "linestyle": STROKES[index],
        "marker": MARKERS[index],
        "linewidth": 1.3,
        "label": label,
    }


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    import matplotlib

    matplotlib.use("Agg")
    # Text stays text, which keeps files small and searchable. The fixed salt makes equal plots equal bytes.
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "selfplay",
        "font.family": "sans-serif",
        "font.size": 8,
    }
    style["font.sans-serif"] = ["DejaVu Sans"]
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9}
    matplotlib.rcParams.update(style | {"axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, height * rows + 0.4), squeeze=False
    )
    return figure, [list(row) for row in axes]


def _legend(figure: Figure, *axes: Axes) -> None:
    found = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    height = figure.get_size_inches()[1]
    lines = math.ceil(len(found) / 3)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.22 * lines / height))
    if found:
        found = {
            label: found[label]
            for label in sorted(found, key=lambda label: list(NAMES.values()).index(label.partition(",")[0]))
        }
        figure.legend(found.values(), found.keys(), loc="upper center", ncols=3, frameon=False, fontsize=8)


# ---- the page


def write_figures(
    runs: Sequence[tuple[str, int, RunFolder]],
    page: Path,
    before: Folder | None = None,
    fixed_bugs: FixedBugs | None = None,
) -> None:
    """Write tables between the two marker comments of `page`, and plots into the folder `figures` beside it.

    before: the evaluation of the policy that every run starts from. Raises RunError without runs or markers.
    """
    curves = [read_curve(arm, seed, run, before) for arm, seed, run in runs]
    curves = [curve for curve in curves if curve.rows]
    fixed = [found for run in runs if fixed_bugs and (found := read_nearness(*run, fixed_bugs))]
    if not curves:
        raise RunError("there is no run with anything to show yet. `make learning` plays them.")
    empty = f"# Does it learn? The tables\n\n{BEGIN}\n{END}\n"
    text = page.read_text(encoding="utf-8") if page.is_file() else empty
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RunError(
            f"{page} needs the lines {BEGIN!r} and {END!r} once each, in this order. "
            "The tables go between them."
        )
    stem = page.stem.removesuffix("-tables")
    figures = page.parent / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    plots = {"rates": draw_rates(curves), "signals": draw_signals(curves)} | (
        {"nearness": draw_nearness(fixed, curves)} if fixed else {}
    )
    for name, figure in plots.items():
        save(figure, figures / f"{stem}-{name}.svg")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    page.write_text(f"{head}{BEGIN}\n\n{body(curves, fixed, stem)}\n\n{END}{tail}", encoding="utf-8")
    print(f"Tables are in {page}, plots in {figures}.", flush=True)


def save(figure: Figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    if path.suffix == ".svg":  # shorter numbers and no trailing blanks make smaller diffs
        lines = re.sub(r"(\d\.\d\d)\d+", r"\1", path.read_text(encoding="utf-8")).splitlines()
        path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def body(curves: Sequence[Curve], fixed: Sequence[Nearness], stem: str) -> str:
    """The generated part of the page. fixed: the runs on the repair arm's bugs. stem: of the page's name."""
    compared = arms_table(curves)
    unfinished = [f"{NAMES[c.arm]}, seed {c.seed}" for c in curves if len(c.evaluations) < 2]
    parts = [
        "### Repair rate on the frozen sets, before and after",
        "\n".join(rates_table(curves)),
        "### The arms after as many updates",
        "\n".join(compared)
        if len(compared) > 2
        else "No two arms have played as many updates of one seed yet.",
        f"![Repair rate on the frozen sets over updates](figures/{stem}-rates.svg)",
        *(_fixed_parts(fixed, stem) if fixed else ()),
        "### What each run spent",
        "\n".join(compute_table(curves)),
        "![Validity, solve rate, entropy, gap, variance and seconds over updates]"
        f"(figures/{stem}-signals.svg)",
    ]
    if unfinished:
        parts.insert(0, f"Not evaluated twice, and so in no table of differences: {'; '.join(unfinished)}.")
    return "\n\n".join(parts)


def _fixed_parts(fixed: Sequence[Nearness], stem: str) -> list[str]:
    compared = arms_table([run.curve for run in fixed])
    return [
        "### Repair rate on the bugs that repair-only trains on",
        "\n".join(nearness_table(fixed)),
        *(("\n".join(compared),) if len(compared) > 2 else ()),
        "![Change of the repair rate, from bugs that were played to unseen packages]"
        f"(figures/{stem}-nearness.svg)",
        "A point is an arm over its seeds with the 95 % interval over bugs, a stroke one seed of several.",
    ]
