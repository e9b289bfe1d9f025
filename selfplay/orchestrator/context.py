"""Everything an update needs, built once by the command line and passed in. Holds objects; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from selfplay.agent.chat import ChatFormat
from selfplay.config import Config
from selfplay.curriculum.store import Store
from selfplay.engines.base import Engine
from selfplay.evaluation.run_evaluations import RunEvaluations
from selfplay.metrics import MetricSink
from selfplay.orchestrator.hosts import EpisodeHost
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.repositories.environment import Environment
from selfplay.sandbox.base import Limits, SandboxBackend
from selfplay.training.base import Trainer
from selfplay.verdicts.test_runs import TestRunner
from selfplay.viewing.progress import TrainProgress


@dataclass(frozen=True)
class Game:
    config: Config
    run: RunFolder
    store: Store
    environments: Mapping[str, Environment]  # by repository name
    backend: SandboxBackend
    limits: Limits
    labels: Mapping[str, str]
    engine: Engine
    chat: ChatFormat
    trainer: Trainer
    runner: TestRunner
    sink: MetricSink
    progress: TrainProgress
    evaluations: RunEvaluations | None = None
    host: EpisodeHost | None = None  # where episodes are played and judged; None: in this process
