"""The report of one or several runs as one HTML page that needs no network and runs no script.

Invariants: every text of a run passes `html.tag`, which escapes it. The page's Content-Security-Policy
allows its own style sheet, by its digest, and nothing else: no script, no image, no address.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from selfplay.errors import RunError, UsageError
from selfplay.evaluation.comparison import compare
from selfplay.evaluation.folder import MODES
from selfplay.evaluation.rates import rates_by_bug
from selfplay.runtime.resources import resource
from selfplay.viewing.report import figures
from selfplay.viewing.report.figures import metrics_chart
from selfplay.viewing.report.html import short, tag
from selfplay.viewing.report.lineage import lineage_chart
from selfplay.viewing.report.picks import picks
from selfplay.viewing.report.transcripts import transcript
from selfplay.viewing.runs import differing_settings
from selfplay.viewing.shell import replay_command

if TYPE_CHECKING:
    from selfplay.viewing.report.run_data import RunData

MOST_ROWS = 12
Runs = Sequence["RunData"]


@dataclass(frozen=True)
class Card:
    """A drawing with its title and what it shows. drawing: None if nothing was measured."""

    title: str
    caption: str
    drawing: Markup | None


def report_page(runs: Runs) -> str:
    """The page as text."""
    sections = [
        ("overview", "What was run", _overview(runs)),
        ("learning", "Is it learning?", _learning(runs)),
        ("forgotten", "What did it forget?", _forgotten(runs)),
        ("rejections", "Why were artifacts rejected? Is the policy gaming anything?", _judging(runs)),
        ("bugs", "Are bugs getting harder, or stranger?", _bugs(runs)),
        ("ends", "Where do episodes end?", _episodes(runs)),
        ("training", "Is training healthy?", _training(runs)),
        ("time", "Where does the time go? How stale is the data?", _time(runs)),
        ("signal", "Which repositories and functions carry the signal?", _signal(runs)),
        ("reading", "Which episodes should I read?", _readings(runs)),
    ]
    names = ", ".join(run.name for run in runs)
    style = resource("data/report.css").read_text(encoding="utf-8")
    links = [tag("a", anchor, href=f"#{anchor}") for anchor, _, _ in sections]
    body = [tag("h1", f"selfplay: {names}"), tag("nav", links)]
    body += [tag("section", tag("h2", title), parts, id=anchor) for anchor, title, parts in sections]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"selfplay: {names}"),
        tag("style", Markup(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _policy(style: str) -> str:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


# ---- sections


def _overview(runs: Runs) -> Iterable[Markup]:
    rows = []
    for run in runs:
        judged, accepted = len(run.verdicts), sum(verdict.accepted for verdict in run.verdicts)
        graded = [attempt.passed for attempt in run.attempts if attempt.passed is not None]
        rows.append(
            [
                run.name,
                str(run.settings.get("policy.model", "")),
                f"{len(run.updates)} of {run.settings.get('train.updates', '?')}",
                str(len(run.episodes)),
                f"{accepted} of {judged}",
                str(len(run.duplicates)),
                str(len(run.bugs)),
                f"{sum(graded)} of {len(graded)}",
                str(run.machine_failures),
            ]
        )
    head = ["run", "policy", "updates", "episodes", "accepted", "duplicates", "bugs", "repaired"]
    yield _table([*head, "machine failures"], rows, right=range(2, 9))
    if len(runs) > 1:
        differing = differing_settings({run.name: run.settings for run in runs})
        names = sorted({name for values in differing.values() for name in values})
        if names:
            yield tag("h3", "Settings that differ")
            found = [
                [name, *(json.dumps(differing.get(run.name, {}).get(name)) for run in runs)] for name in names
            ]
            yield _table(["setting", *(run.name for run in runs)], found)


def _learning(runs: Runs) -> Iterable[Markup]:
    band = "The band is the 95 % interval over bugs; a single bug has none."
    yield _cards(
        [
            Card(
                "Repair rate on bugs outside the run",
                f"Fixed sets, such as bugs that people made. {band}",
                figures.evaluated_rates(runs),
            ),
            Card(
                "Repair rate on own bugs",
                f"Bugs change as the injector learns, so a falling rate is no forgetting. {band}",
                figures.own_solve_rates(runs),
            ),
            Card("Rewards", "The mean reward of the episodes that an update trained on.", _rewards(runs)),
        ]
    )
    rows = []
    for run in runs:
        for name, before, after, change in _changes(run):
            rows.append([run.name, name, before, after, change])
    if rows:
        yield _table(["run", "bugs", "first", "last", "change, 95 % interval"], rows, right=(2, 3, 4))


def _rewards(runs: Runs) -> Markup | None:
    return metrics_chart(runs, {f"{role}/reward": role for role in ("injector", "solver")})


def _changes(run: RunData) -> Iterable[tuple[str, str, str, str]]:
    """(set and mode, first rate, last rate, change) between the first and the last evaluation."""
    if len(run.evaluations) < 2:
        return
    first, last = run.evaluations[0].update, run.evaluations[-1].update
    try:
        found = compare(run.evaluation_folder(first), run.evaluation_folder(last))
    except (UsageError, RunError):
        return
    for mode in MODES:
        for name, pair in {**found.get(mode, {}).get("sets", {})}.items():
            interval = ""
            if pair["low"] is not None:
                interval = f", {100 * pair['low']:+.1f} to {100 * pair['high']:+.1f}"
            change = f"{100 * pair['mean']:+.1f} points{interval}"
            rates = [f"{pair[key]['pass@1']:.1%}" for key in ("first", "second")]
            yield f"{name or 'tasks'} ({mode})", rates[0], rates[1], change


def _forgotten(runs: Runs) -> Iterable[Markup]:
    rows = []
    for run in runs:
        if len(run.evaluations) < 2:
            continue
        first, last = run.evaluations[0], run.evaluations[-1]
        for mode in MODES:
            before, after = rates_by_bug(first.results, mode), rates_by_bug(last.results, mode)
            for name in before.keys() & after.keys():
                old, new = (sum(some) / len(some) for some in (before[name], after[name]))
                if new < old:
                    rows.append((old - new, [run.name, name, mode, f"{old:.0%}", f"{new:.0%}"]))
    rows.sort(key=lambda row: (-row[0], row[1]))
    if not rows:
        many = any(len(run.evaluations) > 1 for run in runs)
        yield tag(
            "p",
            "No bug of the evaluations is repaired less often than before."
            if many
            else "Not measured: a run needs two evaluations (evaluation.tasks) to compare.",
        )
        return
    yield tag("p", "Bugs that the first weights repaired more often than the last ones.")
    yield _table(
        ["run", "bug", "attempts", "first", "last"], [row for _, row in rows[:MOST_ROWS]], right=(3, 4)
    )
    if len(rows) > MOST_ROWS:
        yield tag("p", f"{len(rows) - MOST_ROWS} more.", class_="dim")


def _judging(runs: Runs) -> Iterable[Markup]:
    rates = {"injector/valid": "accepted", "injector/duplicate": "duplicates among accepted"}
    yield _cards(
        [
            Card("Validity", "Shares of the judged artifacts.", metrics_chart(runs, rates, shares=True)),
            *_each(
                runs,
                "Verdicts",
                "What became of the artifacts; a check's name rejected them.",
                figures.rejections(runs),
            ),
            Card(
                "Tricks that judging found",
                "Attempts whose second grading differed from the first.",
                figures.tricks(runs),
            ),
            Card(
                "Voided bugs",
                "Bugs that passed without a repair, by update.",
                metrics_chart(runs, {"injector/void": "void"}),
            ),
        ]
    )


def _bugs(runs: Runs) -> Iterable[Markup]:
    yield _cards(
        [
            Card(
                "Solve rate of new bugs",
                "At their first measurement, by the update that made them.",
                figures.new_bug_rates(runs),
            ),
            *_each(runs, "Difficulty", "Bugs by their latest solve rate.", figures.difficulty(runs)),
            Card("Size of new bugs", "Means over the bugs of an update.", figures.new_bug_sizes(runs)),
            Card(
                "Diversity",
                "So far: bugs, functions with a bug, and their effective number (exp of the entropy).",
                figures.diversity(runs),
            ),
            *_each(runs, "Strategies", "What injectors were asked for.", figures.strategies(runs)),
            *_each(
                runs,
                "Lineage",
                "Bugs that grew from failed repairs, below the bug they grew from.",
                [lineage_chart(run.bugs) for run in runs],
            ),
        ]
    )


def _episodes(runs: Runs) -> Iterable[Markup]:
    cards = []
    for role in ("injector", "solver"):
        ends = figures.finishes(runs, role)
        cards += _each(runs, f"Ends of {role} episodes", "Why each episode ended.", ends)
    band = "Median; the band is the range from the tenth to the ninetieth percentile."
    cards += [
        Card("Turns", band, figures.lengths(runs, "turns")),
        Card("Sampled tokens of an episode", band, figures.lengths(runs, "action_tokens")),
        Card(
            "Failed calls",
            "Share of the turns whose call failed, or that held none.",
            metrics_chart(
                runs, {f"{role}/failed_calls": role for role in ("injector", "solver")}, shares=True
            ),
        ),
    ]
    yield _cards(cards)


def _training(runs: Runs) -> Iterable[Markup]:
    roles = ("injector", "solver")
    yield _cards(
        [
            Card("Entropy", "Of the policy, at the tokens it sampled, in nats.", _of_roles(runs, "entropy")),
            Card("KL", "To the reference policy (trainer.kl_coef above 0), in nats.", _of_roles(runs, "kl")),
            Card(
                "Difference of log-probabilities",
                "Between the engine that sampled and the trainer: their mean distance.",
                _of_roles(runs, "rollout_logprob_diff"),
            ),
            Card("Clipped tokens", "Share of the tokens.", _of_roles(runs, "clip_share", shares=True)),
            Card("Gradient norm", "Before clipping.", metrics_chart(runs, {"grad_norm": "norm"})),
            Card(
                "Groups without a gradient",
                "Share of the groups whose rewards are all alike.",
                metrics_chart(runs, {f"{role}/zero_variance": role for role in roles}, shares=True),
            ),
        ]
    )


def _of_roles(runs: Runs, name: str, shares: bool = False) -> Markup | None:
    return metrics_chart(runs, {f"{role}/{name}": role for role in ("injector", "solver")}, shares)


def _time(runs: Runs) -> Iterable[Markup]:
    idle = {"idle/trainer": "trainer", "idle/engine": "engine"}
    yield _cards(
        [
            *_each(runs, "Seconds of an update", "By phase.", figures.time_by_phase(runs)),
            Card("Idle", "Share of the time without work.", metrics_chart(runs, idle, shares=True)),
            Card("Speed", "Sampled tokens in a second of an update.", figures.speed(runs)),
            Card("Episodes an hour", "", metrics_chart(runs, {"episodes_per_hour": "episodes"})),
            Card(
                "Lag",
                "How many updates old the weights of trained episodes are.",
                metrics_chart(runs, {"lag/max": "at most", "lag/mean": "mean"}),
            ),
            Card("Stale groups", "Too old to train on.", metrics_chart(runs, {"groups/stale": "groups"})),
        ]
    )


def _signal(runs: Runs) -> Iterable[Markup]:
    """Repositories and functions by the sum of the absolute advantages of their episodes."""
    yield tag("p", "Signal: the share of the absolute advantages that episodes on it brought to training.")
    for run in runs:
        if len(runs) > 1:
            yield tag("h3", run.name)
        total = sum(abs(row.advantage or 0.0) for row in run.episodes) or 1.0
        tables = []
        for kind in ("repository", "function"):
            sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            for row in run.episodes:
                bug = run.bug_by_id.get(row.bug_id)
                if kind == "function" and bug is None:
                    continue
                name = run.function_of(bug) if kind == "function" and bug else row.repository
                sums[name][0] += abs(row.advantage or 0.0)
                sums[name][1] += 1
            bugs: dict[str, list[float]] = defaultdict(list)
            for bug in run.bugs:
                name = run.function_of(bug) if kind == "function" else bug.repository
                if bug.solve_rate is not None:
                    bugs[name].append(bug.solve_rate)
            rows = []
            for name, (signal, count) in sorted(sums.items(), key=lambda item: -item[1][0])[:MOST_ROWS]:
                rates = bugs.get(name, [])
                rate = f"{sum(rates) / len(rates):.0%}" if rates else "–"
                rows.append([name, f"{signal / total:.0%}", f"{count:.0f}", str(len(rates)), rate])
            tables.append(_table([kind, "signal", "episodes", "bugs", "solve rate"], rows, right=range(1, 5)))
        yield from tables


def _readings(runs: Runs) -> Iterable[Markup]:
    yield tag(
        "p",
        "Best and worst by reward; surprising: a result that the other attempts make unlikely. "
        "Each opens below.",
    )
    for number, run in enumerate(runs):
        if len(runs) > 1:
            yield tag("h3", run.name)
        chosen, rows, parts = picks(run), [], []
        for kind, some in chosen.items():
            for place, pick in enumerate(some):
                anchor, name = f"e{number}-{kind}-{place}", pick.row.episode_id
                link = tag("a", name, href=f"#{anchor}")
                rows.append([kind, link, pick.row.role, str(pick.row.update), pick.result, pick.why])
                command = replay_command(run.path, name)
                parts.append(transcript(run.path, anchor, name, pick, command))
        yield _table(["", "episode", "role", "update", "result", "why"], rows, right=(3,))
        yield from parts


# ---- pieces


def _each(
    runs: Runs,
    title: str,
    caption: str,
    drawings: figures.Drawings,
) -> list[Card]:
    """A card for each run."""
    return [
        Card(title if len(runs) == 1 else f"{title}: {run.name}", caption, drawing)
        for run, drawing in zip(runs, drawings, strict=True)
    ]


def _cards(cards: Iterable[Card]) -> Markup:
    """What was measured as cards, and the titles of what was not."""
    known = list(cards)
    shown = [
        tag("figure", tag("h3", card.title), tag("figcaption", card.caption), card.drawing)
        for card in known
        if card.drawing is not None
    ]
    missing = [card.title for card in known if card.drawing is None]
    note = tag("p", f"Not measured: {', '.join(missing)}.", class_="dim") if missing else None
    drawn = tag("div", shown, class_="cards") if shown else None
    return Markup("").join(part for part in (drawn, note) if part is not None)


def _table(head: Sequence[str], rows: Sequence[Sequence[str | Markup]], right: Iterable[int] = ()) -> Markup:
    numbers = set(right)

    def cell(name: str, place: int, value: str | Markup) -> Markup:
        shown = value if isinstance(value, Markup) else short(value)
        return tag(name, shown, class_="number" if place in numbers else None)

    if not rows:
        return tag("p", "Nothing yet.", class_="dim")
    top = tag("tr", [cell("th", place, value) for place, value in enumerate(head)])
    body = [tag("tr", [cell("td", place, value) for place, value in enumerate(row)]) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", body)), class_="table")
