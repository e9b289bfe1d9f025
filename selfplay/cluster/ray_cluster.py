"""A run's connection to a Ray cluster: the cluster's nodes, and ranks, servers and episode hosts on them.

What runs where is decided in `placement`; what runs on a node is in `ray_actors` and `ray_hosts`. Invariant:
nothing that was started here outlives this process, since Ray ends the actors of a driver that is gone.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from selfplay import DISTRIBUTION, parts
from selfplay.cluster.machines import this_machine
from selfplay.cluster.placement import Placement
from selfplay.cluster.ray_calls import START_S, first_line, on_node
from selfplay.cluster.ray_ranks import RayLinks
from selfplay.cluster.ray_servers import RayServer
from selfplay.cluster.seats import Node
from selfplay.config import Config
from selfplay.engines.vllm_launch import Launch
from selfplay.errors import PrerequisiteError

if TYPE_CHECKING:
    from selfplay.agent.local_host import LocalHost
    from selfplay.cluster.ray_hosts import ClusterHosts
    from selfplay.repositories.prepare import EnvironmentSource

INSTALL = f"pip install '{DISTRIBUTION}[cluster]'"
_CONNECT_S = 5.0


def check_ray() -> None:
    """Raises PrerequisiteError with the command that installs Ray."""
    if importlib.util.find_spec("ray") is None:
        raise PrerequisiteError(
            f"--cluster needs Ray, which is not installed here: {INSTALL}. Without --cluster a run uses "
            "only this machine."
        )


class Cluster:
    """A connection to a Ray cluster, from creation until `close`. A process can have one.

    Raises PrerequisiteError, with the reason, if no cluster answers at the address.
    """

    def __init__(self, address: str) -> None:
        """address: "auto" or HOST:PORT."""
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
        """The nodes that are alive now, this machine first. Each node describes itself.

        Raises PrerequisiteError if a node cannot run selfplay.
        """
        import ray

        alive = sorted(
            (entry for entry in ray.nodes() if entry["Alive"]),
            key=lambda entry: (entry["NodeID"] != self.key, entry["NodeID"]),
        )
        answers = [
            on_node(entry["NodeID"], ray.remote(num_cpus=0)(this_machine)).remote(entry["NodeID"])
            for entry in alive
        ]
        found = []
        for entry, answer in zip(alive, answers, strict=True):
            try:
                found.append(_as_offered(ray.get(answer, timeout=START_S), entry["Resources"]))
            except ray.exceptions.RayTaskError as error:
                raise PrerequisiteError(
                    f"the node {entry['NodeManagerHostname']} of the cluster cannot run selfplay: "
                    f"{first_line(error)} Install the same selfplay and Ray on every node."
                ) from error
            except ray.exceptions.RayError:
                continue  # the node was lost meanwhile; Ray reports that late
        return tuple(found)

    def places(self, placement: Placement) -> Places:
        """What starts the parts of this placement on their nodes."""
        return Places(placement, self.host, self.key)

    def close(self) -> None:
        import ray

        ray.shutdown()


class Places:
    """Starts the parts of one placement on their nodes.

    links    starts the trainer's ranks
    on_gpus  True if any node has GPUs
    """

    def __init__(self, placement: Placement, host: str, key: str) -> None:
        """host, key: this machine's address and its id on the cluster."""
        self._placement, self._key = placement, key
        self.links = RayLinks(host, placement)
        self.on_gpus = any(node.gpus for node in placement.nodes)
        self._hosts: ClusterHosts | None = None

    def open_server(self, name: str, launch: Launch, is_cancelled: Callable[[], bool]) -> RayServer:
        """Start a rollout server: `vllm-0` in the first seat, and so on.

        A restarted server keeps its node.
        """
        seat = self._placement.servers[int(name.rpartition("-")[2])]
        node = self._placement.nodes[seat.node]
        gpus = len(seat.gpus) * (0.5 if self._placement.shares_gpus else 1)
        return RayServer(name, launch, is_cancelled, node, gpus, node.key == self._key)

    def open_hosts(
        self,
        config: Config,
        source: EnvironmentSource,
        model: str,
        local: LocalHost,
        report: Callable[[str], None],
    ) -> ClusterHosts:
        """Start episode hosts on every node that the placement gives episodes.

        source: what they prepare. local: the host of this machine; its engine serves all of them.
        report: called with a line when a node cannot play episodes or is lost.
        """
        import ray

        from selfplay.cluster.ray_hosts import ClusterHosts, HostActor

        groups = {"calls": 1, "messages": 1}
        actors, share = [], 0
        for node, episodes in zip(self._placement.nodes, self._placement.episodes, strict=True):
            if node.key == self._key:
                share = episodes
            elif episodes:
                actor = on_node(node.key, ray.remote(concurrency_groups=groups)(HostActor), num_cpus=0)
                started = actor.remote(config, source, model, str(parts.parts_folder()), local.secret)
                actors.append((started, node, episodes))
        self._hosts = ClusterHosts(actors, share, local, report)
        return self._hosts

    def close(self) -> None:
        """End the episode hosts. Whoever opened ranks and servers ends these."""
        if self._hosts is not None:
            self._hosts.close()


def _as_offered(node: Node, resources: dict[str, float]) -> Node:
    """The node with the GPUs and CPUs that it offers to Ray, which may be fewer than it has."""
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
    """Raises PrerequisiteError within seconds if nothing listens there.

    Ray itself waits long and says little.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise PrerequisiteError(
            f"--cluster {address!r} is neither 'auto' nor an address, for instance 10.0.0.1:6379. `ray "
            "start --head` prints the address."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> PrerequisiteError:
    return PrerequisiteError(
        f"no Ray cluster answers at --cluster {address}: {reason}. Start one with `ray start --head "
        "--port=6379` on one machine and `ray start --address=HEAD:6379` on the others. Then give "
        "HEAD:6379, or auto on one of them."
    )
