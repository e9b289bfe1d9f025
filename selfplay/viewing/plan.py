"""Shows a plan and a check as tables in the terminal, and gives them as data.

Invariant: a figure of a plan is shown with its standard error, and with no digit that the error leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.viewing.tables import table

if TYPE_CHECKING:
    from selfplay.evaluation.statistics import Estimate
    from selfplay.planning.check import Check
    from selfplay.planning.search import Candidate, Plan
    from selfplay.planning.workload import EpisodeMeans

NEAR = 4  # splits shown on each side of the best
_INDENT = 2


def show_plan(plan: Plan, assumptions: Sequence[str], console: Console, note: str = "") -> None:
    """Print the best split, its neighbours, fewer hosts, and the assumptions. note: printed first."""
    request = plan.request
    console.print()
    console.rule(Text(make_harmless(f"{request.gpus} GPUs, {request.workload.name}")), align="left")
    if note:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, _INDENT)))
    console.print(Padding(_best_table(plan, console.width - _INDENT), (0, 0, 1, _INDENT)), highlight=False)
    if len(plan.splits) > 1:
        _section(console, "Splits, with more than enough sandbox hosts", _splits(plan, console.width))
    if len(plan.by_hosts) > 1:
        _section(console, "The best split with fewer sandbox hosts", _hosts(plan))
    console.print(Text("Assumptions", style="bold"))
    for sentence in assumptions:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row("  -", Text(make_harmless(sentence)))
        console.print(grid, highlight=False)


# ---- figures


def figure_text(figure: Estimate, most_decimals: int = 0, unit: str = "") -> str:
    """`19,600 ± 400`: mean and standard error, rounded to the error's first digit (its second after a 1).

    most_decimals limits the digits. An error below the last of them counts as 1 there. Without an error, all
    simulations agree.
    """
    error = figure.error or 0.0
    if error <= 1e-9 * max(1.0, abs(figure.mean)):
        whole = abs(figure.mean - round(figure.mean)) < 0.5 * 10.0**-most_decimals
        return f"{_grouped(figure.mean, 0 if whole else most_decimals)}{unit}"
    place = math.floor(math.log10(error))
    if error / 10**place < 1.95:
        place -= 1
    decimals = min(most_decimals, -place)
    shown = max(round(error, decimals), 10.0**-decimals)
    return f"{_grouped(figure.mean, decimals)} ± {_grouped(shown, decimals)}{unit}"


def _grouped(value: float, decimals: int) -> str:
    """The value rounded to `decimals`, which may be below 0. No -0."""
    return f"{round(value, decimals) + 0.0:,.{max(0, decimals)}f}"


def _scaled(figure: Estimate, factor: float) -> Estimate:
    error = None if figure.error is None else figure.error * factor
    return type(figure)(figure.mean * factor, error, figure.count)


def _share(figure: Estimate) -> str:
    return figure_text(_scaled(figure, 100), 1, "%")


def _duration(figure: Estimate) -> str:
    for seconds, unit in ((3600, " h"), (60, " min")):
        if figure.mean >= 2 * seconds:
            return figure_text(_scaled(figure, 1 / seconds), 1, unit)
    return figure_text(figure, 1, " s")


# ---- the best split


def _best_table(plan: Plan, width: int) -> Table:
    """The best split and its figures. width: cells of the whole table."""
    best = plan.best
    rate = Text(f"{figure_text(best.estimate('trained_per_hour'))} trained", style="bold")
    played = f"{figure_text(best.estimate('episodes_per_hour'))} played"
    rows: list[tuple[str, Sequence[str | Text]]] = [
        ("GPUs" if plan.request.trainer_gpus else "best split", [Text(_split_text(plan), style="bold")]),
        *([("", [_even_text(plan)])] if len(plan.splits) > 1 else []),
        ("episodes an hour", [rate, f"of {played}", f"({plan.request.simulations} simulations)"]),
        *_details(plan),
    ]
    label_width = max(cell_len(label) for label, _ in rows)
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_column(no_wrap=True)
    head.add_column(overflow="fold")
    for label, phrases in rows:
        head.add_row(label, _filled(phrases, width - label_width - 4))
    return head


def _details(plan: Plan) -> list[tuple[str, Sequence[str | Text]]]:
    """Label and phrases of the rows below the rate."""
    request, best = plan.request, plan.best
    means = request.workload.per_episode()
    shares = {name: _share(best.estimate(name)) for name in _SHARES}
    return [
        ("an update", [f"{_duration(best.estimate('update_s'))}", f"for {request.batch_tokens:,.0f} tokens"]),
        (
            "rollout servers",
            [
                f"{best.rollout_gpus // request.server_gpus} of {request.server_gpus} GPU(s),",
                f"at most {plan.server.most} requests each",
            ],
        ),
        ("sandbox hosts", _hosts_phrases(plan)),
        ("trainer GPUs", [f"{shares['trainer_idle']} idle,", f"{shares['trainer_sync']} sending weights"]),
        (
            "rollout GPUs",
            [f"{shares['rollout_idle']} idle,", f"{shares['rollout_load']} of the requests that fit"],
        ),
        (
            f"slots of {best.hosts} hosts",
            [
                f"{shares['sandbox_idle']} empty,",
                f"{shares['sandbox_running']} running;",
                f"{figure_text(best.estimate('sandboxes'))} open",
            ],
        ),
        (
            "staleness",
            [
                f"mean {figure_text(best.estimate('lag_mean'), 2)} updates,",
                f"95th percentile {figure_text(best.estimate('lag_p95'), 1)};",
                f"max_lag {request.max_lag},",
                f"{shares['dropped']} dropped",
            ],
        ),
        (
            "a mean episode",
            [
                f"{means.turns:.0f} turns,",
                f"{means.tokens:,.0f} tokens ({means.sampled:,.0f} sampled),",
                f"{means.sandbox_s:,.0f} s in its sandbox",
            ],
        ),
    ]


_SHARES = (
    "trainer_idle",
    "trainer_sync",
    "rollout_idle",
    "rollout_load",
    "sandbox_idle",
    "sandbox_running",
    "dropped",
)


def _filled(phrases: Sequence[str | Text], width: int) -> Text:
    """The phrases in lines of this width. A figure is not parted from its error."""
    lines = [Text()]
    for phrase in phrases:
        text = phrase if isinstance(phrase, Text) else Text(phrase)
        if lines[-1].plain and lines[-1].cell_len + 1 + text.cell_len > width:
            lines.append(Text())
        elif lines[-1].plain:
            lines[-1].append(" ")
        lines[-1].append_text(text)
    return Text("\n").join(lines)


def _split_text(plan: Plan) -> str:
    return f"{plan.best.trainer_gpus} trainer : {plan.best.rollout_gpus} rollout"


def _even_text(plan: Plan) -> str:
    """Which of the splits that were tried cannot be told apart from the best one."""
    if len(plan.even) == 1:
        return "every other split that was tried is slower"
    splits = list(plan.splits)
    runs: list[list[Candidate]] = []
    for one in plan.even:
        if runs and splits.index(one) == splits.index(runs[-1][-1]) + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    texts = [_ratio(run[0]) + (f" to {_ratio(run[-1])}" if len(run) > 1 else "") for run in runs]
    joined = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    return f"splits {joined} cannot be told apart"


def _ratio(one: Candidate) -> str:
    return f"{one.trainer_gpus} : {one.rollout_gpus}"


def _hosts_phrases(plan: Plan) -> list[str]:
    hosts = [f"{plan.enough_hosts} of {plan.request.slots} sandboxes"]
    if plan.enough_hosts == plan.best.hosts:
        return hosts
    chosen = next(one for one in plan.by_hosts if one.hosts == plan.enough_hosts)
    return [*hosts, f"keep {_share(chosen.kept_of(plan.best))} of these episodes"]


# ---- tables

Column = tuple[str, "Callable[[Candidate], str]"]

# In the order in which they are left out of a narrow terminal, last first.
_FIGURES: tuple[Column, ...] = (
    ("episodes\nan hour", lambda one: figure_text(one.estimate("trained_per_hour"))),
    ("an\nupdate", lambda one: _duration(one.estimate("update_s"))),
    ("trainer\nidle", lambda one: _share(one.estimate("trainer_idle"))),
    ("rollout\nload", lambda one: _share(one.estimate("rollout_load"))),
    ("mean\nlag", lambda one: figure_text(one.estimate("lag_mean"), 2)),
    ("rollout\nidle", lambda one: _share(one.estimate("rollout_idle"))),
    ("open\nsandboxes", lambda one: figure_text(one.estimate("sandboxes"))),
)


def _splits(plan: Plan, width: int) -> Table:
    """The splits around the best one, with as many figures as fit."""
    first = max(0, min(plan.splits.index(plan.best) - NEAR, len(plan.splits) - 2 * NEAR - 1))
    rows = plan.splits[first : first + 2 * NEAR + 1]
    even = plan.even

    def place(one: Candidate) -> str:
        return "best" if one is plan.best else "even" if one in even else ""

    columns: list[Column] = [("trainer :\nrollout", _ratio), ("", place)]
    for column in _FIGURES:
        if _width([*columns, column], rows) > width - _INDENT:
            break
        columns.append(column)
    shown = table(*(name for name, _ in columns), right=[name for name, _ in columns if name])
    for one in rows:
        shown.add_row(*(text(one) for _, text in columns), style="bold" if one is plan.best else None)
    return shown


def _width(columns: Sequence[Column], rows: Sequence[Candidate]) -> int:
    """Width of a table in cells."""
    widths = [max(map(cell_len, [*name.split("\n"), *map(text, rows)])) for name, text in columns]
    return sum(widths) + 2 * len(widths)


def _hosts(plan: Plan) -> Table:
    """What fewer hosts keep, as shares of the best split's figures: its rate stands in one place only."""
    columns = ("hosts", "episodes an hour", "slots empty", "")
    shown = table(*columns, right=columns[:3])
    for one in plan.by_hosts:
        is_enough = one.hosts == plan.enough_hosts
        shown.add_row(
            str(one.hosts),
            "as above" if one is plan.best else f"{_share(one.kept_of(plan.best))} of them",
            _share(one.estimate("sandbox_idle")),
            "enough" if is_enough else "",
            style="bold" if is_enough else None,
        )
    return shown


