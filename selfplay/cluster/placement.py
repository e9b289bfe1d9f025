"""Who runs where: trainer ranks, rollout servers and episodes over described machines, and whether each fits its GPU. Pure.

Leaves asking live machines and starting anything to `ray_cluster`, formulas of memory to `memory`. Invariant: a placement that is returned
fits; what cannot fit is a PlacementError with the figure and, where one change of settings would do, that change.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfplay.cluster.memory import (
    GIB,
    ModelShape,
    cache_bytes_per_token,
    server_bytes,
    trainer_bytes,
    trainer_host_bytes,
)
from selfplay.config import Config, EngineSettings, NodeSettings, TrainerSettings
from selfplay.errors import PlacementError

HEADROOM = 0.95  # of a GPU that may be planned for: allocators leave holes
HOST_HEADROOM = 0.9
CROWDED = (
    4.0  # episodes a free CPU above which a note is made: most wait for the policy, their test runs do not
)
_TENSOR_PARALLEL = ("--tensor-parallel-size", "-tp")
_PIPELINE = ("--pipeline-parallel-size", "-pp")


@dataclass(frozen=True)
class Node:
    """One machine. gpu_bytes: of each GPU. key: how the cluster itself names it, "" where it is only described."""

    name: str
    gpus: int
    gpu_bytes: int
    cpus: int
    memory_bytes: int
    key: str = ""


@dataclass(frozen=True)
class Seat:
    """A place on a node, by its index in the placement's nodes, and the GPUs it takes there."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Placement:
    """ranks, servers: a seat each, in order. episodes: how many are in flight on each node. Memory by part, in bytes, on one GPU each."""

    nodes: tuple[Node, ...]
    ranks: tuple[Seat, ...]
    servers: tuple[Seat, ...]
    episodes: tuple[int, ...]
    shares_gpus: bool
    rank_memory: Mapping[str, int]
    rank_budget: int
    server_memory: Mapping[str, int]
    server_budget: int
    cached_tokens: int  # of keys and values that one server keeps
    notes: tuple[str, ...]


def described_nodes(groups: Sequence[NodeSettings]) -> tuple[Node, ...]:
    kinds = [group for group in groups for _ in range(group.count)]
    return tuple(
        Node(f"node-{number}", kind.gpus, int(kind.gpu_gib * GIB), kind.cpus, int(kind.memory_gib * GIB))
        for number, kind in enumerate(kinds)
    )


def tensor_parallel(options: Sequence[str]) -> int:
    """How many GPUs a server takes, from its options. Raises PlacementError for a pipeline, which new weights in flight do not go with."""
    if _option(options, _PIPELINE) > 1:
        raise PlacementError(
            "engine.options has a pipeline, which takes new weights while requests run badly. Use --tensor-parallel-size."
        )
    return _option(options, _TENSOR_PARALLEL)


def _option(options: Sequence[str], names: Sequence[str]) -> int:
    words = [word for option in options for word in option.split("=", 1)]
    values = [value for name, value in itertools.pairwise(words) if name in names]
    try:
        return int(values[-1]) if values else 1
    except ValueError as error:
        raise PlacementError(
            f"engine.options: {names[0]} is {values[-1]!r}, not a number of GPUs."
        ) from error


