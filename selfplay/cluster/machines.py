"""What there is to place, and on what: the policy's shape, a described cluster, this machine. Reads files and asks nvidia-smi.

Leaves live Ray clusters to `ray_cluster`. Invariant: nothing here touches a GPU or the network.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

from selfplay.agent.chat import policy_path
from selfplay.cluster.memory import ModelShape, described_shape, read_shape
from selfplay.cluster.placement import Node, described_nodes
from selfplay.config import Config
from selfplay.errors import EngineError, PlacementError


def planned_nodes(config: Config) -> tuple[Node, ...]:
    """Those of `cluster.nodes`, else this machine."""
    return described_nodes(config.cluster.nodes) or (this_machine(),)


def this_machine(key: str = "") -> Node:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpus = gpu_sizes()
    return Node(socket.gethostname(), len(gpus), min(gpus, default=0), os.cpu_count() or 1, memory, key)


def gpu_sizes() -> list[int]:
    """Bytes of each GPU here, by nvidia-smi: [] where there is none. Asks no CUDA, which would take memory."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return [int(line) << 20 for line in told.stdout.split()] if told.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return []


def policy_shape(config: Config) -> ModelShape:
    """Of the policy's config.json where it is on this machine, else of `policy.shape`. Raises PlacementError where there is neither."""
    name = config.policy.model
    try:
        file = Path(policy_path(name)) / "config.json"
    except EngineError:
        if config.policy.shape is None:
            raise
        file = Path()
    if not file.is_file():
        file = _cached(name) or Path()
    if file.is_file():
        return read_shape(name, json.loads(file.read_text(encoding="utf-8")))
    if config.policy.shape is not None:
        return described_shape(name, config.policy.shape)
    raise PlacementError(
        f"the model {name} is not on this machine, so its size is not known. Describe it in policy.shape (hidden_size, … as "
        "its config.json has them), or set policy.model to a folder."
    )


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
