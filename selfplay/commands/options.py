"""Options of the commands: name, type and help text of each, in the order in which `--help` shows them."""

from pathlib import Path
from typing import Annotated

import typer

from selfplay import __version__


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"selfplay {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="A TOML file of settings, or the name of a recipe, for instance quickstart."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="One setting, for instance train.updates=6; repeatable."),
]
RunRoot = Annotated[Path, typer.Option("--runs", help="The folder that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print data instead of tables.")]

# ---- train

TrainRepos = Annotated[
    Path | None,
    typer.Option(
        "--repos", help="A repository list, one repository a line; quickstart-repos is one that ships."
    ),
]
TrainResume = Annotated[str | None, typer.Option("--resume", help="Continue a run: its name or folder.")]
TrainCluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="auto|ADDRESS", help="Run on this Ray cluster; auto: the one this machine is in."
    ),
]
TrainDryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would run where and what memory it takes; start nothing."),
]

# ---- inspect-bugs

BugsRun = Annotated[str, typer.Argument(help="A run's name or folder; default: the newest.")]
BugsBug = Annotated[
    str | None, typer.Option("--bug", help="Show one bug in full, by its id or the start of it.")
]
BugsRepository = Annotated[str | None, typer.Option("--repository", help="Only this repository.")]
BugsStrategy = Annotated[str | None, typer.Option("--strategy", help="Only this strategy.")]
BugsOrder = Annotated[int | None, typer.Option("--order", help="1: injected; 2: grown from a failed repair.")]
BugsStatus = Annotated[str | None, typer.Option("--status", help="fresh, playing, measured or void.")]
BugsMinSolveRate = Annotated[
    float | None, typer.Option("--min-solve-rate", help="Only bugs with at least this solve rate, 0 to 1.")
]
BugsMaxSolveRate = Annotated[
    float | None, typer.Option("--max-solve-rate", help="Only bugs with at most this solve rate, 0 to 1.")
]
BugsSort = Annotated[
    str, typer.Option("--sort", help="created, repository, strategy, order, status or solve_rate.")
]
BugsReverse = Annotated[bool, typer.Option("--reverse", help="Sort the other way round.")]
BugsLimit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many bugs.")]
BugsRejected = Annotated[bool, typer.Option("--rejected", help="Why artifacts were rejected.")]
BugsTasks = Annotated[
    Path | None,
    typer.Option("--tasks", help="Write the bugs as task records (JSONL) that `selfplay eval` reads."),
]

# ---- show and episodes

ShowRun = Annotated[str, typer.Argument(help="A run's name or folder; default: the newest.")]
EpisodesRun = ShowRun
EpisodesRole = Annotated[str | None, typer.Option("--role", help="injector or solver.")]
EpisodesFinish = Annotated[
    str | None, typer.Option("--finish", help="How it ended, for instance submitted or max_turns.")
]
EpisodesMinReward = Annotated[
    float | None, typer.Option("--min-reward", help="Only episodes with at least this reward.")
]
EpisodesMaxReward = Annotated[
    float | None, typer.Option("--max-reward", help="Only episodes with at most this reward.")
]
EpisodesCheck = Annotated[
    str | None, typer.Option("--check", help="Only artifacts that this check of the validator rejected.")
]
EpisodesUpdate = Annotated[int | None, typer.Option("--update", help="Only those played for this update.")]
EpisodesBug = Annotated[
    str | None,
    typer.Option("--bug", help="Only attempts at this bug, and its injection; the start of its id."),
]
EpisodesGroup = Annotated[
    str | None, typer.Option("--group", help="The members of one group; the start of its id.")
]
EpisodesLimit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the newest so many.")]

# ---- replay

ReplayEpisode = Annotated[str, typer.Argument(help="An episode's id, the start of it, or its file.")]
ReplayRun = Annotated[
    str, typer.Option("--run", help="The run that it belongs to; default: all are searched.")
]
ReplayStep = Annotated[bool, typer.Option("--step", help="Wait for Enter after each turn.")]
ReplaySpeed = Annotated[
    float | None,
    typer.Option("--speed", min=0.01, help="Play it like a film, this many times as fast as it happened."),
]

# ---- validate

ValidateArtifact = Annotated[Path, typer.Argument(help="A folder with the five files of a bug artifact.")]
ValidateRepo = Annotated[
    str, typer.Option("--repo", help="The repository it breaks, as a line of a repository list.")
]
ValidateAllChecks = Annotated[bool, typer.Option("--all", help="Go on after the first failed check.")]

