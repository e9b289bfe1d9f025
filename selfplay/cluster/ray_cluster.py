"""A run's hold on a Ray cluster: what machines it has, and trainer ranks and rollout servers there as actors.

Leaves who sits where to `placement`, what runs there to `ray_actors`, deadlines and blame to `training.ranks`. Invariant: nothing that
was placed outlives this process, since Ray ends the actors of a driver that is gone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.cluster.machines import this_machine
from selfplay.cluster.placement import Node, Placement
from selfplay.cluster.ray_actors import RankActor, ServerActor
from selfplay.config import Config
from selfplay.engines.vllm_client import Client
from selfplay.engines.vllm_launch import Launch
from selfplay.errors import EngineError, PrerequisiteError, SelfplayError, ServerLost
from selfplay.training.ranks.link import Hear

if TYPE_CHECKING:
    from selfplay.cluster.ray_hosts import ClusterHosts
    from selfplay.orchestrator.hosts import LocalHost

INSTALL = "pip install 'selfplay[cluster]'"
_CONNECT_S = 5.0
_PLACE_S = 120.0  # for a node to start an actor
_ANSWER_S = 10.0
_END_S = 20.0
_SEND_S = 120.0  # for one piece of a file
_PIECE_BYTES = 64 << 20
_NAMED = re.compile(r"[\w.]*(Error|Exception)\b.*: \S")


def check_ray() -> None:
    """Raises PrerequisiteError with the command that brings Ray."""
    if importlib.util.find_spec("ray") is None:
        raise PrerequisiteError(
            f"--cluster needs Ray, which is not installed here: {INSTALL}. Without --cluster a run uses this machine alone."
        )


class Cluster:
    """Connected while it is open; one a process. Raises PrerequisiteError for an address where no cluster answers, with its reason."""

    def __init__(self, address: str) -> None:
        check_ray()
        import ray

        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="selfplay")
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise _unreachable(address, str(error).strip().partition("\n")[0]) from error
        self.host: str = ray.util.get_node_ip_address()
        self.key: str = ray.get_runtime_context().get_node_id()

    def nodes(self) -> tuple[Node, ...]:
        """The machines that are there now, as each describes itself, this one first.

        Raises PrerequisiteError when one cannot run selfplay.
        """
        import ray

        alive = sorted(
            (told for told in ray.nodes() if told["Alive"]),
            key=lambda told: (told["NodeID"] != self.key, told["NodeID"]),
        )
        asked = [
            _on(told["NodeID"], ray.remote(num_cpus=0)(this_machine)).remote(told["NodeID"]) for told in alive
        ]
        found = []
        for told, answer in zip(alive, asked, strict=True):
            try:
                found.append(_as_offered(ray.get(answer, timeout=_PLACE_S), told["Resources"]))
            except ray.exceptions.RayTaskError as error:
                raise PrerequisiteError(
                    f"the node {told['NodeManagerHostname']} of the cluster cannot run selfplay: {_first_line(error)} "
                    "Install the same selfplay and Ray on every node."
                ) from error
            except ray.exceptions.RayError:
                continue  # it went away meanwhile, which Ray notices late
        return tuple(found)

    def places(self, placement: Placement) -> Places:
        """What of this placement runs elsewhere."""
        return Places(placement, self.host, self.key)

    def close(self) -> None:
        import ray

        ray.shutdown()


class Places:
    """Where the parts of one placement run. `links` is for the trainer's ranks; on_gpus: whether the machines have any."""

    def __init__(self, placement: Placement, host: str, key: str) -> None:
        """host, key: this machine's address and its name on the cluster."""
        self._placement, self._key = placement, key
        self.links = RayLinks(host, placement)
        self.on_gpus = any(node.gpus for node in placement.nodes)
        self._hosts: ClusterHosts | None = None

    def open_server(self, name: str, launch: Launch, is_cancelled: Callable[[], bool]) -> RayServer:
        """A rollout server, `vllm-0` in the placement's first seat. One that is started again comes to the same node."""
        seat = self._placement.servers[int(name.rpartition("-")[2])]
        node = self._placement.nodes[seat.node]
        gpus = len(seat.gpus) * (0.5 if self._placement.shares_gpus else 1)
        return RayServer(name, launch, is_cancelled, node, gpus, node.key == self._key)

    def open_hosts(
        self, config: Config, lines: str, model: str, local: LocalHost, tell: Callable[[str], None]
    ) -> ClusterHosts:
        """Episode hosts on every node of the placement; `local` is this machine's, with the engine of all. lines: the repository list."""
        import ray

        from selfplay.cluster.ray_hosts import ClusterHosts, HostActor

        groups = {"calls": 1, "messages": 1}
        actors, share = [], 0
        for node, episodes in zip(self._placement.nodes, self._placement.episodes, strict=True):
            if node.key == self._key:
                share = episodes
            elif episodes:
                made = _on(node.key, ray.remote(concurrency_groups=groups)(HostActor), num_cpus=0)
                actors.append((made.remote(config, lines, model), node, episodes))
        self._hosts = ClusterHosts(actors, share, local, tell)
        return self._hosts

    def close(self) -> None:
        """End the episode hosts; ranks and servers are ended by who holds them."""
        if self._hosts is not None:
            self._hosts.close()