def place(config: Config, shape: ModelShape, nodes: Sequence[Node]) -> Placement:
    """Raises PlacementError, which names the figure and the remedy, for what does not fit."""
    nodes = tuple(nodes)
    if not nodes:
        raise PlacementError(
            "no machine is described. Give cluster.nodes, or --cluster with the address of one."
        )
    servers = config.engine.servers if config.engine.type == "vllm" and not config.engine.urls else 0
    width = tensor_parallel(config.engine.options) if servers else 1
    on_gpus = any(node.gpus for node in nodes)
    shares = config.cluster.share_gpus and on_gpus and servers > 0
    if on_gpus:
        rank_seats, server_seats = _seats_on_gpus(nodes, config.trainer.ranks, servers, width, shares)
    else:
        rank_seats, server_seats = _dealt(nodes, config.trainer.ranks), _dealt(nodes, servers)
        if width > 1:
            raise PlacementError(
                f"engine.options asks for {width} GPUs a server, and no machine has one. Leave it out."
            )
    rank_memory = dict(
        trainer_bytes(shape, config.trainer, config.agent.context_tokens, config.cluster.action_share)
    )
    if config.engine.type == "hf":
        rank_memory["engine"] = (2 if on_gpus else 4) * shape.parameters + (config.engine.cache_mb << 20)
    rank_budget, server_budget, cached = 0, 0, 0
    server_memory: dict[str, int] = {}
    if on_gpus:
        rank_gpu = min(nodes[seat.node].gpu_bytes for seat in rank_seats)
        taken = config.engine.gpu_memory if shares else 0.0
        rank_budget = int(rank_gpu * (HEADROOM - taken))
        _check_rank(config, shape, rank_memory, rank_budget, rank_gpu, taken)
        if servers:
            server_gpu = min(nodes[seat.node].gpu_bytes for seat in server_seats)
            server_budget = int(server_gpu * config.engine.gpu_memory)
            server_memory, cached = _check_server(config, shape, server_budget, server_gpu, width)
    elif servers:
        per_token = cache_bytes_per_token(shape, 1, 4)
        server_memory = {"weights": 4 * shape.parameters, "cache": config.engine.cache_mb << 20}
        cached = (config.engine.cache_mb << 20) // per_token
    _check_hosts(config, shape, nodes, rank_seats, server_seats, rank_memory, server_memory, on_gpus)
    episodes = _deal_episodes(nodes, rank_seats, server_seats, config.train.episodes_in_flight)
    notes = tuple(_notes(config, nodes, rank_seats, server_seats, episodes))
    return Placement(
        nodes,
        rank_seats,
        server_seats,
        episodes,
        shares,
        rank_memory,
        rank_budget,
        server_memory,
        server_budget,
        cached,
        notes,
    )


def fewer(config: Config, shape: ModelShape, nodes: Sequence[Node]) -> tuple[Config, Placement]:
    """The same on machines that may have become fewer: as many servers as fit beside all ranks, else beside half of them, and so on.

    Raises PlacementError as `place` does when not even one of each fits.
    """
    refusal: PlacementError | None = None
    ranks = config.trainer.ranks
    while ranks:
        for servers in range(config.engine.servers, 0, -1):
            trainer, engine = (
                config.trainer.model_copy(update={"ranks": ranks}),
                config.engine.model_copy(update={"servers": servers}),
            )
            tried = config.model_copy(update={"trainer": trainer, "engine": engine})
            try:
                return tried, place(tried, shape, nodes)
            except PlacementError as error:
                refusal = refusal or error
        ranks //= 2
    assert refusal is not None
    raise refusal


def _seats_on_gpus(
    nodes: Sequence[Node], ranks: int, servers: int, width: int, shares: bool
) -> tuple[tuple[Seat, ...], tuple[Seat, ...]]:
    """Seats of ranks and of servers, `width` GPUs of one node each. shares: a rank and a server may have the same GPU."""
    total = sum(node.gpus for node in nodes)
    has = f"the cluster has {total} GPU(s) on {len(nodes)} node(s)"
    if ranks > total:
        raise PlacementError(
            f"trainer.ranks = {ranks}, and {has}: a rank takes one. Set trainer.ranks = {total} or less."
        )
    free = [list(range(node.gpus)) for node in nodes]
    rank_seats = _take(free, ranks)
    if shares:
        free = [list(range(node.gpus)) for node in nodes]
    server_seats: list[Seat] = []
    for node, gpus in enumerate(free):
        while len(gpus) >= width and len(server_seats) < servers:
            server_seats.append(Seat(node, tuple(gpus[:width])))
            del gpus[:width]
    if len(server_seats) < servers:
        fitting = len(server_seats)
        remedy = f"engine.servers = {fitting}" if fitting else "a smaller --tensor-parallel-size"
        alone = "" if shares else ", or cluster.share_gpus = true where a GPU holds both"
        raise PlacementError(
            f"{ranks} trainer rank(s) and {servers} rollout server(s) of {width} GPU(s) need {ranks + servers * width} GPUs, a server's on "
            f"one node; {has}, and {fitting} server(s) fit. Set {remedy}, or fewer trainer.ranks{alone}."
        )
    return rank_seats, tuple(server_seats)


def _take(free: list[list[int]], count: int) -> tuple[Seat, ...]:
    """One GPU each, on as few nodes as can be: whole nodes first, the last ones where least is left over. Taken out of `free`."""
    seats: list[Seat] = []
    while len(seats) < count:
        missing = count - len(seats)
        enough = [node for node, gpus in enumerate(free) if len(gpus) >= missing]
        node = (
            min(enough, key=lambda n: (len(free[n]), n))
            if enough
            else max(range(len(free)), key=lambda n: (len(free[n]), -n))
        )
        taken = free[node][:missing]
        del free[node][:missing]
        seats += [Seat(node, (gpu,)) for gpu in taken]
    return tuple(seats)


