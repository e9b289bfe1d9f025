"""The lineage of bugs: an edge leads from a bug to the second-order bug that a failed repair of it became.

Drawing is left to viewing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from selfplay.curriculum.rows import BugRow
from selfplay.curriculum.store import Store

if TYPE_CHECKING:
    import networkx as nx


def bug_graph(bugs: Iterable[BugRow]) -> nx.DiGraph[str]:
    """A graph of bug ids.

    A node's `bug` is its row; an edge's `attempt` is the failed attempt's episode id.
    """
    import networkx as nx  # heavy, and most commands need no graph

    graph: nx.DiGraph[str] = nx.DiGraph()
    rows = list(bugs)
    for bug in rows:
        graph.add_node(bug.bug_id, bug=bug)
    for bug in rows:
        if bug.parent_bug_id is not None and bug.parent_bug_id in graph:
            graph.add_edge(bug.parent_bug_id, bug.bug_id, attempt=bug.parent_episode_id or "")
    return graph


def lineage(store: Store, bug_id: str) -> nx.DiGraph[str]:
    """The bug with all its ancestors and descendants.

    bug_id: an id or its start. Raises StoreError if no id begins so, or several do.
    """
    return bug_graph(store.family(store.bug(bug_id).bug_id))


def root(graph: nx.DiGraph[str]) -> str:
    """The bug of a lineage that has no parent."""
    return next(node for node in graph if graph.in_degree(node) == 0)