def _as_offered(node: Node, resources: dict[str, float]) -> Node:
    """What the node offers to Ray, which may be less than what it has."""
    gpus = int(resources.get("GPU", 0))
    return Node(
        node.name,
        gpus,
        node.gpu_bytes if gpus else 0,
        int(resources.get("CPU", 0)),
        node.memory_bytes,
        node.key,
    )


def _check_reachable(address: str) -> None:
    """Ray waits long and says little where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise PrerequisiteError(
            f"--cluster {address!r} is neither 'auto' nor an address, for instance 10.0.0.1:6379, as `ray start --head` tells it."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> PrerequisiteError:
    return PrerequisiteError(
        f"no Ray cluster answers at --cluster {address}: {reason}. Start one with `ray start --head --port=6379` on one machine and "
        "`ray start --address=HEAD:6379` on the others, and give HEAD:6379 (or auto, on one of them)."
    )


def _first_line(error: BaseException) -> str:
    """What happened, of an error that may carry a remote traceback: there, the last line that names an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = [line for line in lines if _NAMED.match(line)]
    told = (named or lines[:1])[-1]
    return told if told.endswith((".", "!")) else f"{told}."


def _on(node: str, remote: Any, **options: Any) -> Any:
    """To run on this node and no other. CPUs are the placement's to deal out; Ray keeps GPUs apart."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False), **options)


def address_of(node: Node) -> str:
    """As other nodes reach it; "" where it is gone."""
    import ray

    return next((str(told["NodeManagerAddress"]) for told in ray.nodes() if told["NodeID"] == node.key), "")


class RayLinks:
    """See `RankLinks`: each rank is an actor on the node of its seat."""

    def __init__(self, host: str, placement: Placement) -> None:
        self.host = host
        self._placement = placement
        self._neighbours = Counter(seat.node for seat in placement.ranks)

    def open(self, number: int, log: Path, hear: Hear) -> RayLink:
        seat = self._placement.ranks[number]
        gpus = len(seat.gpus) * (0.5 if self._placement.shares_gpus else 1)
        return RayLink(self._placement.nodes[seat.node], self._neighbours[seat.node], gpus, log, hear)


class RayLink:
    """See `RankLink`. The actor's other half: what Ray says of a lost actor is how the rank ended."""

    def __init__(self, node: Node, neighbours: int, gpus: float, log: Path, hear: Hear) -> None:
        import ray

        self.where = f"{node.name}:{log}"
        self.seat: tuple[int, ...] = (0, neighbours)  # Ray shows it its own GPU alone
        self._node, self._hear = node, hear
        self._lost = ""
        self._is_closing = False
        groups = {
            "calls": 1,
            "messages": 1,
            "control": 4,
        }  # one thread each keeps the order of what is sent and of what is heard
        made = _on(node.key, ray.remote(concurrency_groups=groups)(RankActor), num_cpus=0, num_gpus=gpus)
        self._actor = made.remote(str(log), address_of(node))
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
            ray.get(self._actor.pid.options(concurrency_group="control").remote(), timeout=_PLACE_S)
            while True:
                for message in ray.get(self._actor.receive.options(concurrency_group="messages").remote()):
                    if message is None:
                        self._lost = self._ask("ended")
                        return
                    self._hear(message)
        except ray.exceptions.GetTimeoutError:
            self._lost = f"found no place on {self._node.name} within {_PLACE_S:g} s: what it needs is taken by other work"
        except Exception as error:  # whatever Ray raises: the rank cannot be heard any more
            self._lost = self._lost or f"was lost with its actor on {self._node.name}: {_first_line(error)}"
        finally:
            self._hear(None)

    def _ask(self, method: str) -> Any:
        """The actor's answer; "" where there is none."""
        import ray

        try:
            return ray.get(
                getattr(self._actor, method).options(concurrency_group="control").remote(), timeout=_ANSWER_S
            )
        except ray.exceptions.RayActorError as error:
            self._lost = self._lost or f"was lost with its actor on {self._node.name}: {_first_line(error)}"
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
            ray.get(self._actor.wait.options(concurrency_group="control").remote(), timeout=_END_S)
        ray.kill(self._actor)
        self._reader.join(_ANSWER_S)


