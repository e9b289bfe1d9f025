"""`selfplay plan`: makes a plan or a check from the options, and shows it or prints it as JSON.

All figures come from `selfplay.planning`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from selfplay.errors import UsageError
from selfplay.orchestrator.run_folder import open_run
from selfplay.planning.check import check_run
from selfplay.planning.hardware import Gpu, ModelSize, assumed_shape, hardware_assumptions
from selfplay.planning.paper import (
    PAPER_BATCH_TOKENS,
    PAPER_MAX_LAG,
    PAPER_MODEL,
    paper_assumptions,
    paper_workload,
)
from selfplay.planning.recorded import read_run, run_model
from selfplay.planning.search import STRETCHES, Plan, PlanRequest, make_plan
from selfplay.planning.workload import Workload
from selfplay.viewing.plan import check_data, plan_data, show_check, show_plan


@dataclass(frozen=True)
class PlanOptions:
    """The options as typed.

    An option that was left out is None or "". Its value comes from the run, the paper or the defaults of
    `Gpu`.

    """

    run: str = ""
    runs: Path = Path("runs")
    workload: str = ""
    assume: Sequence[str] = ()
    gpus: int = 512
    trainer_gpus: int = 0
    server_gpus: int = 0
    hosts: int = 0
    slots: int = 64
    max_lag: int | None = None
    batch_tokens: float | None = None
    parameters: float | None = None
    peak_tflops: float | None = None
    bandwidth_tbs: float | None = None
    gpu_gb: float | None = None
    mfu: float | None = None
    mbu: float | None = None
    link_gbs: float | None = None
    updates: int = 12
    seed: int = 0


def run_plan(options: PlanOptions, *, as_json: bool = False) -> None:
    """Show or print a plan. Raises UsageError or RunError that names what cannot be planned."""
    plan, assumptions = plan_from(options, Console(stderr=True))
    if as_json:
        print(json.dumps(plan_data(plan, assumptions), indent=2))
    else:
        show_plan(plan, assumptions, Console())


def run_check(run: str, runs: Path, seed: int, *, as_json: bool = False) -> None:
    """Show or print the prediction of a run's second half from its first."""
    check = check_run(open_run(run, runs), seed)
    if as_json:
        print(json.dumps(check_data(check), indent=2))
    else:
        show_check(check, Console())


def plan_from(options: PlanOptions, progress: Console) -> tuple[Plan, tuple[str, ...]]:
    """The plan and its assumptions, one sentence each. progress: shows what is being simulated."""
    gpu = _gpu(options)
    if options.gpus < 1:  # checked first, since reading a long run takes time
        raise UsageError(f"--gpus {options.gpus}: a cluster needs GPUs; give 2 or more.")
    workload, model, batch_tokens, max_lag = _source(options)
    request = PlanRequest(
        gpus=options.gpus,
        workload=workload,
        model=model,
        gpu=gpu,
        batch_tokens=batch_tokens if options.batch_tokens is None else options.batch_tokens,
        max_lag=max_lag if options.max_lag is None else options.max_lag,
        slots=options.slots,
        server_gpus=options.server_gpus,
        trainer_gpus=options.trainer_gpus,
        hosts=options.hosts,
        updates=options.updates,
        seed=options.seed,
    )
    with progress.status("simulating") as status:
        plan = make_plan(request, lambda text: status.update(f"simulating {text}"))
    return plan, (*workload.assumptions, *hardware_assumptions(gpu, model), *_simulated(plan))


def _source(options: PlanOptions) -> tuple[Workload, ModelSize, float, int]:
    """Workload, policy, tokens of an update and max_lag, from the paper or from a run."""
    if options.workload:
        if options.workload != "paper":
            raise UsageError(
                f"--workload {options.workload}: there is only 'paper'. To plan from a run: selfplay plan "
                "RUN."
            )
        if options.run:
            raise UsageError(f"{options.run} and --workload {options.workload}: give one of the two.")
        model = _model(options.parameters) or PAPER_MODEL
        workload = paper_workload(paper_assumptions(_assumed(options.assume)), options.seed)
        return workload, model, PAPER_BATCH_TOKENS, PAPER_MAX_LAG
    if options.assume:
        raise UsageError("--assume sets what the paper leaves open; give it with --workload paper.")
    folder = open_run(options.run, options.runs)
    recorded = read_run(folder)
    return (
        recorded.workload,
        _model(options.parameters) or run_model(folder),
        recorded.batch_tokens,
        recorded.max_lag,
    )


def _model(parameters: float | None) -> ModelSize | None:
    if parameters is None:
        return None
    if not math.isfinite(parameters) or parameters < 1:
        raise UsageError(
            f"--parameters {parameters:g}: give the policy's number of parameters, for instance 32e9."
        )
    return assumed_shape(parameters)


def _gpu(options: PlanOptions) -> Gpu:
    """The default GPU with the given options. Raises UsageError that names a wrong value."""
    changes = {}
    for flag, name, value, scale in (
        ("--peak-tflops", "peak_flops", options.peak_tflops, 1e12),
        ("--bandwidth-tbs", "bandwidth", options.bandwidth_tbs, 1e12),
        ("--gpu-gb", "memory", options.gpu_gb, 1e9),
        ("--mfu", "mfu", options.mfu, 1.0),
        ("--mbu", "mbu", options.mbu, 1.0),
        ("--link-gbs", "link", options.link_gbs, 1e9),
    ):
        if value is None:
            continue
        is_share = name in ("mfu", "mbu")
        if not math.isfinite(value) or value <= 0 or (is_share and value > 1):
            raise UsageError(
                f"{flag} {value:g}: needs a {'share above 0 and up to 1' if is_share else 'number above 0'}."
            )
        changes[name] = value * scale
    return replace(Gpu(), **changes)


def _assumed(texts: Sequence[str]) -> dict[str, float]:
    """name=number of each `--assume`. Raises UsageError for any other text."""
    values = {}
    for text in texts:
        name, separator, value = text.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise UsageError(f"--assume {text!r} is not name=number, for instance --assume drawn_tokens=600.")
    return values


def _simulated(plan: Plan) -> tuple[str, ...]:
    """How the plan was simulated, in sentences."""
    request = plan.request
    return (
        f"simulated: {request.updates} updates, after {request.max_lag + 2} that fill the pipeline; seed "
        f"{request.seed}; an episode's turns are merged into at most {STRETCHES} stretches; whole groups are "
        f"sampled with replacement from {len(request.workload.injectors)} injector groups and "
        f"{len(request.workload.solvers)} solver groups",
        "simulated: a conversation stays with one server; a group starts only while earlier groups fill at "
        "most max_lag + 1 batches; no machine fails; lengths and solve rates stay the same while the "
        "policy learns",
        "best: the most trained episodes per hour, then the fewest hosts that keep 99 % of it; whole "
        f"servers of {request.server_gpus} GPU(s)",
    )
