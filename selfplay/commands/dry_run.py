"""`selfplay train --dry-run`: what would run where and what memory it takes. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from selfplay.agent.tools import toolbox
from selfplay.cluster.machines import planned_nodes, policy_folder, policy_shape
from selfplay.cluster.placement import place
from selfplay.cluster.seats import Node
from selfplay.commands.policies import (
    check_files,
    check_given_files,
    check_training_settings,
    fitted_context,
    with_engine,
)
from selfplay.config import load_config
from selfplay.evaluation.tasks import find_tasks
from selfplay.orchestrator.given_bugs import check_given_bugs
from selfplay.orchestrator.histories import foreseen_histories
from selfplay.repositories.specs import read_repository_list
from selfplay.viewing.placement import show_placement


def dry_run_training(
    repos: Path, config_file: Path | None, overrides: Sequence[str], address: str | None = None
) -> None:
    """`selfplay train --dry-run`.

    Raises PlacementError for what does not fit, and what a run would raise for wrong settings or for the
    policy's config.json and tokenizer, if they are on this machine.
    """
    config = load_config(config_file, overrides)
    specs = read_repository_list(repos)
    check_given_bugs(config, specs)
    find_tasks(config.evaluation.tasks, config.evaluation.limit)
    check_training_settings(config)
    check_given_files(config)
    toolbox(config.agent)
    console = Console()
    if (folder := policy_folder(config)) is None:
        console.print(
            f"{config.policy.model} is not on this machine: its type, chat template and context length are "
            "checked when a run starts.",
            markup=False,
            highlight=False,
        )
    else:
        check_files(config, str(folder), local_files_only=True)
        config = fitted_context(config, str(folder), local_files_only=True)
    shape = policy_shape(config)
    config = with_engine(config, str(folder or config.policy.model), console)
    nodes = planned_nodes(config) if address is None else _asked(address)
    show_placement(place(config, shape, nodes), shape, console)
    for line in foreseen_histories(config, specs):
        console.print(line, markup=False, highlight=False)


def _asked(address: str) -> tuple[Node, ...]:
    from selfplay.cluster.ray_cluster import Cluster

    cluster = Cluster(address)
    try:
        return cluster.nodes()
    finally:
        cluster.close()
