"""What `train` and `eval` have in common on a Ray cluster: the connection, and going on after a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from selfplay.cluster.machines import policy_shape
from selfplay.cluster.placement import fewer, place
from selfplay.config import Config
from selfplay.errors import ServerLost, TrainerError

if TYPE_CHECKING:
    from selfplay.cluster.ray_cluster import Cluster, Places

Result = TypeVar("Result")


@contextmanager
def on_cluster(address: str | None, config: Config, trains: bool = True) -> Iterator[Cluster | None]:
    """A connection to the cluster, on which the run fits; None without an address.

    trains: False for an evaluation. Raises PrerequisiteError or PlacementError.
    """
    if address is None:
        yield None
        return
    from selfplay.cluster.ray_cluster import Cluster

    cluster = Cluster(address)
    try:
        place(config, policy_shape(config), cluster.nodes(), trains)
        yield cluster
    finally:
        cluster.close()


def model_on_cluster(model: str) -> str:
    """The policy's folder or id, for Ray's actors. They work in another folder."""
    return str(Path(model).absolute()) if Path(model).exists() else model


@dataclass(frozen=True)
class Done:
    """How far a run is. number: it grows. words: for a person, from that number."""

    number: Callable[[], int]
    words: Callable[[int], str]


def play_on_what_is_left(
    cluster: Cluster,
    config: Config,
    play: Callable[[Config, Places], Result],
    done: Done,
    console: Console,
    trains: bool = True,
) -> Result:
    """Call `play` with the settings that fit the cluster as it is, and again after each loss.

    A loss is a trainer rank or the last rollout server. Raises it after more than `cluster.restarts` without
    progress between them.
    """
    shape = policy_shape(config)
    failures, reached = 0, -1
    while True:
        placed, placement = fewer(config, shape, cluster.nodes(), trains)
        places = cluster.places(placement)
        try:
            return play(placed, places)
        except (TrainerError, ServerLost) as error:
            now = done.number()
            failures, reached = failures + 1 if now == reached else 1, now
            if failures > config.cluster.restarts:
                raise
            console.print(
                f"{error}\nGoing on from {done.words(now)} on what is left of the cluster.",
                markup=False,
                highlight=False,
            )
        finally:
            places.close()
