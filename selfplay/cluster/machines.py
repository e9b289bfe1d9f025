"""The inputs of a placement: the policy's shape, and described machines or this one.

Reads files and runs nvidia-smi. Live Ray clusters are in `ray_cluster`. Invariant: nothing here touches a GPU
or the network.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

from selfplay.agent.chat import policy_path
from selfplay.cluster.memory import ModelShape, described_shape, read_shape
from selfplay.cluster.placement import described_nodes
from selfplay.cluster.seats import Node
from selfplay.config import Config
from selfplay.errors import EngineError, PlacementError


def planned_nodes(config: Config) -> tuple[Node, ...]:
    """The nodes of the setting `cluster.nodes`; without it this machine."""
    return described_nodes(config.cluster.nodes) or (this_machine(),)


def this_machine(key: str = "") -> Node:
    """This machine. key: its id on a Ray cluster."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpus = gpu_sizes()
    return Node(socket.gethostname(), len(gpus), min(gpus, default=0), os.cpu_count() or 1, memory, key)


def gpu_sizes() -> list[int]:
    """Bytes of each GPU of this machine, from nvidia-smi; [] without one.

    It avoids CUDA, which would take memory.
    """
    try:
        result = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return [int(line) << 20 for line in result.stdout.split()] if result.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return []


def policy_shape(config: Config) -> ModelShape:
    """The shape in the policy's config.json, or in `policy.shape` if the model is not on this machine.

    Raises PlacementError if there is neither.
    """
    name = config.policy.model
    if (folder := policy_folder(config)) is not None:
        return read_shape(name, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if config.policy.shape is not None:
        return described_shape(name, config.policy.shape)
    raise PlacementError(
        f"the model {name} is not on this machine, so its size is not known. Describe it in policy.shape "
        "(hidden_size and so on, as in its config.json), or set policy.model to a folder."
    )


def policy_folder(config: Config) -> Path | None:
    """The folder with the policy's config.json on this machine, that of the Hugging Face cache too.

    None: it is not here. Raises EngineError as `policy_path` does, unless `policy.shape` describes it.
    """
    name = config.policy.model
    try:
        file = Path(policy_path(name)) / "config.json"
    except EngineError:
        if config.policy.shape is None:
            raise
        return None
    found = file if file.is_file() else _cached(name)
    return found.parent if found else None


def _cached(name: str) -> Path | None:
    """The model's config.json in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
