"""Who runs where: trainer ranks, rollout servers and episodes on described machines. Pure.

Asking live machines and starting anything is in `ray_cluster`. Invariant: a placement that is returned fits;
what does not fit is a PlacementError with the figure and, if there is one, a change of settings that fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfplay.cluster.fit import HOST_HEADROOM, fit, gib_text
from selfplay.cluster.memory import GIB, ModelShape
from selfplay.cluster.seats import Node, Seat, Seats, deal_episodes, seats_on_gpus, seats_without_gpus
from selfplay.config import Config
from selfplay.errors import PlacementError
from selfplay.settings.serving import NodeSettings

# Episodes per free CPU above which a note warns. Most episodes wait for the policy, but test runs need a CPU.
CROWDED = 4.0
_TENSOR_PARALLEL = ("--tensor-parallel-size", "-tp")
_PIPELINE = ("--pipeline-parallel-size", "-pp")


@dataclass(frozen=True)
class Placement:
    """A plan that fits.

    ranks, servers               one seat each, in order
    episodes                     episodes in flight on each node
    rank_memory, server_memory   bytes by part on one GPU, or in one process where there are no GPUs
    rank_budget, server_budget   bytes that they may use; 0 without GPUs
    cached_tokens                tokens whose keys and values fit in one server
    notes                        sentences on what fits but may be slow or unused
    """

    nodes: tuple[Node, ...]
    ranks: tuple[Seat, ...]
    servers: tuple[Seat, ...]
    episodes: tuple[int, ...]
    shares_gpus: bool
    rank_memory: Mapping[str, int]
    rank_budget: int
    server_memory: Mapping[str, int]
    server_budget: int
    cached_tokens: int
    notes: tuple[str, ...]


def described_nodes(groups: Sequence[NodeSettings]) -> tuple[Node, ...]:
    """The nodes of the setting `cluster.nodes`."""
    kinds = [group for group in groups for _ in range(group.count)]
    return tuple(
        Node(f"node-{number}", kind.gpus, int(kind.gpu_gib * GIB), kind.cpus, int(kind.memory_gib * GIB))
        for number, kind in enumerate(kinds)
    )


def tensor_parallel(options: Sequence[str]) -> int:
    """Number of GPUs of a server, from its options. Raises PlacementError for a pipeline.

    A pipeline does not take new weights reliably while requests run.
    """
    if _option(options, _PIPELINE) > 1:
        raise PlacementError(
            "engine.options has a pipeline, which does not take new weights reliably while requests run. Use "
            "--tensor-parallel-size instead."
        )
    return _option(options, _TENSOR_PARALLEL)


def _option(options: Sequence[str], names: Sequence[str]) -> int:
    """The last value of an option that has these names; 1 without one."""
    words = [word for option in options for word in option.split("=", 1)]
    values = [value for name, value in itertools.pairwise(words) if name in names]
    try:
        return int(values[-1]) if values else 1
    except ValueError as error:
        raise PlacementError(
            f"engine.options: {names[0]} is {values[-1]!r}, not a number of GPUs."
        ) from error


def place(config: Config, shape: ModelShape, nodes: Sequence[Node], trains: bool = True) -> Placement:
    """Plan where everything runs. trains: False for an evaluation, which has no trainer ranks.

    Raises PlacementError with figure and remedy for what does not fit.
    """
    if not nodes:
        raise PlacementError(
            "no machine is described. Give cluster.nodes, or --cluster with the address of a cluster."
        )
    seats = _seats(config, tuple(nodes), config.trainer.ranks if trains else 0)
    use = fit(config, shape, seats)
    episodes = deal_episodes(seats, config.train.episodes_in_flight)
    return Placement(
        nodes=seats.nodes,
        ranks=seats.ranks,
        servers=seats.servers,
        episodes=episodes,
        shares_gpus=seats.shares_gpus,
        rank_memory=use.rank,
        rank_budget=use.rank_budget,
        server_memory=use.server,
        server_budget=use.server_budget,
        cached_tokens=use.cached_tokens,
        notes=tuple(_notes(config, seats, episodes)),
    )


def _seats(config: Config, nodes: tuple[Node, ...], ranks: int) -> Seats:
    servers = config.engine.servers if config.engine.type == "vllm" and not config.engine.urls else 0
    width = tensor_parallel(config.engine.options) if servers else 1
    if any(node.gpus for node in nodes):
        shares = config.cluster.share_gpus and servers > 0 and ranks > 0
        return seats_on_gpus(nodes, ranks, servers, width, shares)
    if width > 1:
        raise PlacementError(
            f"engine.options asks for {width} GPUs a server, and no machine has one. Leave it out."
        )
    return seats_without_gpus(nodes, ranks, servers)


def fewer(
    config: Config, shape: ModelShape, nodes: Sequence[Node], trains: bool = True
) -> tuple[Config, Placement]:
    """Placement on machines that may have become fewer, with the settings that fit.

    It takes as many servers as fit beside all ranks, else beside half of the ranks, and so on. If not even
    one rank and one server fit, it raises the PlacementError of the original settings. trains: see `place`.
    """
    refusal: PlacementError | None = None
    ranks = config.trainer.ranks
    while ranks and not ranks % config.trainer.sequence_parallel:
        for servers in range(config.engine.servers, 0, -1):
            trainer = config.trainer.model_copy(update={"ranks": ranks})
            engine = config.engine.model_copy(update={"servers": servers})
            tried = config.model_copy(update={"trainer": trainer, "engine": engine})
            try:
                return tried, place(tried, shape, nodes, trains)
            except PlacementError as error:
                refusal = refusal or error
        ranks = ranks // 2 if trains else 0
    assert refusal is not None
    raise refusal


def _notes(config: Config, seats: Seats, episodes: Sequence[int]) -> Iterator[str]:
    """Sentences on idle GPUs, crowded CPUs, main memory, and settings that use one machine only."""
    total = sum(node.gpus for node in seats.nodes)
    used = {(seat.node, gpu) for seat in (*seats.ranks, *seats.servers) for gpu in seat.gpus}
    if total > len(used):
        more = "engine.servers or trainer.ranks" if seats.ranks else "engine.servers"
        yield f"{total - len(used)} GPU(s) stay idle. Raise {more}."
    free = seats.free_cpus
    worst = max(range(len(seats.nodes)), key=lambda node: episodes[node] / free[node])
    if episodes[worst] > CROWDED * free[worst]:
        yield (
            f"{seats.nodes[worst].name}: {episodes[worst]} episodes in flight for {free[worst]} free "
            "CPU(s); test runs will wait for each other. Lower train.episodes_in_flight, or add nodes."
        )
    limit = config.sandbox.memory_mb << 20
    for index, node in enumerate(seats.nodes):
        if episodes[index] * limit > node.memory_bytes * HOST_HEADROOM:
            yield (
                f"{node.name}: {episodes[index]} sandboxes may use {gib_text(episodes[index] * limit)} "
                f"(sandbox.memory_mb each), and it has {gib_text(node.memory_bytes)}. It is enough as long "
                "as few sandboxes reach their limit."
            )
            break
    if config.trainer.type == "torch" and len(seats.nodes) > 1 and seats.ranks:
        yield "trainer.type = 'torch' is one process on the first node; trainer.type = 'deepspeed' uses more."
    if config.engine.type != "vllm":
        yield (
            f"engine.type = {config.engine.type!r} generates in the run's own process; engine.type = 'vllm' "
            "uses servers."
        )
