"""Prints the summary of a run at its end: bugs, rejections, solve rates, rewards, time, next commands.

It only shows what the database and the metrics file hold. Invariant: a section without recorded data says so;
only the section on evaluations is left out then, because a run may make none.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from selfplay.agent.observations import make_harmless
from selfplay.curriculum.rows import BugRow
from selfplay.curriculum.store import Store
from selfplay.errors import RunError, UsageError
from selfplay.evaluation.comparison import compare
from selfplay.evaluation.folder import Folder, entries_of
from selfplay.metrics import read_metrics
from selfplay.verdicts.confirmation import Confirmation
from selfplay.viewing.duplicates import duplicates_text, repeated_bugs
from selfplay.viewing.progress import ROLES, duration_text
from selfplay.viewing.scores import comparison_body
from selfplay.viewing.shell import inspect_command, replay_command, runs_option
from selfplay.viewing.tables import FirstThatFits, bar, table

BINS = 5


def print_summary(
    store: Store, run_folder: Path, console: Console, metrics_rows: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Print the whole summary. metrics_rows: one row per update; None reads them from the run folder."""
    rows = list(metrics_rows) if metrics_rows is not None else read_metrics(run_folder / "metrics.jsonl")
    console.print()
    console.rule(Text(f"Run {run_folder.name}"), align="left")
    print_sections(summary_sections(store, run_folder, rows), console)
    console.print(Text("Next", style="bold"))
    for what, command in _next(store, run_folder, store.bugs()):
        # Not wrapped, so that people can copy the command as one line.
        console.print(
            Text(f"  {what}:\n    ", style="dim").append(command, style="not dim cyan"),
            soft_wrap=True,
            highlight=False,
        )


def summary_sections(
    store: Store, run_folder: Path, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[str, RenderableType]]:
    """(title, body) of each section. rows: one for each update."""
    bugs = store.bugs()
    return [
        ("Accepted bugs", _bugs(bugs)),
        ("Rejected artifacts", _rejections(store)),
        ("Solve rates", _solve_rates(bugs)),
        *_tricks(store),
        ("Rewards and updates", _updates(store, rows)),
        *_evaluations(run_folder),
        ("Time", _time(_phase_seconds(store, rows))),
    ]


def summary_data(store: Store, run_folder: Path) -> dict[str, Any]:
    """The figures of the summary, for `--json`.

    updates: the metrics of each committed update. evaluations: the metrics of each finished evaluation.
    """
    rows = read_metrics(run_folder / "metrics.jsonl")
    bugs, verdicts = store.bugs(), store.verdicts()
    return {
        "run": run_folder.name,
        "bugs": [
            {
                "repository": repository,
                "strategy": strategy,
                "order": order,
                "bugs": count,
                "solve_rate": rate,
            }
            for (repository, strategy, order), count, rate in _bug_counts(bugs)
        ],
        "judged": len(verdicts),
        "rejected": dict(Counter(verdict.failed_check for verdict in verdicts if not verdict.accepted)),
        "duplicates": len(repeated_bugs(store)),
        "tricks": trick_counts(store),
        "solve_rates": dict(solve_rate_bins(bug.solve_rate for bug in bugs if bug.solve_rate is not None)),
        "updates": [json.loads(row.metrics_json) for row in store.updates() if row.committed_at is not None],
        "evaluations": [row for row in rows if "evaluation" in row],
        "machine_failures": len(store.failures()),
        "seconds": dict(_phase_seconds(store, rows)),
    }


def print_sections(sections: Iterable[tuple[str, RenderableType]], console: Console) -> None:
    for title, body in sections:
        console.print(Text(title, style="bold"))
        console.print(Padding(body, (0, 0, 1, 2)), highlight=False)


def solve_rate_bins(rates: Iterable[float]) -> list[tuple[str, int]]:
    """(label, count) of the rates 0, of BINS equal ranges between, and of 1.

    0 and 1 are counted apart because a group whose attempts all end alike has no gradient.
    """
    labels = ["0", *(f"{(i / BINS):.1f}–{((i + 1) / BINS):.1f}" for i in range(BINS)), "1"]
    counts = Counter(
        0 if rate <= 0 else BINS + 1 if rate >= 1 else 1 + min(BINS - 1, math.floor(rate * BINS))
        for rate in rates
    )
    return [(label, counts[index]) for index, label in enumerate(labels)]


def _bugs(bugs: Sequence[BugRow]) -> Table | Text:
    if not bugs:
        return Text("none yet")
    shown = table(
        "repository", "strategy", "order", "bugs", "solve rate", right=("order", "bugs", "solve rate")
    )
    for (repository, strategy, order), count, rate in _bug_counts(bugs):
        mean = f"{rate:.2f}" if rate is not None else "–"
        shown.add_row(Text(repository), Text(strategy), str(order), str(count), mean)
    return shown


