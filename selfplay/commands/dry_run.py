"""`selfplay train --dry-run`: what would run where and what memory it takes. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from selfplay.cluster.machines import planned_nodes, policy_shape
from selfplay.cluster.placement import place
from selfplay.cluster.seats import Node
from selfplay.config import load_config
from selfplay.engines.adapted_models import adapter_folder
from selfplay.repositories.specs import read_repository_list
from selfplay.viewing.placement import show_placement


def dry_run_training(
    repos: Path, config_file: Path | None, overrides: Sequence[str], address: str | None = None
) -> None:
    """`selfplay train --dry-run`.

    Raises PlacementError for what does not fit, and what a run would raise for wrong settings.
    """
    config = load_config(config_file, overrides)
    read_repository_list(repos)
    if config.policy.adapter:
        adapter_folder(config.policy)
    shape = policy_shape(config)
    nodes = planned_nodes(config) if address is None else _asked(address)
    show_placement(place(config, shape, nodes), shape, Console())


def _asked(address: str) -> tuple[Node, ...]:
    from selfplay.cluster.ray_cluster import Cluster

    cluster = Cluster(address)
    try:
        return cluster.nodes()
    finally:
        cluster.close()