def _dealt(nodes: Sequence[Node], count: int) -> tuple[Seat, ...]:
    """Round the nodes, without a GPU."""
    return tuple(Seat(number % len(nodes)) for number in range(count))


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _largest(parts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name} {_gib(size)}"
        for name, size in sorted(parts.items(), key=lambda part: -part[1])
        if size > GIB // 10
    )


def _check_rank(
    config: Config, shape: ModelShape, memory: Mapping[str, int], budget: int, gpu: int, taken: float
) -> None:
    need = sum(memory.values())
    if need <= budget:
        return
    besides = f" beside a rollout server's {taken:.0%}" if taken else ""
    raise PlacementError(
        f"a trainer rank of {shape.name} needs {_gib(need)} ({_largest(memory)}); a GPU of {_gib(gpu)} has {_gib(budget)} for it{besides}. "
        + _rank_remedy(config, shape, budget, sum(size for part, size in memory.items() if part == "engine"))
    )


def _rank_remedy(config: Config, shape: ModelShape, budget: int, engine: int) -> str:
    """The first single change that makes it fit, or the first pair."""
    changes = list(_changes(config.trainer, config.agent.context_tokens))
    pairs = [{**first, **second} for number, first in enumerate(changes) for second in changes[number + 1 :]]
    for change in [*changes, *pairs]:
        context = change.get("agent.context_tokens", config.agent.context_tokens)
        update = {
            key.removeprefix("trainer."): value for key, value in change.items() if key.startswith("trainer.")
        }
        if update.get("batch_tokens", 0) < context and "batch_tokens" in update:
            continue  # one episode is the least that a micro-batch holds
        settings = config.trainer.model_copy(update=update)
        if (
            sum(trainer_bytes(shape, settings, context, config.cluster.action_share).values()) + engine
            <= budget
        ):
            told = " and ".join(f"{key} = {str(value).lower()}" for key, value in change.items())
            return f"It fits with {told}."
    return "No one or two of trainer.ranks, zero_stage, offload, activation_checkpointing, batch_tokens and agent.context_tokens make it fit."


