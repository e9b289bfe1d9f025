"""Prints a placement: a table of the nodes with what runs on each, and a table of the memory on one GPU.

The placement itself is computed in `cluster.placement`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from selfplay.cluster.memory import GIB, ModelShape
from selfplay.cluster.placement import Placement
from selfplay.cluster.seats import Node, Seat


def show_placement(placement: Placement, shape: ModelShape, console: Console) -> None:
    """Print the size of the model, both tables and the notes of the placement."""
    size = (
        f"{shape.parameters / 1e9:.2f} billion"
        if shape.parameters >= 1e9
        else f"{shape.parameters / 1e6:.1f} million"
    )
    console.print(f"[bold]{shape.name}[/bold]: {size} parameters", highlight=False)
    console.print(_places(placement))
    console.print(_memory(placement))
    if placement.cached_tokens:
        console.print(
            f"One server keeps {placement.cached_tokens:,} tokens of keys and values.", highlight=False
        )
    for note in placement.notes:
        console.print(f"[yellow]![/yellow] {note}", highlight=False)


def _places(placement: Placement) -> Table:
    table = Table(title="Placement")
    for column in ("nodes", "GPUs", "CPUs", "trainer ranks", "rollout servers", "episodes"):
        table.add_column(column, justify="left" if column == "nodes" else "right")

    def like(number: int) -> tuple[object, ...]:
        """The key of a node's row: neighbouring nodes with equal keys share one row."""
        node = placement.nodes[number]
        seated = tuple(
            sum(seat.node == number for seat in seats) for seats in (placement.ranks, placement.servers)
        )
        return (node.gpus, node.gpu_bytes, node.cpus, *seated)

    for _, numbers in itertools.groupby(range(len(placement.nodes)), key=like):
        alike = list(numbers)
        first = placement.nodes[alike[0]]
        gpus = f"{first.gpus} × {first.gpu_bytes / GIB:.0f} GiB" if first.gpus else "none"
        table.add_row(
            _names([placement.nodes[number] for number in alike]),
            gpus,
            str(first.cpus),
            _span(placement.ranks, alike),
            _span(placement.servers, alike),
            f"{sum(placement.episodes[number] for number in alike)}",
        )
    return table


def _names(nodes: Sequence[Node]) -> str:
    return nodes[0].name if len(nodes) == 1 else f"{nodes[0].name} … {nodes[-1].name} ({len(nodes)})"


def _span(seats: Sequence[Seat], nodes: Sequence[int]) -> str:
    """The first and last number of the seats on these nodes, and the GPUs of each if it has several."""
    here = [number for number, seat in enumerate(seats) if seat.node in nodes]
    if not here:
        return "–"
    width = len(seats[here[0]].gpus)
    each = f" × {width} GPUs" if width > 1 else ""
    return f"{here[0]}{each}" if len(here) == 1 else f"{here[0]}–{here[-1]}{each}"


def _memory(placement: Placement) -> Table:
    table = Table(
        title="Memory, GiB"
        + (" on one GPU" if any(node.gpus for node in placement.nodes) else " in one process")
    )
    table.add_column("")
    table.add_column("trainer rank", justify="right")
    if placement.server_memory:
        table.add_column("rollout server", justify="right")
    both = (
        [placement.rank_memory, placement.server_memory]
        if placement.server_memory
        else [placement.rank_memory]
    )
    for part in dict.fromkeys([*placement.rank_memory, *placement.server_memory]):
        table.add_row(part, *(f"{parts[part] / GIB:.1f}" if part in parts else "" for parts in both))
    table.add_section()
    table.add_row("together", *(f"{sum(parts.values()) / GIB:.1f}" for parts in both))
    if placement.rank_budget:
        table.add_row(
            "may take",
            *(
                f"{budget / GIB:.1f}"
                for budget in (placement.rank_budget, placement.server_budget)[: len(both)]
            ),
        )
    return table
