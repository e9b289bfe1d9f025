"""Where parts of a run live besides this process.

`cluster.ray_cluster.Places` is one; a run on one machine has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from selfplay.config import Config

if TYPE_CHECKING:
    from selfplay.agent.hosts import EpisodeHost
    from selfplay.agent.local_host import LocalHost
    from selfplay.engines.vllm_launch import Launch
    from selfplay.engines.vllm_servers import VllmServer
    from selfplay.repositories.prepare import EnvironmentSource
    from selfplay.training.ranks.link import RankLinks


class Places(Protocol):
    """links: starts the trainer's ranks. on_gpus: True if any machine has GPUs."""

    @property
    def links(self) -> RankLinks: ...

    @property
    def on_gpus(self) -> bool: ...

    def open_server(self, name: str, launch: Launch, is_cancelled: Callable[[], bool]) -> VllmServer:
        """Start a rollout server."""
        ...

    def open_hosts(
        self,
        config: Config,
        source: EnvironmentSource,
        model: str,
        local: LocalHost,
        report: Callable[[str], None],
    ) -> EpisodeHost:
        """Start episode hosts. source: what they prepare. local: the host of this machine."""
        ...