def _section(console: Console, title: str, body: Table) -> None:
    console.print(Text(title, style="bold"))
    console.print(Padding(body, (0, 0, 1, _INDENT)), highlight=False)


# ---- data


def plan_data(plan: Plan, assumptions: Sequence[str]) -> dict[str, Any]:
    """The form of `--json`. Times are in seconds, shares from 0 to 1."""
    request = plan.request
    return {
        "gpus": request.gpus,
        "workload": request.workload.name,
        "episode": _episode_data(request.workload.per_episode()),
        "batch_tokens": request.batch_tokens,
        "max_lag": request.max_lag,
        "server_gpus": request.server_gpus,
        "requests_per_server": plan.server.most,
        "slots_per_host": request.slots,
        "simulations": request.simulations,
        "seeds": list(request.seeds),
        "best": candidate_data(plan.best),
        "even": [_split_data(one) for one in plan.even],
        "enough_hosts": plan.enough_hosts,
        "splits": [candidate_data(one) for one in plan.splits],
        "by_hosts": [candidate_data(one) for one in plan.by_hosts],
        "assumptions": list(assumptions),
    }


def _episode_data(means: EpisodeMeans) -> dict[str, float]:
    values = asdict(means)
    return {
        "turns": values.pop("turns"),
        "tokens": values.pop("tokens"),
        "drawn": values.pop("sampled"),
        **values,
    }