def _bug_counts(bugs: Sequence[BugRow]) -> list[tuple[tuple[str, str, int], int, float | None]]:
    """((repository, strategy, order), number of bugs, their mean solve rate)."""
    groups: dict[tuple[str, str, int], list[BugRow]] = defaultdict(list)
    for bug in bugs:
        groups[bug.repository, bug.strategy, bug.order].append(bug)
    found = []
    for key, some in sorted(groups.items()):
        rates = [bug.solve_rate for bug in some if bug.solve_rate is not None]
        found.append((key, len(some), sum(rates) / len(rates) if rates else None))
    return found


def _rejections(store: Store) -> Text | Group:
    verdicts = store.verdicts()
    if not verdicts:
        return Text("no artifact was judged yet")
    rejected = Counter(verdict.failed_check for verdict in verdicts if not verdict.accepted)
    head = f"{rejected.total()} of {len(verdicts)} artifacts were rejected"
    duplicates = Text(duplicates_text(store))
    if not rejected:
        return Group(Text(head), *([duplicates] if duplicates else []))
    shown = table(head, "", right=("",))
    for check, count in rejected.most_common():
        shown.add_row(Text(make_harmless(check)), str(count))
    return Group(shown, *([duplicates] if duplicates else []))


def _solve_rates(bugs: Sequence[BugRow]) -> Table | Text:
    rates = [bug.solve_rate for bug in bugs if bug.solve_rate is not None]
    if not rates:
        return Text("no bug was measured yet")
    shown = table("share of attempts that repaired", "bugs", "", right=("bugs",))
    bins = solve_rate_bins(rates)
    most = max(count for _, count in bins)
    for label, count in bins:
        shown.add_row(label, str(count), Text(bar(count / most), style="cyan"))
    return shown


def _tricks(store: Store) -> list[tuple[str, RenderableType]]:
    """The section on tricks that judging found. [] if there were none."""
    found = [(what, count) for what, count in trick_counts(store).items() if count]
    if not found:
        return []
    shown = table("found by judging", "", right=("",))
    for what, count in found:
        shown.add_row(what, str(count))
    return [("Tricks", shown)]


def trick_counts(store: Store) -> dict[str, int]:
    """How often judging found each kind of trick, and how often it had no disguise."""
    confirmed = Counter(attempt.confirmed for attempt in store.attempts())
    return {
        "void bugs": sum(bug.status == "void" for bug in store.bugs()),
        "control runs that moved": confirmed[Confirmation.NOT_CONFIRMED],
        "attempts that forge results": confirmed[Confirmation.FORGED],
        "attempts that passed once and not again": confirmed[Confirmation.NOT_REPEATED],
        "repairs confirmed without disguise": confirmed[Confirmation.UNDISGUISED],
    }


def _updates(store: Store, rows: Sequence[Mapping[str, Any]]) -> Table | Text | Group:
    committed = [update for update in store.updates() if update.committed_at is not None]
    if not committed:
        return Text("no update was committed yet")
    carried = sum(update.carried_gradient for update in committed)
    head = Text(f"{len(committed)} update(s): {carried} with a gradient, {len(committed) - carried} without")
    if failures := store.failures():
        head.append(
            f"; the machine failed {len(failures)} time(s), last while {make_harmless(failures[-1].phase)}",
            style="yellow",
        )
    by_update = {row["update"]: row for row in rows if "update" in row}
    measured = [by_update.get(update.update) or json.loads(update.metrics_json) for update in committed]
    repositories = _repositories(store)
    lines = []
    for update, row in zip(committed, measured, strict=True):
        line = {
            "update": str(update.update),
            "repository": Text(make_harmless(repositories.get(update.update, "–"))),
            **{name: _number(row.get(f"injector/{name}"), ".0%") for name in ("valid", "duplicate")},
            **{role: _number(row.get(f"{role}/reward"), "+.2f") for role in ROLES},
            "bugs": _number(row.get("curriculum/bugs"), ".0f"),
            "step": "yes" if update.carried_gradient else "no",
        }
        lines.append(line)
    artifacts, rewards = ("repository", "valid", "duplicate"), (*ROLES, "bugs", "step")
    whole = _columns(lines, ("update", *artifacts, *rewards))
    two = Group(_columns(lines, ("update", *artifacts)), Text(), _columns(lines, ("update", *rewards)))
    return Group(head, _lag_and_idle(measured), Text(), FirstThatFits((whole, two)))


def _columns(lines: Sequence[Mapping[str, str | Text]], names: Sequence[str]) -> Table:
    shown = table(*names, right=[name for name in names if name not in ("repository", "step")])
    for line in lines:
        shown.add_row(*(line[name] for name in names))
    return shown


