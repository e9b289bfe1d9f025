"""`selfplay plan`: from what a person typed to a plan or a check, shown or printed as data. Leaves all figures to its neighbours."""

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
from selfplay.planning.hardware import PAPER_MODEL, Gpu, ModelSize, assumed_shape, hardware_assumptions
from selfplay.planning.recorded import read_run, run_model
from selfplay.planning.report import check_data, plan_data, show_check, show_plan
from selfplay.planning.search import STRETCHES, Plan, PlanRequest, make_plan
from selfplay.planning.workload import PAPER_BATCH_TOKENS, Workload, paper_assumptions, paper_workload


@dataclass(frozen=True)
class PlanOptions:
    """What was typed; None and "" where nothing was, then the run, the paper or the defaults of `Gpu` decide."""

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
    tflops: float | None = None
    bandwidth: float | None = None  # TB/s
    memory: float | None = None  # GB
    mfu: float | None = None
    mbu: float | None = None
    link: float | None = None  # GB/s
    updates: int = 12
    seed: int = 0


def run_plan(options: PlanOptions, *, as_json: bool = False) -> None:
    """Raises UsageError or RunError naming what cannot be planned."""
    plan, assumptions = plan_from(options, Console(stderr=True))
    if as_json:
        print(json.dumps(plan_data(plan, assumptions), indent=2))
    else:
        show_plan(plan, assumptions, Console())


def run_check(run: str, runs: Path, seed: int, *, as_json: bool = False) -> None:
    check = check_run(open_run(run, runs), seed)
    if as_json:
        print(json.dumps(check_data(check), indent=2))
    else:
        show_check(check, Console())


def plan_from(options: PlanOptions, progress: Console) -> tuple[Plan, tuple[str, ...]]:
    """The plan, and every assumption behind it in words."""
    gpu = _gpu(options)
    if options.gpus < 1:  # told before a long run is read
        raise UsageError(f"--gpus {options.gpus}: a cluster needs GPUs; give 2 or more.")
    workload, model, batch_tokens, max_lag = _described(options)
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


def _described(options: PlanOptions) -> tuple[Workload, ModelSize, float, int]:
    """Workload, policy, tokens of an update, lag: of the paper or of a run."""
    if options.workload:
        if options.workload != "paper":
            raise UsageError(
                f"--workload {options.workload}: there is only 'paper'; a run is named without it: selfplay plan RUN."
            )
        if options.run:
            raise UsageError(f"{options.run} and --workload {options.workload}: give one of the two.")
        model = _model(options.parameters) or PAPER_MODEL
        return (
            paper_workload(paper_assumptions(_assumed(options.assume)), options.seed),
            model,
            PAPER_BATCH_TOKENS,
            8,
        )
    if options.assume:
        raise UsageError("--assume changes what the paper leaves open; give it with --workload paper.")
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
            f"--parameters {parameters:g}: needs the number of a policy's parameters, for instance 32e9."
        )
    return assumed_shape(parameters)


def _gpu(options: PlanOptions) -> Gpu:
    changes = {}
    for flag, name, value, scale in (
        ("--peak-tflops", "peak_flops", options.tflops, 1e12),
        ("--bandwidth-tbs", "bandwidth", options.bandwidth, 1e12),
        ("--gpu-gb", "memory", options.memory, 1e9),
        ("--mfu", "mfu", options.mfu, 1.0),
        ("--mbu", "mbu", options.mbu, 1.0),
        ("--link-gbs", "link", options.link, 1e9),
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
    values = {}
    for text in texts:
        name, separator, value = text.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise UsageError(f"--assume {text!r} is not name=number, for instance --assume drawn_tokens=600")
    return values


def _simulated(plan: Plan) -> tuple[str, ...]:
    request = plan.request
    return (
        f"simulated: {request.updates} updates after {request.max_lag + 2} that fill the pipeline, seed {request.seed}; "
        f"an episode's turns merged into at most {STRETCHES} stretches; whole groups drawn from {len(request.workload.injectors)} of "
        f"injectors and {len(request.workload.solvers)} of solvers, with replacement",
        "simulated: a conversation stays with one server; a group starts only while those before it fill at most max_lag + 1 batches; "
        "no machine fails, and lengths and solve rates do not change while the policy learns",
        f"best: most trained episodes an hour, then the fewest hosts that keep 99 % of it; whole servers of {request.server_gpus} GPU(s)",
    )
