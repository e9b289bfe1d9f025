"""The trainers that `benchmarks.training` measures, in processes of their own because of peak memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from selfplay.settings.learning import TrainerSettings
from selfplay.training.batch import Sample
from selfplay.training.ranks.worker import RankWorker


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class Figures:
    """seconds: median of the steps. grown_bytes: a process's peak memory above that before loading.

    cpu_seconds: median of the time that its threads worked, which other programs hardly change.
    """

    seconds: float
    grown_bytes: int
    loss: float = 0.0
    grad_norm: float = 0.0
    cpu_seconds: float = 0.0


class MeasuredRank(RankWorker):
    """A rank of the DeepSpeed trainer that also reports its memory."""

    def resident(self) -> int:
        return resident_bytes()

    def peak(self) -> int:
        return peak_bytes()


class Alone:
    """One process without a group."""

    def __init__(self, rank: int, world: int, address: str, deadline_s: float) -> None:
        self.progress: Callable[[str], None] = lambda _: None

    def measure_torch(
        self, folder: str, settings: TrainerSettings, context: int, samples: Sequence[Sample], steps: int
    ) -> Figures:
        from selfplay.training.torch_trainer import TorchTrainer

        before = resident_bytes()
        trainer = TorchTrainer(folder, settings, context, seed=0)
        trainer.step(samples[:2])
        if settings.compile:
            trainer.step(samples)  # compiles other shapes
        seconds: list[float] = []
        worked: list[float] = []
        metrics: dict[str, float] = {}
        for step in range(steps):
            self.progress(f"step {step}")
            started, worked_before = time.monotonic(), time.process_time()
            metrics = trainer.step(samples)
            seconds.append(time.monotonic() - started)
            worked.append(time.process_time() - worked_before)
        grown = peak_bytes() - before
        return Figures(median(seconds), grown, metrics["loss"], metrics["grad_norm"], median(worked))

    def measure_trl(
        self, folder: str, settings: TrainerSettings, context: int, samples: Sequence[Sample], steps: int
    ) -> Figures:
        from benchmarks.trl_peer import TrlPeer

        before = resident_bytes()
        peer = TrlPeer(folder, settings, context)
        peer.step(samples[:2])
        seconds, worked, loss, norm = [], [], 0.0, 0.0
        for step in range(steps):
            self.progress(f"step {step}")
            started, worked_before = time.monotonic(), time.process_time()
            loss, norm = peer.step(samples)
            seconds.append(time.monotonic() - started)
            worked.append(time.process_time() - worked_before)
        return Figures(median(seconds), peak_bytes() - before, loss, norm, median(worked))

    def close(self) -> None:
        pass
