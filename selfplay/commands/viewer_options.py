"""Options of the commands that show a run: inspect-bugs, show, episodes, replay. As in `options`."""

from pathlib import Path
from typing import Annotated

import typer

from selfplay.agent.episode import FinishReason, Role
from selfplay.curriculum.rows import BUG_ORDERS, BUG_STATUSES

# ---- inspect-bugs

BugsRun = Annotated[
    str,
    typer.Argument(metavar="RUN", show_default=False, help="A run's name or folder; default: the newest."),
]
BugsBug = Annotated[
    str | None,
    typer.Option("--bug", metavar="ID", help="Show one bug in full, by its id or the start of it."),
]
BugsRepository = Annotated[
    str | None, typer.Option("--repository", metavar="NAME", help="Only bugs of this repository.")
]
BugsStrategy = Annotated[
    str | None, typer.Option("--strategy", metavar="NAME", help="Only bugs of this strategy.")
]
BugsOrder = Annotated[
    int | None,
    typer.Option(
        "--order",
        min=1,
        max=2,
        metavar="N",
        help="Only bugs of this order. 1: injected; 2: grown from a failed repair.",
    ),
]
BugsStatus = Annotated[
    str | None,
    typer.Option(
        "--status", metavar="STATUS", help=f"Only bugs with this status: {', '.join(BUG_STATUSES)}."
    ),
]
BugsSolveRate = Annotated[
    str | None,
    typer.Option(
        "--solve-rate",
        metavar="LOW..HIGH",
        help="Only bugs with a solve rate in this range, for instance 0.1..0.6, 0.5.. or ..0.2.",
    ),
]
BugsMinSolveRate = Annotated[
    float | None,
    typer.Option("--min-solve-rate", min=0, max=1, metavar="RATE", help="The same as --solve-rate RATE.. ."),
]
BugsMaxSolveRate = Annotated[
    float | None,
    typer.Option("--max-solve-rate", min=0, max=1, metavar="RATE", help="The same as --solve-rate ..RATE ."),
]
BugsSince = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="WHEN",
        help="Only bugs made since an update (12), an age (90m, 6h, 2d) or a date (2026-11-30).",
    ),
]
BugsSearch = Annotated[
    str | None,
    typer.Option("--search", metavar="WORDS", help="Only bugs whose diffs hold these words as they stand."),
]
BugsSort = Annotated[
    str, typer.Option("--sort", metavar="KEY", help=f"Sort the bugs by: {', '.join(BUG_ORDERS)}.")
]
BugsReverse = Annotated[bool, typer.Option("--reverse", help="Sort the other way round.")]
BugsLimit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first so many bugs.")
]
BugsRejected = Annotated[bool, typer.Option("--rejected", help="Show why artifacts were rejected.")]
BugsRejectedBy = Annotated[
    str | None,
    typer.Option(
        "--rejected-by",
        metavar="CHECK",
        help="List the artifacts that this check rejected; --rejected lists the checks.",
    ),
]
BugsCsv = Annotated[bool, typer.Option("--csv", help="Print the list as CSV.")]
Plain = Annotated[
    bool,
    typer.Option("--plain", help="Print, without a full screen. Always so where output is no terminal."),
]
BugsTasks = Annotated[
    Path | None,
    typer.Option(
        "--tasks",
        metavar="FILE",
        help="Write the bugs as task records (JSONL) that `selfplay eval` reads.",
    ),
]

# ---- show and episodes

ShowRun = BugsRun
EpisodesRun = BugsRun
EpisodesRole = Annotated[
    str | None, typer.Option("--role", metavar="ROLE", help=f"Only this role: {', '.join(Role)}.")
]
EpisodesFinish = Annotated[
    str | None,
    typer.Option("--finish", metavar="FINISH", help=f"Only this end: {', '.join(FinishReason)}."),
]
EpisodesMinReward = Annotated[
    float | None,
    typer.Option("--min-reward", metavar="REWARD", help="Only episodes with at least this reward."),
]
EpisodesMaxReward = Annotated[
    float | None,
    typer.Option("--max-reward", metavar="REWARD", help="Only episodes with at most this reward."),
]
EpisodesCheck = Annotated[
    str | None,
    typer.Option(
        "--check",
        metavar="CHECK",
        help="Only artifacts that this check rejected; inspect-bugs --rejected lists the checks.",
    ),
]
EpisodesUpdate = Annotated[
    int | None, typer.Option("--update", metavar="N", help="Only those played for this update.")
]
EpisodesBug = Annotated[
    str | None,
    typer.Option(
        "--bug", metavar="ID", help="Only attempts at this bug, and its injection; the start of its id."
    ),
]
EpisodesGroup = Annotated[
    str | None,
    typer.Option("--group", metavar="ID", help="The members of one group; the start of its id."),
]
EpisodesLimit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Only the newest so many.")
]

# ---- replay

ReplayWhat = Annotated[
    str,
    typer.Argument(
        metavar="EPISODE|BUG|RUN",
        help="An episode's id or its file, a bug's id, or a run. The start of an id is enough.",
    ),
]
ReplayRun = Annotated[
    str,
    typer.Option(
        "--run",
        metavar="RUN",
        show_default=False,
        help="The run that it belongs to; default: all are searched.",
    ),
]
ReplayPlay = Annotated[bool, typer.Option("--play", help="Play it like a film; Space stops and goes on.")]
ReplayStep = Annotated[bool, typer.Option("--step", help="Play it, and wait for Space after each turn.")]
ReplaySpeed = Annotated[
    float | None,
    typer.Option(
        "--speed",
        min=0.01,
        metavar="TIMES",
        help="Play it this many times as fast as it happened, for instance 4.",
    ),
]
ReplayRerun = Annotated[
    bool,
    typer.Option(
        "--rerun",
        help="Execute its actions in a fresh sandbox, and report the first observation that differs.",
    ),
]
