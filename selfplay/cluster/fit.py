"""Checks that ranks and servers fit their GPUs and their nodes' main memory. Formulas are in `memory`.

What does not fit is a PlacementError. It names the figure and, if there is one, a change of settings that
fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from selfplay.cluster.memory import (
    GIB,
    ModelShape,
    cache_bytes_per_token,
    server_bytes,
    trainer_bytes,
    trainer_host_bytes,
)
from selfplay.cluster.seats import Node, Seats
from selfplay.config import Config
from selfplay.engines.precision import trains_in_bf16
from selfplay.errors import PlacementError
from selfplay.settings.learning import TrainerSettings
from selfplay.settings.serving import EngineSettings

LOGIT_TOKENS = 2048  # of a proposed `trainer.logit_tokens`
HEADROOM = 0.95  # share of a GPU that may be planned for, since allocators leave holes
HOST_HEADROOM = 0.9  # the same of main memory
_OFFLOADS = ("offload", "offload_weights", "offload_activations")  # settings that fill main memory


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a rank and of a server in bytes, on one GPU each, or in one process where there are no GPUs.

    rank, server                 bytes by part
    rank_budget, server_budget   bytes that they may use; 0 without GPUs
    cached_tokens                tokens whose keys and values fit in one server
    """

    rank: Mapping[str, int]
    rank_budget: int = 0
    server: Mapping[str, int] = field(default_factory=dict)
    server_budget: int = 0
    cached_tokens: int = 0


def fit(config: Config, shape: ModelShape, seats: Seats) -> MemoryUse:
    """The memory of ranks and servers in these seats. Raises PlacementError for what does not fit."""
    use = _use_of_gpus(config, shape, seats) if seats.on_gpus else _use_of_processes(config, shape, seats)
    _check_hosts(config, shape, seats, use)
    return use


def _use_of_gpus(config: Config, shape: ModelShape, seats: Seats) -> MemoryUse:
    rank, rank_budget = _check_rank(config, shape, seats) if seats.ranks else ({}, 0)
    if not seats.servers:
        return MemoryUse(rank, rank_budget)
    gpu = min(seats.nodes[seat.node].gpu_bytes for seat in seats.servers)
    server_budget = int(gpu * config.engine.gpu_memory)
    server, cached = _check_server(config, shape, server_budget, gpu, width=len(seats.servers[0].gpus))
    return MemoryUse(rank, rank_budget, server, server_budget, cached)


def _check_rank(config: Config, shape: ModelShape, seats: Seats) -> tuple[dict[str, int], int]:
    """Bytes of a rank by part, and how many it may use. Raises PlacementError if that is too few."""
    rank = _rank_memory(config, shape, on_gpus=True)
    gpu = min(seats.nodes[seat.node].gpu_bytes for seat in seats.ranks)
    server_share = config.engine.gpu_memory if seats.shares_gpus else 0.0
    rank_budget = int(gpu * (HEADROOM - server_share))
    if sum(rank.values()) > rank_budget:
        besides = f" beside a rollout server's {server_share:.0%}" if server_share else ""
        raise PlacementError(
            f"a trainer rank of {shape.name} needs {gib_text(sum(rank.values()))} ({_largest(rank)}); a GPU "
            f"of {gib_text(gpu)} has {gib_text(rank_budget)} for it{besides}. "
            f"{_rank_remedy(config, shape, rank_budget - rank.get('engine', 0))}"
        )
    return rank, rank_budget


