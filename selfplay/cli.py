"""The command line: builds objects, calls one function a command. Heavy imports wait inside the commands, so that --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from selfplay.errors import SelfplayError, UsageError, full_disk_told
from selfplay.runtime.heaps import bound_heaps

app = typer.Typer(
    name="selfplay",
    help="Self-play bug injection and repair: one policy, two roles, verdicts by execution.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="A TOML file of settings; recipes are in runs/recipes/.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="One setting, for instance train.updates=6; may be repeated."),
]
RunRoot = Annotated[Path, typer.Option("--runs", help="The folder that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print data instead of tables.")]


@app.command()
def train(
    repos: Annotated[Path | None, typer.Option("--repos", help="A repository list, one a line.")] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="Continue a run: its name or folder.")
    ] = None,
    runs: RunRoot = Path("runs"),
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="auto|ADDRESS",
            help="Run on this Ray cluster; auto: the one this machine is in.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would run where and what memory it takes; start nothing."),
    ] = False,
) -> None:
    """Play, judge and learn over a list of repositories.

    Example: [bold]selfplay train --repos runs/recipes/quickstart-repos.txt --config runs/recipes/quickstart.toml[/bold]
    """
    if dry_run:
        from selfplay.commands.dry_run import dry_run_training

        if resume is not None or repos is None:
            raise typer.BadParameter(
                "--dry-run plans a new run: give --repos FILE, and --config or --set as for the run itself."
            )
        dry_run_training(repos, config, set_ or [], cluster)
        return
    from selfplay.commands.train import resume_training, start_training

    if resume is not None:
        if repos is not None or config is not None:
            raise typer.BadParameter(
                "a resumed run keeps its own repositories and settings; give --resume alone (--set may raise train.updates)."
            )
        resume_training(resume, runs, set_ or [], cluster)
    elif repos is None:
        raise typer.BadParameter(
            "--repos FILE is needed (or --resume RUN). A first list: runs/recipes/quickstart-repos.txt"
        )
    else:
        start_training(repos, config, set_ or [], cluster)


@app.command("inspect-bugs")
def inspect_bugs(
    run: Annotated[str, typer.Argument(help="A run's name or folder; the newest when left out.")] = "",
    bug: Annotated[
        str | None, typer.Option("--bug", help="Show one bug in full, by its id or the start of it.")
    ] = None,
    repository: Annotated[str | None, typer.Option("--repository", help="Only this repository.")] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help="Only this strategy.")] = None,
    order: Annotated[
        int | None, typer.Option("--order", help="1: injected, 2: grown from a failed repair.")
    ] = None,
    status: Annotated[str | None, typer.Option("--status", help="fresh, playing, measured or void.")] = None,
    min_solve_rate: Annotated[float | None, typer.Option("--min-solve-rate")] = None,
    max_solve_rate: Annotated[float | None, typer.Option("--max-solve-rate")] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="created, repository, strategy, order, status or solve_rate.")
    ] = "created",
    rejected: Annotated[bool, typer.Option("--rejected", help="Why artifacts were rejected.")] = False,
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", help="Write the bugs as task records (JSONL) that `selfplay eval` reads."),
    ] = None,
    runs: RunRoot = Path("runs"),
    json_: AsJson = False,
) -> None:
    """The curriculum of a run: its bugs, one bug in full with its lineage, or why artifacts were rejected.

    Example: [bold]selfplay inspect-bugs --order 1 --sort solve_rate[/bold]
    """
    from rich.console import Console

    from selfplay.curriculum.store import Store
    from selfplay.orchestrator.run_folder import open_run
    from selfplay.viewing.inspect import BugFilter, select_bugs, show_bug, show_bugs, show_rejections

    folder = open_run(run, runs)
    store = Store.open(folder.database, writer=False)
    console = Console()
    wanted = BugFilter(repository, strategy, order, status, min_solve_rate, max_solve_rate, sort)
    if tasks is not None:
        from selfplay.evaluation.tasks import export_tasks

        count = export_tasks(store, select_bugs(store, wanted), folder, tasks)
        console.print(f"{count} task(s) written to {tasks}. Next: selfplay eval --tasks {tasks}")
    elif bug is not None:
        show_bug(store, bug, console, as_json=json_)
    elif rejected:
        show_rejections(store, console, as_json=json_)
    else:
        show_bugs(store, wanted, console, as_json=json_)


@app.command()
def replay(
    episode: Annotated[str, typer.Argument(help="An episode's id, the start of it, or its file.")],
    run: Annotated[
        str, typer.Option("--run", help="The run it belongs to; all are searched when left out.")
    ] = "",
    step: Annotated[bool, typer.Option("--step", help="Wait for Enter after each turn.")] = False,
    speed: Annotated[
        float | None,
        typer.Option("--speed", min=0.01, help="Play like a film, this many times as fast as it happened."),
    ] = None,
    runs: RunRoot = Path("runs"),
    json_: AsJson = False,
) -> None:
    """One episode in the terminal: what the policy did, turn by turn, and what came of it.

    Example: [bold]selfplay replay u0001-sol0-m3 --step[/bold]
    """
    from rich.console import Console

    from selfplay.viewing import replay as viewer

    found = viewer.find_episode(runs / run if run else runs, episode)
    if json_:
        import json

        typer.echo(json.dumps(found.episode.to_json()))
        return
    viewer.replay(found, Console(), step=step, speed=speed)


@app.command()
def validate(
    artifact: Annotated[Path, typer.Argument(help="A folder with the five files of a bug artifact.")],
    repo: Annotated[
        str, typer.Option("--repo", help="The repository it breaks, as a line of a repository list.")
    ],
    config: ConfigFile = None,
    set_: Overrides = None,
    all_checks: Annotated[bool, typer.Option("--all", help="Go on after the first failed check.")] = False,
    json_: AsJson = False,
) -> None:
    """The verdict on one artifact, check by check, with evidence. Exit codes: 0 accepted, 1 rejected, 3 no verdict (machine).

    Example: [bold]selfplay validate my-bug/ --repo pypi:toolz==1.0.0[/bold]
    """
    from selfplay.commands.validate import judge_folder

    raise typer.Exit(judge_folder(artifact, repo, config, set_ or [], all_checks=all_checks, as_json=json_))


@app.command("eval")
def evaluate(
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", help="A frozen set (own, human) or a file, one JSON object a line; may be repeated."
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    attempts: Annotated[
        int, typer.Option("--attempts", min=0, help="Drawn attempts a task, at agent.temperature.")
    ] = 4,
    greedy: Annotated[
        bool, typer.Option("--greedy/--no-greedy", help="And one attempt at temperature 0.")
    ] = True,
    limit: Annotated[
        int,
        typer.Option("--limit", min=0, help="A fixed subset of so many, spread over repositories; 0: all."),
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Keep the episodes and results here; a second call continues."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Two output folders: play nothing, compare them."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """A policy's repair rate on bugs, drawn and greedy, with standard errors; or two policies' difference on the same bugs.

    Example: [bold]selfplay eval --tasks own --config runs/recipes/quickstart.toml --output A[/bold], then [bold]--compare A B[/bold]
    """
    if compare is not None:
        from selfplay.viewing.scores import compare_folders

        if tasks or output is not None or config is not None or set_:
            raise typer.BadParameter(
                "--compare A B reads two finished folders; give it alone (or with --json)."
            )
        compare_folders(*compare, as_json=json_)
        return
    if not tasks:
        raise typer.BadParameter(
            "--tasks SET_OR_FILE is needed (or --compare A B). Sets that come with selfplay: own, human."
        )
    from selfplay.commands.evaluate import EvaluationRequest, start_evaluation

    request = EvaluationRequest(tasks, limit, attempts, greedy, output)
    start_evaluation(request, config, set_ or [], as_json=json_)


@app.command("warm-start")
def warm_start(
    output: Annotated[Path, typer.Option("--output", help="The folder for the policy.")] = Path(
        "runs/warm-start"
    ),
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="A TOML file of warm-start settings.")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Make a cold-started policy: mid-training on source, then supervised trajectories for both roles.

    Example: [bold]selfplay warm-start --config runs/recipes/warm-start.toml --output runs/my-policy[/bold]
    """
    from selfplay.warm_start import run_warm_start

    run_warm_start(output, config, set_ or [])