def _repositories(store: Store) -> dict[int, str]:
    """Update -> repositories of the injector groups that were played for it."""
    found: dict[int, list[str]] = defaultdict(list)
    for group in store.groups(role="injector"):
        if group.repository not in found[group.update]:
            found[group.update].append(group.repository)
    return {update: ", ".join(names) for update, names in found.items()}


def _lag_and_idle(rows: Sequence[Mapping[str, Any]]) -> Text:
    """The greatest lag and the mean idle shares, as far as they were measured."""
    lags = [row["lag/max"] for row in rows if isinstance(row.get("lag/max"), int | float)]
    parts = [f"lag: at most {max(lags):.0f} update(s)"] if lags else []
    for name in ("trainer", "engine"):
        shares = [value for row in rows if isinstance(value := row.get(f"idle/{name}"), int | float)]
        parts += [f"{name} idle: {sum(shares) / len(shares):.0%}"] if shares else []
    return Text(", ".join(parts))


def _evaluations(run_folder: Path) -> list[tuple[str, RenderableType]]:
    """The section on repair rates before and after, on held-out bugs. [] if no attempt was recorded."""
    found = [(update, folder) for update, folder in evaluation_folders(run_folder) if folder.results()]
    if not found:
        return []
    (first, before), (last, after) = found[0], found[-1]
    if first == last:
        return [
            (
                "Evaluation",
                Text(f"only update {first} is evaluated so far: there is nothing to compare it with yet"),
            )
        ]
    try:
        comparison = compare(before, after)
    except (UsageError, RunError) as error:  # the rest of the summary is still right
        return [("Evaluation", Text(str(error)))]
    sets = ", ".join(sorted({entry.set for entry in entries_of(before).values()}))
    head = Text(f"the policy before and after, on the same bugs (of {make_harmless(sets)})\n")
    return [
        (
            "Evaluation",
            Group(head, comparison_body(comparison, f"update {first}", f"update {last}", with_groups=False)),
        )
    ]


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "–"


def evaluation_folders(run: Path) -> list[tuple[int, Folder]]:
    """(update, folder) of each evaluation that a run has begun, in the order of updates."""
    found = [
        path
        for path in (run / "evaluations").glob("u*")
        if path.name[1:].isdigit() and (path / "evaluation.json").is_file()
    ]
    return sorted(((int(path.name[1:]), Folder(path)) for path in found), key=lambda pair: pair[0])


def _phase_seconds(store: Store, rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Phase -> seconds, of all processes of the run; those of an unfinished update too."""
    unfinished = [json.loads(row.metrics_json) for row in store.updates() if row.committed_at is None]
    seconds: Counter[str] = Counter()
    for row in (*rows, *unfinished):
        for key, value in row.items():
            if key.startswith("seconds/") and isinstance(value, int | float):
                seconds[key.removeprefix("seconds/").replace("_", " ")] += value  # type: ignore[assignment]
    return seconds


def _time(seconds: Counter[str]) -> Table | Text:
    total = sum(seconds.values())
    if not total:
        return Text("no time was recorded")
    shown = table("phase", "time", "share", "", right=("time", "share"))
    for phase, spent in seconds.most_common():
        shown.add_row(
            Text(phase), duration_text(spent), f"{spent / total:.0%}", Text(bar(spent / total), style="cyan")
        )
    shown.add_row("all", duration_text(total), "", "")
    return shown


def _next(store: Store, run_folder: Path, bugs: Sequence[BugRow]) -> list[tuple[str, str]]:
    """(what it shows, the command), for commands that can be pasted into a shell."""
    name, where = shlex.quote(run_folder.name), runs_option(run_folder)
    steps = [("the bugs, with solve rates and lineage", inspect_command(run_folder))]
    if any(not verdict.accepted for verdict in store.verdicts()):
        steps.append(("why artifacts were rejected", inspect_command(run_folder, " --rejected")))
    evaluated = [str(folder.path) for _, folder in evaluation_folders(run_folder)]
    if len(evaluated) > 1:
        compared = f"selfplay eval --compare {shlex.quote(evaluated[0])} {shlex.quote(evaluated[-1])}"
        steps.append(("before against after, by repository", compared))
    if episode := _example_episode(store, bugs):
        steps.append(("one episode, turn by turn", replay_command(run_folder, episode)))
    steps.append(
        (
            "more updates",
            f"selfplay train --resume {name} --set train.updates={store.last_update() + 4}{where}",
        )
    )
    return steps


def _example_episode(store: Store, bugs: Sequence[BugRow]) -> str:
    """The latest passed repair, else the latest injection of a bug, else the latest episode with a file."""
    passed = [attempt.episode_id for attempt in store.attempts() if attempt.passed]
    injected = [bug.injector_episode_id for bug in bugs]
    played = [row.episode_id for row in store.episodes() if row.path]
    return next(iter([*passed[-1:], *injected[-1:], *played[-1:]]), "")
