"""Rollout servers as Ray actors: the run's side of a `ServerActor`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfplay.cluster.ray_actors import ServerActor
from selfplay.cluster.ray_calls import ANSWER_S, END_S, START_S, address_of, first_line, on_node
from selfplay.cluster.seats import Node
from selfplay.engines.vllm_client import Client
from selfplay.engines.vllm_launch import Launch
from selfplay.errors import EngineError, SelfplayError, ServerLost

_SEND_S = 120.0  # for one piece of a file
_PIECE_BYTES = 64 << 20


class RayServer:
    """Implements `VllmServer`: a server on a node of the cluster. Raises EngineError if it does not start."""

    def __init__(
        self,
        name: str,
        launch: Launch,
        is_cancelled: Callable[[], bool],
        node: Node,
        gpus: float,
        is_here: bool,
    ) -> None:
        """is_cancelled: True gives up the start. is_here: the node is this machine."""
        import ray

        self.name = name
        self._is_running = True
        self._node = node
        launch = replace(launch, host=address_of(node))
        groups = {"calls": 1, "control": 4}
        actor = on_node(
            node.key, ray.remote(concurrency_groups=groups)(ServerActor), num_cpus=0, num_gpus=gpus
        )
        self._actor = actor.remote(name, launch)
        try:
            url = self._start(launch, is_cancelled)
        except BaseException:
            self.close()
            raise
        connections = launch.max_batch + 8
        self.client: Client
        if is_here:
            self.client = Client(name, url, connections)
        else:
            self.client = _RemoteClient(name, url, connections, self._actor)
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True)
        self._watcher.start()

    def _start(self, launch: Launch, is_cancelled: Callable[[], bool]) -> str:
        """The URL of the started server."""
        import ray

        started = self._actor.start.options(concurrency_group="calls").remote()
        end = time.monotonic() + launch.start_timeout_s + START_S
        while time.monotonic() < end and not is_cancelled():
            try:
                return str(ray.get(started, timeout=1.0))
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, SelfplayError):
                    raise error.cause from error
                raise EngineError(f"{self.name} on {self._node.name}: {first_line(error)}") from error
            except ray.exceptions.RayError as error:
                raise EngineError(
                    f"{self.name} was lost with its actor on {self._node.name}: {first_line(error)}"
                ) from error
        if is_cancelled():
            raise EngineError(f"{self.name} was closed while it started.")
        raise EngineError(
            f"{self.name} was not started on {self._node.name} within {START_S:g} s: other work uses the "
            "resources that it needs."
        )

    def _watch(self) -> None:
        """Keep `is_running` up to date.

        The engine reads it every second, so it must not wait for a silent node.
        """
        import ray

        with contextlib.suppress(Exception):  # any error of Ray means that the actor is lost
            while ray.get(self._actor.is_running.options(concurrency_group="control").remote()):
                pass
        self._is_running = False

    @property
    def is_running(self) -> bool:
        return self._is_running

    def log_tail(self) -> str:
        import ray

        try:
            return str(
                ray.get(self._actor.log_tail.options(concurrency_group="control").remote(), timeout=ANSWER_S)
            )
        except ray.exceptions.RayError:
            return f"it was lost with its actor on {self._node.name}"

    def close(self) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._actor.close.options(concurrency_group="control").remote(), timeout=END_S)
        ray.kill(self._actor)


class _RemoteClient(Client):
    """HTTP to a server on another node. `bring` copies files there, through Ray's object store."""

    def __init__(self, name: str, url: str, connections: int, actor: Any) -> None:
        super().__init__(name, url, connections)
        self._actor = actor
        self._sent: dict[Path, Path] = {}
        self._number = 0

    def bring(self, folder: Path) -> Path:
        import ray

        if folder in self._sent:
            return self._sent[folder]
        self._number += 1  # so that a second attempt sends everything again
        there = ""
        try:
            for file in sorted(folder.iterdir()):
                with file.open("rb") as opened:
                    while data := opened.read(_PIECE_BYTES):
                        take = self._actor.take.options(concurrency_group="calls")
                        there = ray.get(take.remote(str(self._number), file.name, data), timeout=_SEND_S)
        except ray.exceptions.RayError as error:
            raise ServerLost(
                f"{self.name} ({self.url}) did not take the weights: {first_line(error)}"
            ) from error
        self._sent = {folder: Path(there)}
        return Path(there)