def _changes(settings: TrainerSettings, context: int) -> Iterator[dict[str, Any]]:
    if not settings.activation_checkpointing:
        yield {"trainer.activation_checkpointing": True}
    if settings.batch_tokens > context:
        yield {"trainer.batch_tokens": context}
    if settings.type == "deepspeed":
        yield from ({"trainer.zero_stage": stage} for stage in range(settings.zero_stage + 1, 4))
        if settings.zero_stage and not settings.offload:
            yield {"trainer.offload": True}
        if settings.zero_stage:
            yield from ({"trainer.ranks": settings.ranks * factor} for factor in (2, 4, 8))
    for divisor in (2, 4, 8):
        yield {
            "agent.context_tokens": context // divisor,
            "trainer.batch_tokens": min(settings.batch_tokens, context // divisor),
        }


def _check_server(
    config: Config, shape: ModelShape, budget: int, gpu: int, width: int
) -> tuple[dict[str, int], int]:
    settings, context = config.engine, config.agent.context_tokens
    unit = 4 if settings.dtype == "float32" else 2
    memory = server_bytes(shape, budget, width, settings.max_batch, unit)
    per_token = cache_bytes_per_token(shape, width, unit)
    cached = max(0, memory["cache"]) // per_token
    if cached >= context:
        return memory, cached
    raise PlacementError(
        f"a rollout server of {shape.name} has {_gib(budget)} on each of {width} GPU(s) (engine.gpu_memory = {settings.gpu_memory:g} of "
        f"{_gib(gpu)}): weights take {_gib(memory['weights'])}, working memory {_gib(memory['working'])}, and one conversation of "
        f"agent.context_tokens = {context} needs {_gib(per_token * context)} of keys and values. "
        + _server_remedy(settings, shape, gpu, width, context)
    )


def _server_remedy(settings: EngineSettings, shape: ModelShape, gpu: int, width: int, context: int) -> str:
    unit = 4 if settings.dtype == "float32" else 2
    for share, wide in [
        (0.9, width),
        *((settings.gpu_memory, width * factor) for factor in (2, 4, 8)),
        (0.9, 8 * width),
    ]:
        if share < settings.gpu_memory:
            continue
        room = server_bytes(shape, int(gpu * share), wide, settings.max_batch, unit)["cache"]
        if room >= context * cache_bytes_per_token(shape, wide, unit):
            told = [f"engine.gpu_memory = {share:g}"] * (share != settings.gpu_memory)
            told += [f'engine.options = ["--tensor-parallel-size={wide}"]'] * (wide != width)
            return f"It fits with {' and '.join(told)}."
    return "Lower agent.context_tokens, or take a smaller policy."


def _check_hosts(
    config: Config,
    shape: ModelShape,
    nodes: Sequence[Node],
    ranks: Sequence[Seat],
    servers: Sequence[Seat],
    rank_memory: Mapping[str, int],
    server_memory: Mapping[str, int],
    on_gpus: bool,
) -> None:
    """Main memory: of everything where there are no GPUs, else of what `offload` moves there."""
    per_rank = trainer_host_bytes(shape, config.trainer) if on_gpus else sum(rank_memory.values())
    per_server = 0 if on_gpus else sum(server_memory.values())
    for number, node in enumerate(nodes):
        seated, served = (sum(seat.node == number for seat in seats) for seats in (ranks, servers))
        need = seated * per_rank + served * per_server
        if need > node.memory_bytes * HOST_HEADROOM:
            remedy = "Set trainer.offload = false, or more trainer.ranks."
            if not on_gpus:
                remedy = "Lower trainer.batch_tokens, engine.cache_mb or trainer.ranks."
            raise PlacementError(
                f"{node.name} has {_gib(node.memory_bytes)} of main memory; {seated} trainer rank(s) with {_gib(per_rank)} and {served} "
                f"rollout server(s) with {_gib(per_server)} need {_gib(need)} there. {remedy}"
            )


def _free_cpus(nodes: Sequence[Node], ranks: Sequence[Seat], servers: Sequence[Seat]) -> list[int]:
    """A rank keeps one busy, a server one for HTTP and one for each GPU; each node has one at least."""
    free = [node.cpus for node in nodes]
    for seat in ranks:
        free[seat.node] -= 1
    for seat in servers:
        free[seat.node] -= 1 + len(seat.gpus)
    return [max(1, cpus) for cpus in free]


def _deal_episodes(
    nodes: Sequence[Node], ranks: Sequence[Seat], servers: Sequence[Seat], count: int
) -> tuple[int, ...]:
    """In proportion to free CPUs, by largest remainder."""
    free = _free_cpus(nodes, ranks, servers)
    exact = [count * cpus / sum(free) for cpus in free]
    dealt = [int(share) for share in exact]
    for node in sorted(range(len(nodes)), key=lambda n: (dealt[n] - exact[n], n))[: count - sum(dealt)]:
        dealt[node] += 1
    return tuple(dealt)


def _notes(
    config: Config,
    nodes: Sequence[Node],
    ranks: Sequence[Seat],
    servers: Sequence[Seat],
    episodes: Sequence[int],
) -> Iterator[str]:
    total = sum(node.gpus for node in nodes)
    used = {(seat.node, gpu) for seat in (*ranks, *servers) for gpu in seat.gpus}
    if total > len(used):
        yield f"{total - len(used)} GPU(s) stay idle. Raise engine.servers or trainer.ranks."
    free = _free_cpus(nodes, ranks, servers)
    worst = max(range(len(nodes)), key=lambda n: episodes[n] / free[n])
    if episodes[worst] > CROWDED * free[worst]:
        yield (
            f"{nodes[worst].name}: {episodes[worst]} episodes in flight for {free[worst]} free CPU(s); test runs will wait for each other. "
            "Lower train.episodes_in_flight, or add nodes."
        )
    limit = config.sandbox.memory_mb << 20
    for number, node in enumerate(nodes):
        if episodes[number] * limit > node.memory_bytes * HOST_HEADROOM:
            yield (
                f"{node.name}: {episodes[number]} sandboxes may take {_gib(episodes[number] * limit)} (sandbox.memory_mb each), it has "
                f"{_gib(node.memory_bytes)}. That holds as long as few of them use it up."
            )
            break
    if config.trainer.type == "torch" and len(nodes) > 1:
        yield "trainer.type = 'torch' is one process on the first node; trainer.type = 'deepspeed' uses more."
    if config.engine.type != "vllm":
        yield f"engine.type = {config.engine.type!r} generates in the run's own process; engine.type = 'vllm' uses servers."
