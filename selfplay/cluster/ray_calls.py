"""Helpers for Ray that ranks and servers share: actors on one node, addresses, readable errors."""

from __future__ import annotations

import re
from typing import Any

from selfplay.cluster.seats import Node

START_S = 120.0  # until a node has started an actor
ANSWER_S = 10.0  # until an actor has answered a short question
END_S = 20.0  # until an actor has ended what it started
_ERROR_LINE = re.compile(r"[\w.]*(Error|Exception)\b.*: \S")


def on_node(key: str, remote: Any, **options: Any) -> Any:
    """A remote function or class that runs on the node `key` and nowhere else.

    The placement shares out CPUs itself, so actors ask Ray for none. Ray does keep GPUs apart.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False), **options)


def address_of(node: Node) -> str:
    """The address at which other nodes reach this one; "" if the node is lost."""
    import ray

    return next(
        (str(entry["NodeManagerAddress"]) for entry in ray.nodes() if entry["NodeID"] == node.key), ""
    )


def first_line(error: BaseException) -> str:
    """One line on what happened. In a remote traceback it is the last line that names an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = [line for line in lines if _ERROR_LINE.match(line)]
    line = (named or lines[:1])[-1]
    return line if line.endswith((".", "!")) else f"{line}."