@app.command()
def plan(
    run: Annotated[
        str, typer.Argument(help="A finished run to read from, its name or folder; the newest when left out.")
    ] = "",
    workload: Annotated[
        str, typer.Option("--workload", help="Without a run: 'paper', its figures and stated assumptions.")
    ] = "",
    assume: Annotated[
        list[str] | None,
        typer.Option(
            "--assume", help="Of the paper's workload, for instance drawn_tokens=600; may be repeated."
        ),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs in all.")] = 512,
    trainer_gpus: Annotated[
        int, typer.Option("--trainer-gpus", help="Those that train; 0: the best number is found.")
    ] = 0,
    server_gpus: Annotated[
        int,
        typer.Option("--server-gpus", help="GPUs of one rollout server; 0: as the policy needs, up to 8."),
    ] = 0,
    hosts: Annotated[
        int, typer.Option("--hosts", help="Machines with sandboxes; 0: the fewest that are enough.")
    ] = 0,
    slots: Annotated[int, typer.Option("--slots", help="Sandboxes open at a time on one host.")] = 64,
    max_lag: Annotated[int | None, typer.Option("--max-lag", help="Default: the run's, or 8.")] = None,
    batch_tokens: Annotated[
        float | None, typer.Option("--batch-tokens", help="Of an update. Default: the run's mean, or 16.8e6.")
    ] = None,
    parameters: Annotated[
        float | None, typer.Option("--parameters", help="Of the policy. Default: the run's, or 32e9.")
    ] = None,
    peak_tflops: Annotated[
        float | None, typer.Option("--peak-tflops", help="Default 989: H100 SXM, dense bf16, data sheet.")
    ] = None,
    bandwidth_tbs: Annotated[
        float | None, typer.Option("--bandwidth-tbs", help="Default 3.35 TB/s: H100 SXM, data sheet.")
    ] = None,
    gpu_gb: Annotated[float | None, typer.Option("--gpu-gb", help="Default 80: H100 SXM.")] = None,
    mfu: Annotated[
        float | None,
        typer.Option("--mfu", help="Share of peak in training. Default 0.38: Llama 3 at 131,072 tokens."),
    ] = None,
    mbu: Annotated[
        float | None, typer.Option("--mbu", help="Share of bandwidth in drawing. Default 0.6: assumed.")
    ] = None,
    link_gbs: Annotated[
        float | None, typer.Option("--link-gbs", help="Weights travel at. Default 50 GB/s: 400 Gbit/s.")
    ] = None,
    updates: Annotated[int, typer.Option("--updates", help="Simulated for each split.")] = 12,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    check: Annotated[
        bool,
        typer.Option("--check", help="Predict the run's second half from its first, and tell the error."),
    ] = False,
    runs: RunRoot = Path("runs"),
    json_: AsJson = False,
) -> None:
    """What N GPUs would do: episodes an hour, idle shares, staleness, and the best split, simulated from a run or from the paper.

    Example: [bold]selfplay plan --workload paper --gpus 512[/bold] or [bold]selfplay plan RUN --gpus 64 --parameters 8e9[/bold]
    """
    from selfplay.commands.plan import PlanOptions, run_check, run_plan

    if check:
        if workload:
            raise UsageError("--check compares with a run; leave --workload out.")
        run_check(run, runs, seed, as_json=json_)
        return
    options = PlanOptions(
        run=run,
        runs=runs,
        workload=workload,
        assume=assume or [],
        gpus=gpus,
        trainer_gpus=trainer_gpus,
        server_gpus=server_gpus,
        hosts=hosts,
        slots=slots,
        max_lag=max_lag,
        batch_tokens=batch_tokens,
        parameters=parameters,
        tflops=peak_tflops,
        bandwidth=bandwidth_tbs,
        memory=gpu_gb,
        mfu=mfu,
        mbu=mbu,
        link=link_gbs,
        updates=updates,
        seed=seed,
    )
    run_plan(options, as_json=json_)


@app.command()
def doctor(
    clean: Annotated[bool, typer.Option("--clean", help="Remove what killed runs left behind.")] = False,
    attack: Annotated[
        bool,
        typer.Option("--attack", help="Attack this machine's own sandboxes and judging; 0 when all held."),
    ] = False,
    sandbox: Annotated[
        str | None, typer.Option("--sandbox", help="With --attack: docker, bubblewrap or auto, the default.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """What is missing on this machine, and the command that mends it.

    Example: [bold]selfplay doctor --clean[/bold] or [bold]selfplay doctor --attack[/bold]
    """
    from rich.console import Console

    from selfplay.commands import doctor as examiner

    if attack and clean:
        raise UsageError("--attack and --clean are two things; run one after the other.")
    if sandbox is not None and not attack:
        raise UsageError(
            f"--sandbox {sandbox} goes with --attack; without it every kind of sandbox is examined."
        )
    if attack:
        raise typer.Exit(examiner.attack(Console(), sandbox or "auto", as_json=json_))
    raise typer.Exit(examiner.main(Console(), clean=clean, as_json=json_))


def main() -> None:
    """Entry point: deliberate errors become one message and their exit code, never a traceback."""
    bound_heaps()
    try:
        with full_disk_told(Path.cwd()):
            app(standalone_mode=True)
    except SelfplayError as error:
        from rich.console import Console
        from rich.text import Text

        from selfplay.agent.observations import make_harmless

        console = Console(stderr=True)  # messages and logs may quote what hostile code printed
        console.print(Text("error: ", style="bold red") + Text(make_harmless(str(error))))
        tail = getattr(error, "log_tail", "")
        if tail:
            console.print(Text(make_harmless(tail), style="dim"))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted; a run continues with: selfplay train --resume RUN", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