def _use_of_processes(config: Config, shape: ModelShape, seats: Seats) -> MemoryUse:
    rank = _rank_memory(config, shape, on_gpus=False) if seats.ranks else {}
    if not seats.servers:
        return MemoryUse(rank)
    cache = config.engine.cache_mb << 20
    server = {"weights": 4 * shape.parameters, "cache": cache}
    return MemoryUse(rank, server=server, cached_tokens=cache // cache_bytes_per_token(shape, 1, 4))


def _rank_memory(config: Config, shape: ModelShape, on_gpus: bool) -> dict[str, int]:
    """Bytes of a rank by part.

    The hf engine generates in the trainer's process, so it is one of the parts.
    """
    _check_shared_heads(config.trainer, shape)
    trainer = config.trainer.model_copy(update={"bf16": trains_in_bf16(config.trainer.bf16, on_gpus)})
    memory = trainer_bytes(shape, trainer, config.agent.context_tokens, config.cluster.action_share)
    if config.engine.type in ("hf", "auto"):
        memory["engine"] = (2 if on_gpus else 4) * shape.parameters + (config.engine.cache_mb << 20)
    return memory


def _check_shared_heads(settings: TrainerSettings, shape: ModelShape) -> None:
    """Raise PlacementError unless the ranks of a sequence can share the heads of attention."""
    size = settings.sequence_parallel
    if shape.heads % size or (shape.kv_heads % size and size % shape.kv_heads):
        raise PlacementError(
            f"trainer.sequence_parallel = {size}: {shape.name} has {shape.heads} attention heads and "
            f"{shape.kv_heads} heads of keys and values, which so many ranks cannot share. Set a divisor of "
            "both."
        )


def _rank_remedy(config: Config, shape: ModelShape, budget: int) -> str:
    """A sentence with the first change of settings that fits `budget`, or with the first pair of changes."""
    changes = list(_changes(config, shape))
    pairs = [{**first, **second} for number, first in enumerate(changes) for second in changes[number + 1 :]]
    for change in [*changes, *pairs]:
        context = change.get("agent.context_tokens", config.agent.context_tokens)
        update = {
            key.removeprefix("trainer."): value for key, value in change.items() if key.startswith("trainer.")
        }
        if update.get("batch_tokens", 0) < context and "batch_tokens" in update:
            continue  # a micro-batch holds at least one episode
        try:
            settings = TrainerSettings.model_validate(config.trainer.model_dump() | update)
        except ValueError:  # the settings contradict each other
            continue
        if sum(trainer_bytes(shape, settings, context, config.cluster.action_share).values()) <= budget:
            words = [f"{key} = {str(value).lower()}" for key, value in change.items()]
            return f"It fits with {' and '.join(words)}."
    return (
        "No one or two changes of trainer.ranks, zero_stage, sequence_parallel, offload, "
        "activation_checkpointing, offload_activations, logit_tokens, batch_tokens and agent.context_tokens "
        "make it fit."
    )


def _changes(config: Config, shape: ModelShape) -> Iterator[dict[str, Any]]:
    """Changes of settings that save memory, in the order in which they are proposed."""
    settings, context = config.trainer, config.agent.context_tokens
    if not settings.activation_checkpointing:
        yield {"trainer.activation_checkpointing": True}
    if settings.batch_tokens > context:
        yield {"trainer.batch_tokens": context}
    if not settings.logit_tokens:
        yield {"trainer.logit_tokens": LOGIT_TOKENS}
    if settings.type == "deepspeed":
        yield from ({"trainer.zero_stage": stage} for stage in range(settings.zero_stage + 1, 4))
        yield from ({"trainer.sequence_parallel": size} for size in _wider_groups(settings, shape))
        if settings.zero_stage and not settings.offload:
            yield {"trainer.offload": True}
        if settings.zero_stage:
            yield from ({"trainer.ranks": settings.ranks * factor} for factor in (2, 4, 8))
    if not settings.offload_activations:
        yield {"trainer.offload_activations": True}
    for divisor in (2, 4, 8):
        yield {
            "agent.context_tokens": context // divisor,
            "trainer.batch_tokens": min(settings.batch_tokens, context // divisor),
        }


def _wider_groups(settings: TrainerSettings, shape: ModelShape) -> Iterator[int]:
    """Larger values of `sequence_parallel` that ranks and heads can be shared by, inside a node of 8 GPUs."""
    if settings.packing:
        return
    for size in (2, 4, 8):
        if size > settings.sequence_parallel and not settings.ranks % size and not shape.kv_heads % size:
            yield size


def _check_server(
    config: Config, shape: ModelShape, budget: int, gpu: int, width: int
) -> tuple[dict[str, int], int]:
    """Bytes of a server by part, and the tokens that its cache holds.

    Raises PlacementError if the cache cannot hold one conversation of `agent.context_tokens`.

    budget: bytes that it may use on each of its `width` GPUs. gpu: bytes of each of these GPUs.
    """
    settings, context = config.engine, config.agent.context_tokens
    unit = _unit(settings)
    memory = server_bytes(shape, budget, width, settings.max_batch, unit)
    per_token = cache_bytes_per_token(shape, width, unit)
    cached = max(0, memory["cache"]) // per_token
    if cached >= context:
        return memory, cached
    raise PlacementError(
        f"a rollout server of {shape.name} has {gib_text(budget)} on each of {width} GPU(s) "
        f"(engine.gpu_memory = {settings.gpu_memory:g} of {gib_text(gpu)}): weights take "
        f"{gib_text(memory['weights'])}, working memory {gib_text(memory['working'])}, and one conversation "
        f"of agent.context_tokens = {context} needs {gib_text(per_token * context)} for keys and values. "
        f"{_server_remedy(settings, shape, gpu, width, context)}"
    )


def _server_remedy(settings: EngineSettings, shape: ModelShape, gpu: int, width: int, context: int) -> str:
    """A sentence with the first change of `gpu_memory` and tensor parallelism that fits."""
    unit = _unit(settings)
    wider = ((settings.gpu_memory, width * factor) for factor in (2, 4, 8))
    for share, wide in [(0.9, width), *wider, (0.9, 8 * width)]:
        if share < settings.gpu_memory:
            continue
        room = server_bytes(shape, int(gpu * share), wide, settings.max_batch, unit)["cache"]
        if room >= context * cache_bytes_per_token(shape, wide, unit):
            changes = [f"engine.gpu_memory = {share:g}"] * (share != settings.gpu_memory)
            changes += [f'engine.options = ["--tensor-parallel-size={wide}"]'] * (wide != width)
            return f"It fits with {' and '.join(changes)}."
    return "Lower agent.context_tokens, or use a smaller policy."


def _unit(settings: EngineSettings) -> int:
    """Bytes of a weight, and of a cached key or value."""
    return 4 if settings.dtype == "float32" else 2


def _check_hosts(config: Config, shape: ModelShape, seats: Seats, use: MemoryUse) -> None:
    """Check main memory. Without GPUs it holds everything, with GPUs what `trainer.offload` moves there."""
    moved = trainer_host_bytes(shape, config.trainer, config.agent.context_tokens)
    per_rank = moved if seats.on_gpus else sum(use.rank.values()) + moved
    per_server = 0 if seats.on_gpus else sum(use.server.values())
    for index, node in enumerate(seats.nodes):
        ranks = sum(seat.node == index for seat in seats.ranks)
        servers = sum(seat.node == index for seat in seats.servers)
        need = ranks * per_rank + servers * per_server
        if need > node.memory_bytes * HOST_HEADROOM:
            offloads = [name for name in _OFFLOADS if getattr(config.trainer, name)]
            remedy = f"Set trainer.{(offloads or ['offload'])[-1]} = false, or more trainer.ranks."
            if not seats.on_gpus:
                remedy = "Lower trainer.batch_tokens, engine.cache_mb or trainer.ranks."
            raise PlacementError(
                f"{node.name} has {gib_text(node.memory_bytes)} of main memory; {ranks} trainer rank(s) with "
                f"{gib_text(per_rank)} and {servers} rollout server(s) with {gib_text(per_server)} need "
                f"{gib_text(need)} there. {remedy}"
            )


def check_least_memory(config: Config, shape: ModelShape, node: Node) -> None:
    """Raises PlacementError if what a run on one machine surely holds is more than the machine has.

    That is weights, gradients, optimiser states and the copy of the engine. Activations, logits and caches
    come on top; `fit` estimates them.
    """
    trainer = config.trainer
    per_rank = trainer_bytes(shape, trainer, config.agent.context_tokens, config.cluster.action_share)
    surely = sum(per_rank[part] for part in ("weights", "gradients", "optimiser"))
    gpus = min(node.gpus, trainer.ranks)
    if config.engine.type == "hf":
        surely += (2 if gpus else 4) * shape.parameters
    has, where = (node.gpu_bytes, "a GPU") if gpus else (node.memory_bytes, "this machine")
    need = surely if gpus else surely * trainer.ranks
    if need > has:
        remedy = _rank_remedy(config, shape, has) if gpus else "Use a smaller policy, or a machine with GPUs."
        raise PlacementError(
            f"training {shape.name} takes at least {gib_text(need)} for weights, gradients and optimiser "
            f"states, and {where} has {gib_text(has)}. {remedy}"
        )


def gib_text(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _largest(parts: Mapping[str, int]) -> str:
    """The parts above 0.1 GiB, largest first."""
    return ", ".join(
        f"{name} {gib_text(size)}"
        for name, size in sorted(parts.items(), key=lambda part: -part[1])
        if size > GIB // 10
    )
