"""The command line: each command packs its options and calls one function of `commands/`.

Heavy imports wait inside the commands, so that --help is quick.
"""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from selfplay.commands import options, viewer_options
from selfplay.commands.help_pages import Command, without_types
from selfplay.errors import SelfplayError, UsageError, full_disk_reported, path_fault
from selfplay.runtime.heaps import bound_heaps
from selfplay.runtime.terminal import ready_streams

# As a shell reports a process that a signal ended.
INTERRUPTED = 130  # SIGINT
OUTPUT_CLOSED = 141  # SIGPIPE


class CommandGroup(TyperGroup):
    """Says that a command was interrupted, and what follows. Typer would end it without a word."""

    def get_params(self, ctx: Any) -> Any:
        return without_types(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            notes = getattr(interrupt, "__notes__", [])
            typer.echo("\n".join(["interrupted", *notes]), err=True)
            raise typer.Exit(INTERRUPTED) from interrupt


app = typer.Typer(
    name="selfplay",
    cls=CommandGroup,
    help="Self-play bug injection and repair: one policy, two roles, verdicts by execution.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def options_of_all(version: options.Version = False) -> None:
    """Options that stand before the command. `--version` prints and ends there."""


@app.command(cls=Command)
def train(
    repos: options.TrainRepos = None,
    config: options.ConfigFile = None,
    set_: options.Overrides = None,
    resume: options.TrainResume = None,
    runs: options.RunRoot = Path("runs"),
    cluster: options.Cluster = None,
    dry_run: options.TrainDryRun = False,
) -> None:
    """Play, judge and train over a list of repositories.

    Example: [bold]selfplay train --repos list.txt --config quickstart[/bold]
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

    if resume == "":
        raise typer.BadParameter("--resume needs the name or folder of a run.")
    if resume is not None:
        if repos is not None or config is not None:
            raise typer.BadParameter(
                "a resumed run keeps its own repositories and settings; "
                "give --resume alone (--set may raise train.updates)."
            )
        resume_training(resume, runs, set_ or [], cluster)
    elif repos is None:
        raise typer.BadParameter(
            "--repos FILE is needed (or --resume RUN). A first list: --repos quickstart-repos"
        )
    else:
        start_training(repos, config, set_ or [], cluster)


@app.command(cls=Command)
def show(
    run: viewer_options.ShowRun = "", runs: options.RunRoot = Path("runs"), json_: options.AsJson = False
) -> None:
    """The summary of a run, as at its end; also while it plays.

    Example: [bold]selfplay show[/bold]
    """
    from selfplay.commands.show import show_run

    show_run(run, runs, as_json=json_)


@app.command("runs", cls=Command)
def list_runs(runs: options.RunRoot = Path("runs"), json_: options.AsJson = False) -> None:
    """The runs there are, how far each is, and the settings in which they differ.

    Example: [bold]selfplay runs --runs experiments[/bold]
    """
    from selfplay.commands import show

    show.list_runs(runs, as_json=json_)


@app.command(cls=Command)
def report(
    run: options.ReportRuns = None,
    output: options.ReportOutput = None,
    runs: options.RunRoot = Path("runs"),
) -> None:
    """One HTML page about a run, or about several side by side. It needs no network and runs no script.

    Example: [bold]selfplay report[/bold] or [bold]selfplay report RUN RUN --output page.html[/bold]
    """
    from selfplay.commands.report import write_report

    write_report(run or [], runs, output)


@app.command(cls=Command)
def export(
    run: viewer_options.BugsRun = "",
    format_: options.ExportFormat = "",
    output: options.ExportOutput = None,
    runs: options.RunRoot = Path("runs"),
) -> None:
    """Bugs or episodes of a run in a format that other tools read.

    Example: [bold]selfplay export --format atif --output trajectories[/bold]
    """
    from selfplay.commands.export import write_export

    write_export(run, runs, format_, output)


@app.command("inspect-bugs", cls=Command)
def inspect_bugs(
    run: viewer_options.BugsRun = "",
    bug: viewer_options.BugsBug = None,
    repository: viewer_options.BugsRepository = None,
    strategy: viewer_options.BugsStrategy = None,
    order: viewer_options.BugsOrder = None,
    status: viewer_options.BugsStatus = None,
    solve_rate: viewer_options.BugsSolveRate = None,
    min_solve_rate: viewer_options.BugsMinSolveRate = None,
    max_solve_rate: viewer_options.BugsMaxSolveRate = None,
    since: viewer_options.BugsSince = None,
    search: viewer_options.BugsSearch = None,
    sort: viewer_options.BugsSort = "created",
    reverse: viewer_options.BugsReverse = False,
    limit: viewer_options.BugsLimit = None,
    rejected: viewer_options.BugsRejected = False,
    rejected_by: viewer_options.BugsRejectedBy = None,
    tasks: viewer_options.BugsTasks = None,
    runs: options.RunRoot = Path("runs"),
    plain: viewer_options.Plain = False,
    csv: viewer_options.BugsCsv = False,
    json_: options.AsJson = False,
) -> None:
    """The curriculum of a run: its bugs, one bug in full with its lineage, or why artifacts were rejected.

    In a terminal it is a full screen (? shows the keys); with --plain, and in a pipe, a table.

    Example: [bold]selfplay inspect-bugs --order 1 --solve-rate 0.1..0.6 --sort solve_rate[/bold]
    """
    from selfplay.commands.inspect_bugs import BugRequest, inspect_run
    from selfplay.curriculum.bug_filter import BugFilter

    if solve_rate is not None and (min_solve_rate is not None or max_solve_rate is not None):
        raise UsageError("--solve-rate says both bounds; leave --min-solve-rate and --max-solve-rate out.")
    wanted = BugFilter(
        repository=repository,
        strategy=strategy,
        order=order,
        status=status,
        min_solve_rate=min_solve_rate,
        max_solve_rate=max_solve_rate,
        text=search,
        sort=sort,
        reverse=reverse,
        limit=limit,
    )
    request = BugRequest(bug, rejected, tasks, wanted, rejected_by, solve_rate, since, csv, plain)
    inspect_run(run, runs, request, as_json=json_)


@app.command(cls=Command)
def episodes(
    run: viewer_options.EpisodesRun = "",
    role: viewer_options.EpisodesRole = None,
    finish: viewer_options.EpisodesFinish = None,
    min_reward: viewer_options.EpisodesMinReward = None,
    max_reward: viewer_options.EpisodesMaxReward = None,
    check: viewer_options.EpisodesCheck = None,
    update: viewer_options.EpisodesUpdate = None,
    bug: viewer_options.EpisodesBug = None,
    group: viewer_options.EpisodesGroup = None,
    limit: viewer_options.EpisodesLimit = None,
    runs: options.RunRoot = Path("runs"),
    json_: options.AsJson = False,
) -> None:
    """The episodes of a run with verdict or grade, reward and advantage; or one group's members side by side.

    Example: [bold]selfplay episodes --role injector --check parser[/bold]
    or [bold]selfplay episodes --group u0001-sol0[/bold]
    """
    from selfplay.commands.episodes import list_episodes
    from selfplay.viewing.episodes import EpisodeFilter

    wanted = EpisodeFilter(role, finish, min_reward, max_reward, check, update, bug, group, limit)
    list_episodes(run, runs, wanted, as_json=json_)


@app.command(cls=Command)
def replay(
    what: viewer_options.ReplayWhat,
    run: viewer_options.ReplayRun = "",
    play: viewer_options.ReplayPlay = False,
    step: viewer_options.ReplayStep = False,
    speed: viewer_options.ReplaySpeed = None,
    rerun: viewer_options.ReplayRerun = False,
    plain: viewer_options.Plain = False,
    runs: options.RunRoot = Path("runs"),
    json_: options.AsJson = False,
) -> None:
    """An episode turn by turn, the story of a bug, or the episodes of a run.

    In a terminal it is a full screen (? shows the keys); with --plain, and in a pipe, it is printed.

    Example: [bold]selfplay replay u0001-sol0-m3[/bold]
    or [bold]selfplay replay u0001-sol0-m3 --play --speed 4[/bold]
    """
    from selfplay.commands.replay import ReplayRequest, replay_recorded

    request = ReplayRequest(what, play, step, speed, plain, rerun)
    raise typer.Exit(replay_recorded(request, run, runs, as_json=json_))


@app.command(cls=Command)
def validate(
    artifact: options.ValidateArtifact,
    repo: options.ValidateRepo,
    config: options.ConfigFile = None,
    set_: options.Overrides = None,
    all_checks: options.ValidateAllChecks = False,
    json_: options.AsJson = False,
) -> None:
    """The verdict on one artifact, check by check, with evidence.

    Exit codes: 0 accepted, 1 rejected, 2 wrong usage (a file is missing), 3 no verdict: the machine failed.

    Example: [bold]selfplay validate my-bug/ --repo pypi:toolz==1.0.0[/bold]
    """
    from selfplay.commands.validate import judge_folder

    raise typer.Exit(judge_folder(artifact, repo, config, set_ or [], all_checks=all_checks, as_json=json_))


@app.command("eval", cls=Command)
def evaluate(
    tasks: options.EvalTasks = None,
    config: options.ConfigFile = None,
    set_: options.Overrides = None,
    attempts: options.EvalAttempts = 4,
    greedy: options.EvalGreedy = True,
    limit: options.EvalLimit = 0,
    output: options.EvalOutput = None,
    clones: options.EvalClones = None,
    predictions: options.EvalPredictions = None,
    cluster: options.Cluster = None,
    compare: options.EvalCompare = None,
    json_: options.AsJson = False,
) -> None:
    """A policy's repair rate on bugs, with standard errors; or two policies compared on the same bugs.

    Example: [bold]selfplay eval --tasks own --config quickstart --output A[/bold],
    then [bold]selfplay eval --compare A B[/bold]
    """
    if compare is not None:
        from selfplay.viewing.scores import compare_folders

        if tasks or config is not None or set_ or any((output, clones, predictions, cluster)):
            raise typer.BadParameter(
                "--compare A B reads two finished folders; give it alone (or with --json)."
            )
        compare_folders(*compare, as_json=json_)
        return
    if not tasks:
        raise typer.BadParameter(
            "--tasks SET_OR_FILE is needed (or --compare A B). "
            f"Sets that come with selfplay: {options.TASK_SETS}."
        )
    if predictions is not None and (attempts != 4 or not greedy):
        raise typer.BadParameter("--predictions plays nothing; leave --attempts and --no-greedy out.")
    from selfplay.commands.evaluate import start_evaluation
    from selfplay.commands.evaluation_request import EvaluationRequest
    from selfplay.commands.grade import start_grading

    request = EvaluationRequest(tasks, limit, attempts, greedy, output, clones, predictions, cluster)
    start = start_evaluation if predictions is None else start_grading
    start(request, config, set_ or [], as_json=json_)


@app.command("warm-start", cls=Command)
def warm_start(
    base: options.WarmStartFrom = None,
    output: options.WarmStartOutput = Path("runs/warm-start"),
    adapter: options.WarmStartAdapter = False,
    episodes: options.WarmStartEpisodes = None,
    config: options.WarmStartConfig = None,
    set_: options.WarmStartOverrides = None,
) -> None:
    """Make a cold-started policy by supervised training on episodes of both roles.

    It starts from nothing, or from a model: then all texts have that model's own chat format.

    Example: [bold]selfplay warm-start --from smollm2 --adapter --output runs/my-policy[/bold]
    """
    from selfplay.warm_start.pipeline import run_warm_start

    run_warm_start(output, config, set_ or [], base=base, adapter=adapter, episodes=episodes or ())


@app.command(cls=Command)
def plan(
    run: options.PlanRun = "",
    workload: options.PlanWorkload = "",
    assume: options.PlanAssume = None,
    gpus: options.PlanGpus = None,
    trainer_gpus: options.PlanTrainerGpus = 0,
    server_gpus: options.PlanServerGpus = 0,
    hosts: options.PlanHosts = 0,
    slots: options.PlanSlots = 64,
    max_lag: options.PlanMaxLag = None,
    batch_tokens: options.PlanBatchTokens = None,
    parameters: options.PlanParameters = None,
    peak_tflops: options.PlanPeakTflops = None,
    bandwidth_tbs: options.PlanBandwidthTbs = None,
    gpu_gb: options.PlanGpuGb = None,
    mfu: options.PlanMfu = None,
    mbu: options.PlanMbu = None,
    link_gbs: options.PlanLinkGbs = None,
    updates: options.PlanUpdates = 8,
    simulations: options.PlanSimulations = 5,
    seed: options.PlanSeed = 0,
    check: options.PlanCheck = False,
    runs: options.RunRoot = Path("runs"),
    json_: options.AsJson = False,
) -> None:
    """Simulate N GPUs, from a run or from the paper: episodes an hour, idle shares, the best split.

    Example: [bold]selfplay plan --workload paper --gpus 512[/bold]
    or [bold]selfplay plan RUN --gpus 64 --parameters 8e9[/bold]
    """
    given = locals()
    from selfplay.commands.plan import PlanOptions, run_check, run_plan

    if check:
        if workload:
            raise UsageError("--check compares with a run; leave --workload out.")
        run_check(run, runs, seed, as_json=json_)
        return
    typed = {name: value for name, value in given.items() if name not in ("check", "json_")}
    run_plan(PlanOptions(**typed | {"assume": assume or []}), as_json=json_)


@app.command(cls=Command)
def doctor(
    clean: options.DoctorClean = False,
    attack: options.DoctorAttack = False,
    sandbox: options.DoctorSandbox = None,
    json_: options.AsJson = False,
) -> None:
    """What this machine lacks, and the command that fixes it.

    Example: [bold]selfplay doctor --clean[/bold] or [bold]selfplay doctor --sandbox my_parts:Backend[/bold]
    """
    from rich.console import Console

    from selfplay.commands import doctor as examiner

    if attack and clean:
        raise UsageError("--attack and --clean are two things; run one after the other.")
    if sandbox is not None and clean:
        raise UsageError("--sandbox and --clean are two things; run one after the other.")
    if attack:
        raise typer.Exit(examiner.attack(Console(), sandbox or "auto", as_json=json_))
    if sandbox is not None:
        from selfplay.commands.conform import conform

        raise typer.Exit(conform(Console(), sandbox, as_json=json_))
    raise typer.Exit(examiner.main(Console(), clean=clean, as_json=json_))


def main() -> None:
    """Entry point. A reader of the output that has gone, as after `| head`, ends the command quietly."""
    ready_streams()
    bound_heaps()
    try:
        try:
            run_command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        leave_closed_output()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # so rich and typer end on it
            leave_closed_output()
        raise


def leave_closed_output() -> NoReturn:
    """End without a word. Python would write what is left in its buffers, and fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    sys.exit(OUTPUT_CLOSED)


def run_command() -> None:
    """Deliberate errors become one message and their exit code, never a traceback."""
    try:
        with full_disk_reported(Path.cwd()):
            app(standalone_mode=True)
    except OSError as error:
        if not (message := path_fault(error)):
            raise
        end_with(SelfplayError(message))
    except SelfplayError as error:
        end_with(error)


def end_with(error: SelfplayError) -> NoReturn:
    """Print the message of an error, and exit with its code."""
    from rich.console import Console
    from rich.text import Text

    from selfplay.agent.observations import make_harmless

    console = Console(stderr=True)  # messages and logs may quote what hostile code printed
    console.print(Text("error: ", style="bold red") + Text(make_harmless(str(error))))
    tail = getattr(error, "log_tail", "")
    if tail:
        console.print(Text(make_harmless(tail), style="dim"))
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