class RayServer:
    """See `VllmServer`: the other half of a `ServerActor`. Raises EngineError when it does not come up."""

    def __init__(
        self,
        name: str,
        launch: Launch,
        is_cancelled: Callable[[], bool],
        node: Node,
        gpus: float,
        is_here: bool,
    ) -> None:
        import ray

        self.name = name
        self._is_running = True
        self._node = node
        launch = replace(launch, host=address_of(node))
        groups = {"calls": 1, "control": 4}
        made = _on(node.key, ray.remote(concurrency_groups=groups)(ServerActor), num_cpus=0, num_gpus=gpus)
        self._actor = made.remote(name, launch)
        try:
            url = self._start(launch, is_cancelled)
        except BaseException:
            self.close()
            raise
        self.client: Client = (
            Client(name, url, launch.max_batch + 8)
            if is_here
            else _FarClient(name, url, launch.max_batch + 8, self._actor)
        )
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True)
        self._watcher.start()

    def _start(self, launch: Launch, is_cancelled: Callable[[], bool]) -> str:
        import ray

        started = self._actor.start.options(concurrency_group="calls").remote()
        end = time.monotonic() + launch.start_timeout_s + _PLACE_S
        while time.monotonic() < end and not is_cancelled():
            try:
                return str(ray.get(started, timeout=1.0))
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, SelfplayError):
                    raise error.cause from error
                raise EngineError(f"{self.name} on {self._node.name}: {_first_line(error)}") from error
            except ray.exceptions.RayError as error:
                raise EngineError(
                    f"{self.name} was lost with its actor on {self._node.name}: {_first_line(error)}"
                ) from error
        raise EngineError(
            f"{self.name} was closed while it started."
            if is_cancelled()
            else f"{self.name} found no place on {self._node.name} within {_PLACE_S:g} s: what it needs is taken by other work."
        )

    def _watch(self) -> None:
        """The engine asks every second, and may not wait for a node that does not answer."""
        import ray

        try:
            while ray.get(self._actor.is_running.options(concurrency_group="control").remote()):
                pass
        except Exception:  # whatever Ray raises: the actor is gone
            pass
        self._is_running = False

    @property
    def is_running(self) -> bool:
        return self._is_running

    def log_tail(self) -> str:
        import ray

        try:
            return str(
                ray.get(self._actor.log_tail.options(concurrency_group="control").remote(), timeout=_ANSWER_S)
            )
        except ray.exceptions.RayError:
            return f"it was lost with its actor on {self._node.name}"

    def close(self) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._actor.close.options(concurrency_group="control").remote(), timeout=_END_S)
        ray.kill(self._actor)


class _FarClient(Client):
    """Of a server on another node: what it is to read is sent there first, through Ray's object store."""

    def __init__(self, name: str, url: str, connections: int, actor: Any) -> None:
        super().__init__(name, url, connections)
        self._actor = actor
        self._sent: dict[Path, Path] = {}
        self._number = 0

    def bring(self, folder: Path) -> Path:
        import ray

        if folder in self._sent:
            return self._sent[folder]
        self._number += 1  # a second try begins anew
        there = ""
        try:
            for file in sorted(folder.iterdir()):
                with file.open("rb") as opened:
                    while data := opened.read(_PIECE_BYTES):
                        take = self._actor.take.options(concurrency_group="calls")
                        there = ray.get(take.remote(str(self._number), file.name, data), timeout=_SEND_S)
        except ray.exceptions.RayError as error:
            raise ServerLost(
                f"{self.name} ({self.url}) did not take the weights: {_first_line(error)}"
            ) from error
        self._sent = {folder: Path(there)}
        return Path(there)
