"""One bug in full, as sections: its story on one screen, then diffs, tests, checks, attempts and lineage.

The story goes from the episode that injected it over the checks, the attempts and the solve rate to the bugs
that grew from failed repairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.text import Text
from rich.tree import Tree

from selfplay.agent.observations import make_harmless
from selfplay.curriculum.lineage import bug_graph, root
from selfplay.curriculum.rows import AttemptRow, BugRow, EpisodeRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.verdicts.confirmation import Confirmation
from selfplay.viewing.changes import diffstat
from selfplay.viewing.episode_record import attempt_json, recorded_verdict
from selfplay.viewing.frames import Frames
from selfplay.viewing.sections import Section, section
from selfplay.viewing.tables import table
from selfplay.viewing.verdict import checks_table

if TYPE_CHECKING:
    import networkx as nx

MAX_TESTS = 20
MEANING = {"bug_inject.diff": "breaks the code", "test_weaken.diff": "hides the bug from the tests"}
RESULTS = {True: ("repaired", "green"), False: ("not repaired", "red"), None: ("not graded", "yellow")}


@dataclass(frozen=True)
class BugStory:
    """A bug with all rows that belong to it.

    injection  the episode that made it, None if the run has no row of it
    verdict    on that episode's artifact
    attempts   with their episodes, by update, group and member
    family     the bug with its ancestors and descendants
    """

    bug: BugRow
    injection: EpisodeRow | None
    verdict: VerdictRow | None
    attempts: Sequence[tuple[AttemptRow, EpisodeRow | None]]
    family: Sequence[BugRow]

    @classmethod
    def read(cls, store: Store, bug_id: str) -> BugStory:
        """bug_id: an id or the start of one. Raises StoreError if no bug or several match."""
        bug = store.bug(bug_id)
        name = bug.parent_episode_id or bug.injector_episode_id
        attempts = [(row, store.episode(row.episode_id)) for row in store.attempts(bug.bug_id)]
        verdict = store.verdict(bug.injector_episode_id)
        return cls(bug, store.episode(name), verdict, attempts, store.family(bug.bug_id))

    @property
    def graded(self) -> tuple[int, int]:
        """(repairs, graded attempts) of all groups that played the bug."""
        passed = [row.passed for row, _ in self.attempts if row.passed is not None]
        return (sum(passed), len(passed)) if passed else (self.bug.passes, self.bug.attempts)

    def to_json(self) -> dict[str, Any]:
        family = bug_graph(self.family)
        edges = [
            {"parent": a, "child": b, "attempt": family.edges[a, b]["attempt"]}
            for a, b in sorted(family.edges)
        ]
        return {
            **asdict(self.bug),
            "attempts": [attempt_json(row) for row, _ in self.attempts],
            "lineage": edges,
            "task": self.bug.task_record(),
        }


def show_bug(store: Store, bug_id: str, console: Console, as_json: bool = False) -> None:
    """Print one bug in full. `bug_id` may be the start of an id.

    Raises StoreError if no bug or several match.
    """
    story = BugStory.read(store, bug_id)
    if as_json:
        print(json.dumps(story.to_json(), indent=2))
        return
    frames = Frames(console, not console.is_terminal)
    for part in bug_sections(story, frames):
        frames.print(part)


def bug_sections(story: BugStory, frames: Frames) -> Iterator[Section]:
    """The story first, then each part of it."""
    bug = story.bug
    yield Section(f"the bug {bug.bug_id}", (frames.facts(_story(story)),), "cyan", "the story")
    yield section("attempts: " + str(len(story.attempts)), [_attempts_table(story, frames)], "blue")
    yield section("lineage", [_lineage_tree(bug_graph(story.family), bug.bug_id)], "blue")
    for name in ("bug_inject.diff", "test_weaken.diff"):
        diff = frames.file(name, bug.artifact.get(name, ""), MEANING[name])
        yield section(f"{name}: {diffstat(bug.artifact.get(name, ''))}", diff, "magenta")
    if bug.attempt_patch:
        parts = frames.file("attempt.diff", bug.attempt_patch, f"of {bug.parent_episode_id}")
        yield section("the failed repair that became this bug", parts, "magenta")
    for title, tests, what in (
        ("fail to pass", bug.fail_to_pass, "broken by the bug, hidden by the weakening"),
        ("pass to pass", bug.pass_to_pass, "pass with the bug too"),
    ):
        listed = frames.text("\n".join(_some(tests)))
        yield section(f"{title}: {len(tests)}, {what}", [listed], "green")
    if bug.failure:
        yield section("how it fails", [frames.text(bug.failure.rstrip())], "red")
    if checks := _checks(story, frames):
        yield section("the checks of its artifact", checks, "yellow")
    yield section("facts", [frames.facts(_facts(story))], "blue")


# ---- the story


def _story(story: BugStory) -> list[tuple[str, str]]:
    bug = story.bug
    return [
        ("injected", _injection(story)),
        ("checked", _checked(story.verdict)),
        ("attempts", _attempted(story)),
        ("solve rate", _solve_rate(story)),
        ("descendants", _descendants(story)),
        ("status", bug.status),
        ("change", f"{diffstat(bug.artifact.get('bug_inject.diff', ''))} in {bug.repository}"),
        ("breaks", f"{len(bug.fail_to_pass)} test(s); {len(bug.pass_to_pass)} others pass"),
    ]


def _injection(story: BugStory) -> str:
    bug, row = story.bug, story.injection
    name = bug.parent_episode_id or bug.injector_episode_id or "given with the run"
    how = "a failed repair" if bug.order == 2 else bug.strategy
    if row is None:
        return f"{name} · {how}"
    reward = f" · {earned(row)}" if row.reward is not None or row.masked else ""
    return f"{name} · {how} · {row.turns} turns, {row.action_tokens} tokens{reward}"


def earned(row: EpisodeRow) -> str:
    """Reward, advantage and the update that trained on an episode, in a few words."""
    if row.masked:
        return "masked"
    parts = [f"reward {row.reward:+.2f}"] if row.reward is not None else []
    if row.advantage is not None:
        parts.append(f"advantage {row.advantage:+.2f}")
    if row.advantage and row.consumed_update is not None:
        parts.append(f"trained in update {row.consumed_update}")
    return ", ".join(parts)


def _checked(row: VerdictRow | None) -> str:
    if row is None:
        return ""
    checks = recorded_verdict(row)["checks"]
    passed = [check["name"] for check in checks if check["passed"]]
    names = f": {', '.join(passed)}" if passed else ""
    cost = f" · {row.test_runs} test runs, {row.duration_s:.1f} s" if row.test_runs else ""
    return f"{len(passed)} of {len(checks)} checks passed{cost}{names}"


def _attempted(story: BugStory) -> str:
    if not story.attempts:
        return "none yet"
    results = [row.passed for row, _ in story.attempts]
    counts = [(RESULTS[passed][0], results.count(passed)) for passed in (True, False, None)]
    return f"{len(results)}: " + ", ".join(f"{count} {name}" for name, count in counts if count)


def _solve_rate(story: BugStory) -> str:
    """The latest measurement and, if there were several, the first one and all attempts together."""
    bug = story.bug
    if bug.solve_rate is None:
        return "not measured"
    text = f"{bug.solve_rate:.2f}, {bug.passes} of {bug.attempts} attempts"
    passes, graded = story.graded
    if graded == bug.attempts:
        return text
    first = "" if bug.first_solve_rate is None else f"; {bug.first_solve_rate:.2f} in the first"
    return f"{text}, in the latest measurement{first}; {passes} of {graded} in all"


def _descendants(story: BugStory) -> str:
    graph = bug_graph(story.family)
    below = [name for name in graph if name != story.bug.bug_id and graph.in_degree(name)]
    return f"{len(below)}: {', '.join(_some(below, 3))}" if below else "none"


# ---- the parts


def _facts(story: BugStory) -> list[tuple[str, str]]:
    bug = story.bug
    created = datetime.fromtimestamp(bug.created_at).isoformat(" ", "seconds")
    return [
        ("repository", f"{bug.repository} at {bug.base_commit[:12]}"),
        ("strategy", bug.strategy),
        ("target", _target_name(bug.target)),
        ("order", "1, injected" if bug.order == 1 else "2, made from a failed repair"),
        ("status", bug.status),
        ("solve rate", _solve_rate(story)),
        ("played", f"by {bug.plays} group(s)"),
        ("change", diffstat(bug.artifact.get("bug_inject.diff", ""))),
        ("weakening", diffstat(bug.artifact.get("test_weaken.diff", ""))),
        ("injected by", bug.injector_episode_id),
        ("created", f"{created}, update {bug.created_update}"),
    ]


def _target_name(target: str) -> str:
    """`path:name` of a target in its JSON form. Other text is returned as it is."""
    try:
        read = json.loads(target)
        return f"{read['path']}:{read['name']}"
    except (json.JSONDecodeError, KeyError, TypeError):
        return target


def _checks(story: BugStory, frames: Frames) -> list[RenderableType]:
    """Each check with its seconds, then its reason and evidence."""
    if story.verdict is None or not (checks := recorded_verdict(story.verdict)["checks"]):
        return []
    parts: list[RenderableType] = [checks_table(checks, story.verdict.accepted)]
    lines = [line for check in checks for line in evidence_lines(check)]
    return [*parts, frames.text("\n".join(lines), "dim")] if lines else parts


def evidence_lines(check: Mapping[str, Any]) -> list[str]:
    """What a check found: its reason, then a line for each piece of evidence."""
    reason = [f"{check['name']}: {check['reason']}"] if check.get("reason") else []
    found = [f"  {name}: {json.dumps(value)}" for name, value in check.get("evidence", {}).items()]
    return [*(reason or ([f"{check['name']}:"] if found else [])), *found]


def _attempts_table(story: BugStory, frames: Frames) -> RenderableType:
    shown = table("episode", "result", "reward", "advantage", "reason", right=("reward", "advantage"))
    for row, episode in story.attempts:
        name, style = RESULTS[row.passed]
        is_plain = row.confirmed in (Confirmation.NOT_NEEDED, Confirmation.CONFIRMED)
        again = "" if is_plain else f" ({row.confirmed.value})"
        restored = f"; restored {', '.join(row.restored)}" if row.restored else ""
        why = row.reason if row.reason != name else ""
        cells = [Text(make_harmless(row.episode_id)), Text(name + again, style)]
        values = (episode.reward, episode.advantage) if episode else (None, None)
        cells += [Text("–" if value is None else f"{value:+.2f}") for value in values]
        shown.add_row(*cells, Text(make_harmless(f"{why}{restored}")))
    return shown if shown.row_count else Text("none yet", "dim")


def _lineage_tree(family: nx.DiGraph[str], shown_id: str) -> Tree:
    top = root(family)
    tree = Tree(_lineage_label(family, top, shown_id))
    branches = {top: tree}
    waiting = [top]
    while waiting:
        parent = waiting.pop(0)
        for child in sorted(family.successors(parent)):
            branches[child] = branches[parent].add(
                _lineage_label(family, child, shown_id, family.edges[parent, child]["attempt"])
            )
            waiting.append(child)
    return tree


def _lineage_label(family: nx.DiGraph[str], bug_id: str, shown_id: str, attempt: str = "") -> Text:
    bug: BugRow = family.nodes[bug_id]["bug"]
    rate = f", solve rate {bug.solve_rate:.2f}" if bug.solve_rate is not None else ""
    label = Text(make_harmless(bug_id), style="bold" if bug_id == shown_id else "")
    return label.append(
        f" ({bug.status}{rate})" + (f" from attempt {make_harmless(attempt)}" if attempt else ""),
        style="not bold dim",
    )


def _some(items: Sequence[str], most: int = MAX_TESTS) -> list[str]:
    more = [f"… {len(items) - most} more; --json lists all"] if len(items) > most else []
    return [*items[:most], *more]