# ---- eval

EvalTasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks", help="A frozen set (own, human) or a file with one JSON object a line; repeatable."
    ),
]
EvalAttempts = Annotated[
    int, typer.Option("--attempts", min=0, help="Sampled attempts at each task, at agent.temperature.")
]
EvalGreedy = Annotated[bool, typer.Option("--greedy/--no-greedy", help="One more attempt at temperature 0.")]
EvalLimit = Annotated[
    int,
    typer.Option("--limit", min=0, help="A fixed subset of so many tasks, spread over repositories; 0: all."),
]
EvalOutput = Annotated[
    Path | None,
    typer.Option("--output", help="Keep episodes and results in this folder; a second call continues."),
]
EvalCompare = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--compare", metavar="A B", help="Two output folders: play nothing, compare them."),
]

# ---- warm-start

WarmStartOutput = Annotated[Path, typer.Option("--output", help="The folder for the policy.")]
WarmStartConfig = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A TOML file of warm-start settings, or the recipe warm-start."),
]

# ---- plan

PlanRun = Annotated[
    str, typer.Argument(help="A finished run to read from, by name or folder; default: the newest.")
]
PlanWorkload = Annotated[
    str, typer.Option("--workload", help="Without a run: 'paper', its figures and stated assumptions.")
]
PlanAssume = Annotated[
    list[str] | None,
    typer.Option(
        "--assume", help="An assumption of the paper's workload, for instance drawn_tokens=600; repeatable."
    ),
]
PlanGpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        help="GPUs in all. Default: 16 for each billion of the run's parameters, in whole machines of 8; "
        "512 for the paper.",
    ),
]
PlanTrainerGpus = Annotated[
    int, typer.Option("--trainer-gpus", help="GPUs that train; 0: the best number is found.")
]
PlanServerGpus = Annotated[
    int, typer.Option("--server-gpus", help="GPUs of one rollout server; 0: as the policy needs, up to 8.")
]
PlanHosts = Annotated[
    int, typer.Option("--hosts", help="Machines with sandboxes; 0: the fewest that are enough.")
]
PlanSlots = Annotated[int, typer.Option("--slots", help="Sandboxes open at a time on one host.")]
PlanMaxLag = Annotated[int | None, typer.Option("--max-lag", help="Default: the run's, or 8.")]
PlanBatchTokens = Annotated[
    float | None,
    typer.Option("--batch-tokens", help="Tokens of an update. Default: the run's mean, or 16.8e6."),
]
PlanParameters = Annotated[
    float | None, typer.Option("--parameters", help="Parameters of the policy. Default: the run's, or 32e9.")
]
PlanPeakTflops = Annotated[
    float | None, typer.Option("--peak-tflops", help="Default 989: H100 SXM, dense bf16, data sheet.")
]
PlanBandwidthTbs = Annotated[
    float | None, typer.Option("--bandwidth-tbs", help="Default 3.35 TB/s: H100 SXM, data sheet.")
]
PlanGpuGb = Annotated[float | None, typer.Option("--gpu-gb", help="Default 80: H100 SXM.")]
PlanMfu = Annotated[
    float | None,
    typer.Option("--mfu", help="Share of peak in training. Default 0.38: Llama 3 at 131,072 tokens."),
]
PlanMbu = Annotated[
    float | None, typer.Option("--mbu", help="Share of memory bandwidth in generation. Default 0.6: assumed.")
]
PlanLinkGbs = Annotated[
    float | None, typer.Option("--link-gbs", help="Speed of weight transfer. Default 50 GB/s: 400 Gbit/s.")
]
PlanUpdates = Annotated[int, typer.Option("--updates", help="Updates measured in each simulation.")]
PlanSimulations = Annotated[
    int, typer.Option("--simulations", help="Simulations of each split; ± comes from their spread.")
]
PlanSeed = Annotated[int, typer.Option("--seed", help="Seed of the simulations.")]
PlanCheck = Annotated[
    bool, typer.Option("--check", help="Predict the run's second half from its first, and show the error.")
]

# ---- doctor

DoctorClean = Annotated[bool, typer.Option("--clean", help="Remove what killed runs left behind.")]
DoctorAttack = Annotated[
    bool,
    typer.Option(
        "--attack", help="Attack this machine's own sandboxes and judging; exit code 0 if all hold."
    ),
]
DoctorSandbox = Annotated[
    str | None, typer.Option("--sandbox", help="With --attack: docker, bubblewrap, or auto (default).")
]