_DATA = (
    "update_s",
    "episodes_per_hour",
    "trained_per_hour",
    "tokens_per_hour",
    "trainer_idle",
    "trainer_sync",
    "rollout_idle",
    "rollout_load",
    "sandbox_idle",
    "sandbox_running",
    "sandboxes",
    "lag_mean",
    "lag_p95",
    "lag_max",
    "dropped",
)


def candidate_data(one: Candidate) -> dict[str, Any]:
    """A split, and mean, standard error and number of simulations of each figure."""
    figures = {name: _figure_data(one.estimate(name)) for name in _DATA}
    return {**_split_data(one), "hosts": one.hosts, **figures}


def _split_data(one: Candidate) -> dict[str, int]:
    return {"trainer_gpus": one.trainer_gpus, "rollout_gpus": one.rollout_gpus}


def _figure_data(figure: Estimate) -> dict[str, Any]:
    return {"mean": figure.mean, "standard_error": figure.error, "simulations": figure.count}


# ---- a check


def show_check(check: Check, console: Console) -> None:
    """Print predicted and measured seconds of each phase."""
    recorded = check.recorded
    console.print()
    console.rule(
        Text(make_harmless(f"{recorded.name}: the second half, predicted from the first")), align="left"
    )
    measured = f"{recorded.first}–{recorded.last}"
    later = f"{recorded.last + 1}–{check.last}"
    columns = (
        "seconds",
        f"measured {measured}",
        "predicted",
        f"measured {later}",
        "error",
        "own",
        "informed",
    )
    shown = table(*columns, right=columns[1:])
    for phase in check.phases:
        shown.add_row(
            phase.phase,
            f"{phase.fitted_s:.2f}",
            f"{phase.predicted_s:.2f}",
            f"{phase.measured_s:.2f}",
            _percent(phase.error, phase.measured_s),
            _percent(phase.own_error, phase.fitted_s),
            _percent(phase.informed_error, phase.measured_s),
            style="bold" if phase.phase == "update" else None,
        )
    console.print(Padding(shown, (0, 0, 1, 2)), highlight=False)
    speeds = ", ".join(
        f"{1000 * seconds:.1f} ms beside {max(0.0, n - 1):.0f}" for n, seconds in recorded.server.measured
    )
    console.print(
        Text(
            "Mean seconds of an update. error: the prediction from the first half against the second half, "
            "which it has not seen. own: the same prediction against the first half. informed: a "
            "prediction from the first half's speeds and the second half's episodes, so without the change "
            "of the policy.\n"
            f"A request samples a token in {speeds} other requests; an update trains for "
            f"{recorded.trainer.fixed_s:.2f} s + {1000 * recorded.trainer.token_s:.3f} ms per token."
        ),
        highlight=False,
    )


def _percent(error: float, measured_s: float) -> str:
    return f"{error:+.0%}" if measured_s else "–"


def check_data(check: Check) -> dict[str, Any]:
    """The form of `--check --json`. Times in seconds; errors are shares of measured seconds."""
    return {
        "run": check.recorded.name,
        "fitted_updates": [check.recorded.first, check.recorded.last],
        "predicted_updates": [check.recorded.last + 1, check.last],
        "phases": [
            {
                **asdict(phase),
                "error": phase.error,
                "own_error": phase.own_error,
                "informed_error": phase.informed_error,
            }
            for phase in check.phases
        ],
        "server": asdict(check.recorded.server),
        "trainer": asdict(check.recorded.trainer),
    }
