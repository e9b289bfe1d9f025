"""Everything that a run's updates need: built once at the start, then passed in.

Holds objects; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from selfplay.agent.chat import ChatFormat
from selfplay.agent.hosts import EpisodeHost
from selfplay.agent.workspaces import EpisodeContext
from selfplay.config import Config
from selfplay.curriculum.store import Store
from selfplay.engines.base import Engine
from selfplay.evaluation.run_evaluations import RunEvaluations
from selfplay.metrics import MetricSink
from selfplay.orchestrator.progress import Progress
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.repositories.environment import Environment
from selfplay.training.base import Trainer


@dataclass(frozen=True)
class RunContext:
    """environments: by repository name. host: plays and judges the episodes."""

    run: RunFolder
    store: Store
    environments: Mapping[str, Environment]
    episodes: EpisodeContext
    host: EpisodeHost
    trainer: Trainer
    sink: MetricSink
    progress: Progress
    labels: Mapping[str, str]
    evaluations: RunEvaluations | None = None

    @property
    def config(self) -> Config:
        return self.episodes.config

    @property
    def engine(self) -> Engine:
        return self.episodes.engine

    @property
    def chat(self) -> ChatFormat:
        return self.episodes.chat
