"""Trainer ranks as Ray actors: the run's side of a `RankActor`.

Deadlines, and which rank is to blame for a failure, are in `training.ranks`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from selfplay import parts
from selfplay.cluster.placement import Placement
from selfplay.cluster.ray_actors import RankActor
from selfplay.cluster.ray_calls import ANSWER_S, END_S, START_S, address_of, first_line, on_node
from selfplay.cluster.seats import Node
from selfplay.training.ranks.link import Hear


class RayLinks:
    """Implements `RankLinks`: each rank is an actor on the node of its seat."""

    def __init__(self, host: str, placement: Placement) -> None:
        """host: address at which the ranks reach this process."""
        self.host = host
        self._placement = placement
        self._neighbours = Counter(seat.node for seat in placement.ranks)

    def open(self, number: int, log: Path, hear: Hear) -> RayLink:
        seat = self._placement.ranks[number]
        gpus = len(seat.gpus) * (0.5 if self._placement.shares_gpus else 1)
        return RayLink(self._placement.nodes[seat.node], self._neighbours[seat.node], gpus, log, hear)


class RayLink:
    """Implements `RankLink`. If Ray loses the actor, Ray's message is reported as the end of the rank."""

    def __init__(self, node: Node, neighbours: int, gpus: float, log: Path, hear: Hear) -> None:
        """neighbours: number of ranks on the node. gpus: share of a GPU."""
        import ray

        self.where = f"{node.name}:{log}"
        self.seat: tuple[int, ...] = (0, neighbours)  # Ray shows the rank only its own GPU
        self._node, self._hear = node, hear
        self._lost = ""
        # A group with one thread keeps the order of its calls: "calls" of what is sent, "messages" of what is
        # heard.
        groups = {"calls": 1, "messages": 1, "control": 4}
        actor = on_node(node.key, ray.remote(concurrency_groups=groups)(RankActor), num_cpus=0, num_gpus=gpus)
        self._actor = actor.remote(str(log), address_of(node), str(parts.parts_folder()))
        self._reader = threading.Thread(target=self._read, name=f"{log.stem}-reader", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return int(self._ask("pid") or 0)

    def send(self, message: bytes) -> None:
        self._actor.send.options(concurrency_group="calls").remote(message)

    def _read(self) -> None:
        import ray

        try:
            ray.get(self._actor.pid.options(concurrency_group="control").remote(), timeout=START_S)
            while True:
                for message in ray.get(self._actor.receive.options(concurrency_group="messages").remote()):
                    if message is None:
                        self._lost = self._ask("ended")
                        return
                    self._hear(message)
        except ray.exceptions.GetTimeoutError:
            self._lost = (
                f"was not started on {self._node.name} within {START_S:g} s: other work uses the resources "
                "that it needs"
            )
        except Exception as error:  # any error of Ray means that the rank cannot be heard any more
            self._note_loss(error)
        finally:
            self._hear(None)

    def _note_loss(self, error: BaseException) -> None:
        self._lost = self._lost or f"was lost with its actor on {self._node.name}: {first_line(error)}"

    def _ask(self, method: str) -> Any:
        """The actor's answer; "" without one."""
        import ray

        try:
            return ray.get(
                getattr(self._actor, method).options(concurrency_group="control").remote(), timeout=ANSWER_S
            )
        except ray.exceptions.RayActorError as error:
            self._note_loss(error)
            return self._lost if method == "ended" else ""
        except ray.exceptions.RayError:
            return ""

    def ended(self) -> str:
        return self._lost or str(self._ask("ended"))

    def tail(self) -> str:
        return str(self._ask("tail"))

    def kill(self) -> None:
        self._actor.kill.options(concurrency_group="control").remote()

    def wait(self) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._actor.wait.options(concurrency_group="control").remote(), timeout=END_S)
        ray.kill(self._actor)
        self._reader.join(ANSWER_S)
