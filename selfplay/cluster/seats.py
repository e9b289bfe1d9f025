"""Nodes, and the seats that trainer ranks, rollout servers and episodes get on them. Pure.

Memory is in `fit`. Invariant: a rank has one GPU, and all GPUs of a server are on one node.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfplay.errors import PlacementError


@dataclass(frozen=True)
class Node:
    """One machine.

    gpu_bytes     memory of each GPU
    memory_bytes  main memory
    key           id on a Ray cluster; "" if the node is only described
    """

    name: str
    gpus: int
    gpu_bytes: int
    cpus: int
    memory_bytes: int
    key: str = ""


@dataclass(frozen=True)
class Seat:
    """A position on a node.

    node  index in the placement's nodes
    gpus  indices of its GPUs on that node
    """

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Seats:
    """The seats of ranks and servers, in order. shares_gpus: a rank and a server may share a GPU."""

    nodes: tuple[Node, ...]
    ranks: tuple[Seat, ...]
    servers: tuple[Seat, ...]
    shares_gpus: bool = False

    @property
    def on_gpus(self) -> bool:
        return any(node.gpus for node in self.nodes)

    @property
    def free_cpus(self) -> list[int]:
        """CPUs of each node that episodes may use, at least 1.

        A rank takes one CPU. A server takes one for HTTP and one for each GPU.
        """
        free = [node.cpus for node in self.nodes]
        for seat in self.ranks:
            free[seat.node] -= 1
        for seat in self.servers:
            free[seat.node] -= 1 + len(seat.gpus)
        return [max(1, cpus) for cpus in free]


def seats_on_gpus(nodes: tuple[Node, ...], ranks: int, servers: int, width: int, shares: bool) -> Seats:
    """Seats for ranks of one GPU and servers of `width` GPUs. shares: a rank and a server may share a GPU.

    Raises PlacementError if there are too few GPUs.
    """
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
        sharing = "" if shares else ", or cluster.share_gpus = true if a GPU can hold both"
        beside = f"{ranks} trainer rank(s) and " if ranks else ""
        fewer_ranks = f", or fewer trainer.ranks{sharing}" if ranks else ""
        raise PlacementError(
            f"{beside}{servers} rollout server(s) of {width} GPU(s) need "
            f"{ranks + servers * width} GPUs, and each server needs its GPUs on one node; {has}, and "
            f"{fitting} server(s) fit. Set {remedy}{fewer_ranks}."
        )
    return Seats(nodes, rank_seats, tuple(server_seats), shares)


def _take(free: list[list[int]], count: int) -> tuple[Seat, ...]:
    """Take `count` GPUs out of `free`, a seat each, on as few nodes as possible.

    Whole nodes come first. The rest goes to the node where it leaves the fewest GPUs over.
    """
    seats: list[Seat] = []
    while len(seats) < count:
        missing = count - len(seats)
        enough = [node for node, gpus in enumerate(free) if len(gpus) >= missing]
        if enough:
            node = min(enough, key=lambda n: (len(free[n]), n))
        else:
            node = max(range(len(free)), key=lambda n: (len(free[n]), -n))
        taken = free[node][:missing]
        del free[node][:missing]
        seats += [Seat(node, (gpu,)) for gpu in taken]
    return tuple(seats)


def seats_without_gpus(nodes: tuple[Node, ...], ranks: int, servers: int) -> Seats:
    """Seats for ranks and servers, each kind dealt round the nodes."""
    return Seats(nodes, _deal(len(nodes), ranks), _deal(len(nodes), servers))


def _deal(nodes: int, count: int) -> tuple[Seat, ...]:
    return tuple(Seat(number % nodes) for number in range(count))


def deal_episodes(seats: Seats, count: int) -> tuple[int, ...]:
    """Episodes in flight on each node: `count` in proportion to free CPUs, by largest remainder."""
    free = seats.free_cpus
    exact = [count * cpus / sum(free) for cpus in free]
    dealt = [int(share) for share in exact]
    by_remainder = sorted(range(len(free)), key=lambda node: (dealt[node] - exact[node], node))
    for node in by_remainder[: count - sum(dealt)]:
        dealt[node] += 1
    return tuple(dealt)
