"""Options of the commands: name, type and help text of each, in the order in which `--help` shows them.

Names and figures in a text come from where they are used. All imports here are light, as `--help` pays them.
"""

from pathlib import Path
from typing import Annotated

import typer

from selfplay import __version__
from selfplay.evaluation.tasks import frozen_sets
from selfplay.parts import names_of
from selfplay.planning.hardware import Gpu
from selfplay.planning.paper import PAPER_BATCH_TOKENS, PAPER_MAX_LAG, PAPER_MODEL
from selfplay.sandbox import KINDS

TASK_SETS = ", ".join(frozen_sets())


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
        "--config",
        "-c",
        metavar="FILE",
        help="A TOML file of settings, or the name of a recipe, for instance quickstart.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="One setting, for instance train.updates=6; repeatable."
    ),
]
RunRoot = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="The folder that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print data instead of tables.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="auto|ADDRESS", help="Run on this Ray cluster; auto: the one this machine is in."
    ),
]

# ---- train

TrainRepos = Annotated[
    Path | None,
    typer.Option(
        "--repos",
        metavar="FILE",
        help="A repository list, one repository a line; quickstart-repos is one that ships.",
    ),
]
TrainResume = Annotated[
    str | None, typer.Option("--resume", metavar="RUN", help="Continue a run: its name or folder.")
]
TrainDryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would run where and what memory it takes; start nothing."),
]

# ---- report and export

ReportRuns = Annotated[
    list[str] | None, typer.Argument(metavar="RUN...", show_default=False, help="Runs; default: the newest.")
]
ReportOutput = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Default: report.html in the first run.")
]
FORMATS = f"One of {', '.join(names_of('export'))}; or one's own as package.module:name."
ExportFormat = Annotated[str, typer.Option("--format", metavar="NAME", show_default=False, help=FORMATS)]
ExportOutput = Annotated[
    Path | None, typer.Option("--output", metavar="OUTPUT", help="The new file or folder to write.")
]

# ---- validate

ValidateArtifact = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A folder with the five files of a bug artifact.")
]
ValidateRepo = Annotated[
    str,
    typer.Option(
        "--repo",
        metavar="REPOSITORY",
        help="The repository that it breaks, as a line of a repository list, for instance pypi:toolz==1.0.0.",
    ),
]
ValidateAllChecks = Annotated[bool, typer.Option("--all", help="Go on after the first failed check.")]

# ---- eval

EvalTasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="SET_OR_FILE",
        help=f"A frozen set ({TASK_SETS}), a file (JSONL, JSON, Parquet) or a data set's folder; repeatable.",
    ),
]
EvalAttempts = Annotated[
    int,
    typer.Option(
        "--attempts", min=0, metavar="N", help="Sampled attempts at each task, at evaluation.temperature."
    ),
]
EvalGreedy = Annotated[bool, typer.Option("--greedy/--no-greedy", help="One more attempt at temperature 0.")]
EvalLimit = Annotated[
    int,
    typer.Option(
        "--limit",
        min=0,
        metavar="N",
        help="A fixed subset of so many tasks, spread over repositories; 0: all.",
    ),
]
EvalOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FOLDER",
        help="Keep episodes and results in this folder; a second call continues.",
    ),
]
EvalPredictions = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        metavar="FILE",
        help="Grade these patches (preds.json, or JSONL as SWE-bench has it); play nothing.",
    ),
]
EvalClones = Annotated[
    Path | None,
    typer.Option(
        "--clones",
        metavar="FOLDER",
        help="A folder of clones (OWNER/NAME, OWNER__NAME or NAME); the others are fetched.",
    ),
]
EvalCompare = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--compare", metavar="A B", help="Two output folders: play nothing, compare them."),
]

# ---- warm-start

WarmStartOutput = Annotated[
    Path, typer.Option("--output", metavar="FOLDER", help="The folder for the policy.")
]
WarmStartFrom = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        show_default=False,
        help="The model to start from: a folder, a GGUF file, a Hugging Face id, or smollm2. "
        "Without it, a policy is made from nothing.",
    ),
]
WarmStartAdapter = Annotated[
    bool, typer.Option("--adapter", help="With --from: train a low-rank adapter, not the model's weights.")
]
WarmStartEpisodes = Annotated[
    list[Path] | None,
    typer.Option(
        "--episodes",
        metavar="RUN",
        show_default=False,
        help="With --from: the folder of a run that MODEL played. Episodes that were proven right are "
        "learned too; repeatable.",
    ),
]
WarmStartConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="A TOML file of warm-start settings, or the name of a recipe: warm-start, or with --from "
        "warm-start-from, with --adapter warm-start-adapter.",
    ),
]
WarmStartOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="One setting, for instance shape.layers=2; repeatable."
    ),
]

