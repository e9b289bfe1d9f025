"""Shows a plan and a check as tables in the terminal, and gives them as data. Computes no figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.viewing.progress import duration_text
from selfplay.viewing.summary import table

if TYPE_CHECKING:
    from selfplay.planning.check import Check
    from selfplay.planning.forecast import Forecast
    from selfplay.planning.search import Candidate, Plan
    from selfplay.planning.workload import EpisodeMeans

NEAR = 4  # splits shown on each side of the best


def show_plan(plan: Plan, assumptions: Sequence[str], console: Console) -> None:
    """Print the best split, its neighbours, fewer hosts, and the assumptions."""
    request, best = plan.request, plan.best
    console.print()
    console.rule(Text(make_harmless(f"{request.gpus} GPUs, {request.workload.name}")), align="left")
    console.print(Padding(_best_table(plan), (0, 0, 1, 2)), highlight=False)
    if len(plan.splits) > 1:
        title = "Splits around it, with more than enough sandbox hosts"
        _section(console, title, _candidates(_near(plan), best, ("trainer", "rollout")))
    if len(plan.by_hosts) > 1:
        title = "The same split with fewer sandbox hosts"
        _section(console, title, _candidates(plan.by_hosts, best, ("hosts",)))
    console.print(Text("Assumptions", style="bold"))
    for sentence in assumptions:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row("  -", Text(make_harmless(sentence)))
        console.print(grid, highlight=False)


def _best_table(plan: Plan) -> Table:
    request, best, forecast = plan.request, plan.best, plan.best.forecast
    means = request.workload.per_episode()
    servers = best.rollout_gpus // request.server_gpus
    trains = max(0.0, 1 - forecast.trainer_idle - forecast.trainer_sync)
    waiting = max(0.0, 1 - forecast.sandbox_idle - forecast.sandbox_running)
    split = f"{best.trainer_gpus} trainer : {best.rollout_gpus} rollout"
    rate = f"{forecast.trained_per_hour:,.0f} trained of {forecast.episodes_per_hour:,.0f} played"
    head = table("", "")
    head.add_row("GPUs" if request.trainer_gpus else "best split", Text(split, style="bold"))
    head.add_row(
        "rollout servers",
        f"{servers} of {request.server_gpus} GPU(s), at most {plan.server.most} requests each",
    )
    head.add_row(
        "sandbox hosts",
        f"{best.hosts} of {request.slots} sandboxes; {forecast.sandboxes:,.0f} open on average",
    )
    head.add_row("episodes per hour", Text(rate, style="bold"))
    head.add_row("an update", f"{duration_text(forecast.update_s)} of {request.batch_tokens:,.0f} tokens")
    head.add_row(
        "trainer GPUs",
        f"{forecast.trainer_idle:.0%} idle, {forecast.trainer_sync:.0%} sending weights, {trains:.0%} "
        "training",
    )
    head.add_row("rollout GPUs", f"{forecast.rollout_idle:.0%} idle; else {_load_text(forecast)}")
    head.add_row(
        "sandbox slots",
        f"{forecast.sandbox_idle:.0%} empty, {waiting:.0%} waiting for the policy, "
        f"{forecast.sandbox_running:.0%} running",
    )
    head.add_row(
        "staleness",
        f"mean {forecast.lag_mean:.1f} updates, 95th percentile {forecast.lag_p95:.0f}, largest "
        f"{forecast.lag_max}; max_lag {request.max_lag}, {forecast.dropped:.1%} dropped",
    )
    head.add_row(
        "a mean episode",
        f"{means.turns:.0f} turns, {means.tokens:,.0f} tokens ({means.sampled:,.0f} sampled), "
        f"{means.sandbox_s:,.0f} s in its sandbox",
    )
    return head


def _load_text(forecast: Forecast) -> str:
    busy = 1 - forecast.rollout_idle
    share = f"{forecast.rollout_load / busy:.0%}" if busy > 0 else "none"
    return f"{share} of the requests that fit"


def _near(plan: Plan) -> tuple[Candidate, ...]:
    trainer_gpus = [one.trainer_gpus for one in plan.splits]
    best = trainer_gpus.index(plan.best.trainer_gpus)
    return plan.splits[max(0, best - NEAR) : best + NEAR + 1]


def _candidates(rows: Sequence[Candidate], best: Candidate, names: tuple[str, ...]) -> Table:
    columns = (
        *names,
        "episodes\nper hour",
        "update",
        "trainer\nidle",
        "rollout\nidle",
        "load",
        "open",
        "lag",
        "p95",
    )
    shown = table(*columns, right=columns)
    for one in rows:
        forecast = one.forecast
        split, chosen = _split(one), _split(best)
        is_best = all(split[name] == chosen[name] for name in names)
        shown.add_row(
            *(str(split[name]) for name in names),
            f"{forecast.trained_per_hour:,.0f}",
            duration_text(forecast.update_s),
            f"{forecast.trainer_idle:.0%}",
            f"{forecast.rollout_idle:.0%}",
            f"{forecast.rollout_load:.0%}",
            f"{forecast.sandboxes:,.0f}",
            f"{forecast.lag_mean:.1f}",
            f"{forecast.lag_p95:.0f}",
            style="bold" if is_best else None,
        )
    return shown


def _split(one: Candidate) -> dict[str, int]:
    return {"trainer": one.trainer_gpus, "rollout": one.rollout_gpus, "hosts": one.hosts}


def _section(console: Console, title: str, body: Table) -> None:
    console.print(Text(title, style="bold"))
    console.print(Padding(body, (0, 0, 1, 2)), highlight=False)


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
        "best": candidate_data(plan.best),
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


def candidate_data(one: Candidate) -> dict[str, Any]:
    """A split and the figures of its forecast."""
    forecast = asdict(one.forecast)
    for name in ("phases_s", "update_seconds"):
        forecast.pop(name)
    split = {"trainer_gpus": one.trainer_gpus, "rollout_gpus": one.rollout_gpus, "hosts": one.hosts}
    return {**split, "update_s": one.forecast.update_s, **forecast}


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
