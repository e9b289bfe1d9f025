"""The lineage of bugs as a drawing: each injected bug with the second-order bugs that grew from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from selfplay.curriculum.lineage import bug_graph
from selfplay.curriculum.rows import BugRow
from selfplay.viewing.report.html import tag

if TYPE_CHECKING:
    import networkx as nx

ROW, INDENT, WIDTH = 22, 22, 400
MOST_FAMILIES, MOST_ROWS = 12, 60


def lineage_chart(bugs: Sequence[BugRow]) -> Markup | None:
    """The families of more than one bug, the largest first. None if there is none.

    At most MOST_FAMILIES of them, and MOST_ROWS bugs.
    """
    graph = bug_graph(bugs)
    roots = [bug.bug_id for bug in bugs if graph.in_degree(bug.bug_id) == 0 and graph.out_degree(bug.bug_id)]
    families = sorted(roots, key=lambda name: -_size(graph, name))[:MOST_FAMILIES]
    if not families:
        return None
    rows: list[tuple[int, str]] = []
    for name in families:
        _walk(graph, name, 0, rows)
    rows = rows[:MOST_ROWS]
    marks = []
    at: dict[int, int] = {}  # depth -> row of the last bug there
    for place, (depth, name) in enumerate(rows):
        y = place * ROW + ROW / 2
        at[depth] = place
        if depth:
            x, top = (depth - 1) * INDENT + 8, at[depth - 1] * ROW + ROW / 2 + 6
            marks.append(tag("path", d=f"M{x} {top}V{y}H{x + INDENT - 7}", class_="grid branch"))
        marks += _node(graph.nodes[name]["bug"], depth * INDENT + 8, y)
    height = len(rows) * ROW
    return tag("svg", marks, viewBox=f"0 0 {WIDTH} {height}", role="img", class_="lineage")


def _node(bug: BugRow, x: float, y: float) -> list[Markup]:
    """A circle, full in the measure of the solve rate, and the bug's name with its rate."""
    rate = bug.solve_rate
    known = f"{rate:.0%} solved" if rate is not None else "not measured"
    about = f"{bug.bug_id}: {bug.status}, {known}, {bug.strategy}, {bug.repository}"
    circle = tag("circle", cx=x, cy=y, r=6, class_="grid node")
    filled = tag("circle", tag("title", about), cx=x, cy=y, r=6, class_="fill c1", fill_opacity=rate or 0)
    name = bug.bug_id if len(bug.bug_id) <= 28 else f"{bug.bug_id[:27]}…"
    return [circle, filled, tag("text", f"{name} ({known})", x=x + 12, y=y + 4, text_anchor="start")]


def _size(graph: nx.DiGraph[str], name: str) -> int:
    import networkx as nx

    return len(nx.descendants(graph, name))


def _walk(graph: nx.DiGraph[str], name: str, depth: int, rows: list[tuple[int, str]]) -> None:
    rows.append((depth, name))
    for child in sorted(graph.successors(name)):
        _walk(graph, child, depth + 1, rows)