# ---- plan

PlanRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        show_default=False,
        help="A finished run to read from, by name or folder; default: the newest.",
    ),
]
PlanWorkload = Annotated[
    str,
    typer.Option(
        "--workload",
        metavar="paper",
        show_default=False,
        help="Without a run: the paper's figures and stated assumptions.",
    ),
]
PlanAssume = Annotated[
    list[str] | None,
    typer.Option(
        "--assume",
        metavar="NAME=NUMBER",
        help="An assumption of the paper's workload, for instance drawn_tokens=600; repeatable.",
    ),
]
PlanGpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        help="GPUs in all. Default: 16 for each billion of the run's parameters, in whole machines of 8; "
        "512 for the paper.",
    ),
]
PlanTrainerGpus = Annotated[
    int, typer.Option("--trainer-gpus", metavar="N", help="GPUs that train; 0: the best number is found.")
]
PlanServerGpus = Annotated[
    int,
    typer.Option(
        "--server-gpus", metavar="N", help="GPUs of one rollout server; 0: as the policy needs, up to 8."
    ),
]
PlanHosts = Annotated[
    int, typer.Option("--hosts", metavar="N", help="Machines with sandboxes; 0: the fewest that are enough.")
]
PlanSlots = Annotated[int, typer.Option("--slots", metavar="N", help="Sandboxes open at a time on one host.")]
PlanMaxLag = Annotated[
    int | None,
    typer.Option(
        "--max-lag",
        metavar="UPDATES",
        help=f"The oldest episode that is trained on, in updates. Default: the run's, or {PAPER_MAX_LAG}.",
    ),
]
PlanBatchTokens = Annotated[
    float | None,
    typer.Option(
        "--batch-tokens",
        metavar="TOKENS",
        help=f"Tokens of an update. Default: the run's mean, or {PAPER_BATCH_TOKENS / 1e6:.1f}e6.",
    ),
]
PlanParameters = Annotated[
    float | None,
    typer.Option(
        "--parameters",
        metavar="N",
        help=f"Parameters of the policy. Default: the run's, or {PAPER_MODEL.parameters / 1e9:g}e9.",
    ),
]
PlanPeakTflops = Annotated[
    float | None,
    typer.Option(
        "--peak-tflops",
        metavar="TFLOPS",
        help=f"A GPU's peak, TFLOP/s. Default {Gpu.peak_flops / 1e12:g}: H100 SXM, dense bf16, data sheet.",
    ),
]
PlanBandwidthTbs = Annotated[
    float | None,
    typer.Option(
        "--bandwidth-tbs",
        metavar="TB/S",
        help=f"Bandwidth of a GPU's memory. Default {Gpu.bandwidth / 1e12:g} TB/s: H100 SXM, data sheet.",
    ),
]
PlanGpuGb = Annotated[
    float | None,
    typer.Option(
        "--gpu-gb", metavar="GB", help=f"Memory of a GPU. Default {Gpu.memory / 1e9:g} GB: H100 SXM."
    ),
]
PlanMfu = Annotated[
    float | None,
    typer.Option(
        "--mfu",
        metavar="SHARE",
        help=f"Share of peak in training. Default {Gpu.mfu:g}: Llama 3 at 131,072 tokens.",
    ),
]
PlanMbu = Annotated[
    float | None,
    typer.Option(
        "--mbu",
        metavar="SHARE",
        help=f"Share of memory bandwidth in generation. Default {Gpu.mbu:g}: assumed.",
    ),
]
PlanLinkGbs = Annotated[
    float | None,
    typer.Option(
        "--link-gbs",
        metavar="GB/S",
        help=f"Speed of weight transfer. Default {Gpu.link / 1e9:g} GB/s: {Gpu.link * 8 / 1e9:g} Gbit/s.",
    ),
]
PlanUpdates = Annotated[
    int, typer.Option("--updates", metavar="N", help="Updates measured in each simulation.")
]
PlanSimulations = Annotated[
    int,
    typer.Option("--simulations", metavar="N", help="Simulations of each split; ± comes from their spread."),
]
PlanSeed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the simulations.")]
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
    str | None,
    typer.Option(
        "--sandbox",
        metavar="KIND",
        help="Check every promise of the sandbox contract on this back end: "
        f"{', '.join(KINDS)}, or one's own as module:Class. With --attack, what to attack; default: auto.",
    ),
]
