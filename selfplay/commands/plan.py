"""`selfplay plan`: makes a plan or a check from the options, and shows it or prints it as JSON.

All figures come from `selfplay.planning`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from selfplay.commands.choices import chosen_run
from selfplay.errors import UsageError
from selfplay.planning.check import check_run
from selfplay.planning.hardware import Gpu, ModelSize, assumed_shape, hardware_assumptions
from selfplay.planning.paper import (
    PAPER_BATCH_TOKENS,
    PAPER_GPUS,
    PAPER_MAX_LAG,
    PAPER_MODEL,
    paper_assumptions,
    paper_sample,
    paper_workload,
    usual_gpus,
)
from selfplay.planning.recorded import read_run, run_model
from selfplay.planning.search import (
    GOOD_ENOUGH,
    SIMULATIONS,
    STRETCHES,
    Plan,
    PlanRequest,
    make_plan,
    simulation_seeds,
)
from selfplay.planning.simulators import Simulators
from selfplay.planning.workload import Workload
from selfplay.viewing.plan import check_data, plan_data, show_check, show_plan
from selfplay.viewing.steps import StepProgress


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
    gpus: int | None = None
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
    updates: int = 8
    simulations: int = SIMULATIONS
    seed: int = 0


def run_plan(options: PlanOptions, *, as_json: bool = False) -> None:
    """Show or print a plan. Raises UsageError or RunError that names what cannot be planned."""
    plan, assumptions = plan_from(options, Console(stderr=True))
    if as_json:
        print(json.dumps(plan_data(plan, assumptions), indent=2))
    else:
        note = assumptions[0] if options.gpus is None else ""
        show_plan(plan, assumptions[bool(note) :], Console(), note)


def run_check(run: str, runs: Path, seed: int, *, as_json: bool = False) -> None:
    """Show or print the prediction of a run's second half from its first."""
    folder = chosen_run(run, runs)
    with StepProgress(Console(stderr=True)) as progress:
        check = check_run(folder, seed, progress.report)
    if as_json:
        print(json.dumps(check_data(check), indent=2))
    else:
        show_check(check, Console())


def plan_from(options: PlanOptions, progress: Console) -> tuple[Plan, tuple[str, ...]]:
    """The plan and its assumptions, one sentence each. progress: shows how much is read and simulated.

    If no number of GPUs was given, the first assumption says which one was taken.
    """
    gpu = _gpu(options)
    # Checked first, since reading a long run takes time.
    if options.gpus is not None and options.gpus < 1:
        raise UsageError(f"--gpus {options.gpus}: a cluster needs GPUs; give 2 or more.")
    simulation_seeds(options.seed, options.simulations)
    with StepProgress(progress) as steps:
        source = _source(options, steps)
        request = _request(options, source, gpu)
        with Simulators() as simulate:
            plan = make_plan(
                request,
                lambda done, at_most: steps.report("simulating", done, at_most, "of at most"),
                simulate,
            )
    taken = () if options.gpus is not None else (source.gpus_reason,)
    hardware = hardware_assumptions(gpu, source.model)
    return plan, (*taken, *source.workload.assumptions, *hardware, *_simulated(plan))


def _request(options: PlanOptions, source: _Source, gpu: Gpu) -> PlanRequest:
    return PlanRequest(
        gpus=source.gpus if options.gpus is None else options.gpus,
        workload=source.workload,
        model=source.model,
        gpu=gpu,
        batch_tokens=source.batch_tokens if options.batch_tokens is None else options.batch_tokens,
        max_lag=source.max_lag if options.max_lag is None else options.max_lag,
        slots=options.slots,
        server_gpus=options.server_gpus,
        trainer_gpus=options.trainer_gpus,
        hosts=options.hosts,
        updates=options.updates,
        simulations=options.simulations,
        seed=options.seed,
        samples=source.samples,
    )


@dataclass(frozen=True)
class _Source:
    """What the paper or a run says.

    samples            the workload of each simulation; empty: all play `workload`
    gpus, gpus_reason  the number of GPUs if none is given, and why, in a sentence
    """

    workload: Workload
    model: ModelSize
    batch_tokens: float
    max_lag: int
    gpus: int
    gpus_reason: str
    samples: tuple[Workload, ...] = ()


def _source(options: PlanOptions, steps: StepProgress) -> _Source:
    """The paper or a run."""
    if options.workload:
        if options.workload != "paper":
            raise UsageError(
                f"--workload {options.workload}: there is only 'paper'. To plan from a run: selfplay plan "
                "RUN."
            )
        if options.run:
            raise UsageError(f"{options.run} and --workload {options.workload}: give one of the two.")
        return _paper_source(options, steps)
    if options.assume:
        raise UsageError("--assume sets what the paper leaves open; give it with --workload paper.")
    folder = chosen_run(options.run, options.runs)
    model = _model(options.parameters)
    recorded = read_run(folder, report=partial(steps.report, "reading episodes"))
    model = model or run_model(folder)
    gpus = usual_gpus(model.parameters)
    return _Source(
        recorded.workload,
        model,
        recorded.batch_tokens,
        recorded.max_lag,
        gpus,
        f"assumed {gpus} GPUs for a policy of {_size_text(model.parameters)} parameters; --gpus N chooses",
    )


def _paper_source(options: PlanOptions, steps: StepProgress) -> _Source:
    """The paper. Each simulation plays a sample of its own, so the figures hold for the assumptions."""
    model = _model(options.parameters) or PAPER_MODEL
    assumed = paper_assumptions(_assumed(options.assume))
    samples: list[Workload] = []
    for seed in simulation_seeds(options.seed, options.simulations):
        steps.report("sampling the paper's episodes", len(samples), options.simulations)
        samples.append(paper_sample(assumed, seed))
    reason = f"assumed {PAPER_GPUS} GPUs, as in the paper; --gpus N chooses"
    workload = paper_workload(assumed, samples)
    return _Source(workload, model, PAPER_BATCH_TOKENS, PAPER_MAX_LAG, PAPER_GPUS, reason, tuple(samples))


def _size_text(parameters: float) -> str:
    """`2.1M`, `32B`."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{round(parameters / unit, 1):g}{letter}"
    return f"{parameters:g}"


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
    groups = (
        f"{len(request.workload.injectors)} injector groups and {len(request.workload.solvers)} solver groups"
    )
    seeds = f"{request.seeds[0]} to {request.seeds[-1]}"
    return (
        f"simulated: each split {request.simulations} times (seeds {seeds}), {request.updates} updates each, "
        f"after {request.max_lag + 2} that fill the pipeline; an episode's turns are merged into at most "
        f"{STRETCHES} stretches; whole groups are sampled with replacement from {groups}",
        "±: one standard error of the mean over the simulations. It covers chance in the simulation, not "
        "that these groups are few or that an assumption is wrong. A split cannot be told apart from the "
        "best if the interval of their difference contains 0; all these intervals together hold with a "
        "confidence of 95%. More --simulations narrow them",
        "simulated: a conversation stays with one server; a group starts only while earlier groups fill at "
        "most max_lag + 1 batches; no machine fails; lengths and solve rates stay the same while the "
        "policy learns",
        "best: the most trained episodes an hour; enough hosts are the fewest that keep "
        f"{GOOD_ENOUGH:.0%} of them; whole servers of {request.server_gpus} GPU(s)",
    )
