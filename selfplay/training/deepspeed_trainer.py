"""The trainer over many ranks: splits an update into equal shares, sums their reports, keeps the version.

It imports no DeepSpeed: `ranks/controller.py` runs the processes and `ranks/worker.py` learns in them.
Invariant: it equals the torch trainer on the same updates, within rounding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfplay.errors import RunError
from selfplay.settings.learning import TrainerSettings
from selfplay.training.adapter import adapter_state, check_same_adapter
from selfplay.training.base import check_trainer
from selfplay.training.batch import Sample, make_rank_batches
from selfplay.training.checkpoints import atomic_folder, read_companions, weights_digest, write_companions
from selfplay.training.objective import (
    MetricSums,
    WeightedBatch,
    add_token_weights,
    check_lengths,
    episode_weights,
    warmed_up_rate,
)
from selfplay.training.ranks.controller import RankLaunch, Ranks
from selfplay.training.windows import cut_into_windows

if TYPE_CHECKING:
    from torch import Tensor

    from selfplay.training.ranks.worker import StepReport
    from selfplay.weights.native_transfer import Receivers, SendReport


class DeepSpeedTrainer:
    """See `Trainer`. It runs `settings.ranks` processes under ZeRO stage `settings.zero_stage`."""

    def __init__(
        self,
        model_path: str | Path,
        settings: TrainerSettings,
        context_tokens: int,
        seed: int,
        launch: RankLaunch | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Start the ranks and load the model on them.

        launch: how to start them; by default on this machine. ranks: already started ones, which the caller
        closes. Raises PrerequisiteError without DeepSpeed, EngineError if the model does not load,
        TrainerError if the ranks do not start.
        """
        check_trainer(settings)
        self._settings = settings
        self._context_tokens = context_tokens
        self._companions = read_companions(Path(model_path))
        self._weight_version = 0
        self._ratios: list[Tensor] = []
        self._owns_ranks = ranks is None
        self._ranks = ranks or Ranks(settings.ranks, launch, settings.deadline_s)
        if self._ranks.world != settings.ranks:
            raise ValueError(f"there are {self._ranks.world} ranks, and trainer.ranks is {settings.ranks}")
        try:
            self._ranks.call("open", (str(model_path), settings, seed))
        except BaseException:
            self.close()
            raise

    @property
    def weight_version(self) -> int:
        """Number of updates that these weights have had."""
        return self._weight_version

    @property
    def rank_pids(self) -> list[int]:
        """Process ids, by rank."""
        return self._ranks.pids

    @property
    def ratios(self) -> list[Tensor]:
        """See `Trainer`."""
        return self._ratios

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Make one optimiser step over all ranks.

        Returns the torch trainer's metrics, the numbers of micro-batches, and `peak_bytes` of the largest
        rank.
        """
        check_lengths(samples, self._context_tokens)
        started = time.monotonic()
        settings = self._settings
        rate = warmed_up_rate(settings, self._weight_version)
        weights = episode_weights(samples, settings, self._context_tokens)
        # One share for each group of ranks that computes sequences together.
        groups = settings.ranks // settings.sequence_parallel
        shares = make_rank_batches(
            samples, settings.batch_tokens, groups, settings.packing, settings.kl_coef > 0
        )
        sums, norm, peak = MetricSums(), 0.0, 0
        if shares[0]:
            weighted = [
                [None if batch is None else add_token_weights(batch, samples, weights) for batch in share]
                for share in shares
            ]
            own = windows_of_ranks(weighted, settings.sequence_parallel)
            reports: list[StepReport] = self._ranks.call("step", [(share, rate) for share in own])
            norm = reports[0].grad_norm
            if not all(report.is_applied for report in reports):
                raise RunError(
                    f"the gradient of update {self._weight_version + 1} is {norm}; nothing changed. "
                    "Lower trainer.learning_rate and resume."
                )
            for report in reports:
                sums.merge(report.sums)
            peak = max(report.peak_bytes for report in reports)
        padded = sum(batch.padded_tokens for share in shares for batch in share if batch)
        dummies = sum(batch is None for share in shares for batch in share)
        self._weight_version += 1
        self._ratios = sums.ratios([len(sample.token_ids) for sample in samples])
        seconds = time.monotonic() - started
        return sums.means() | {
            "grad_norm": norm,
            "lr": rate,
            "tokens": float(sum(len(s.token_ids) for s in samples)),
            "padded_tokens": float(padded),
            "tokens_per_s": padded / seconds if seconds else 0.0,
            "seconds": seconds,
            "micro_batches": float(len(shares[0])),
            "empty_micro_batches": float(dummies),
            "peak_bytes": float(peak),
        }

    def weights(self, as_computed: bool = False) -> Iterator[Mapping[str, Tensor]]:
        """Yield the weights, one layer group at a time, as rank 0 gathers it. No process holds two groups.

        They are fp32, or with `as_computed` in the dtype of the forward pass.
        """
        return self._ranks.stream("weights", (as_computed,))

    def export_weights(self) -> dict[str, Tensor]:
        """Return name -> fp32 weight as a copy on the CPU. Tied weights appear once; an adapter is merged."""
        return {name: value for group in self.weights() for name, value in group.items()}

    def send_weights(self, receivers: Receivers) -> SendReport:
        """Send the weights from rank 0 to rollout servers. Raises TrainerError if a rank is gone or hangs."""
        report: SendReport = self._ranks.call("send_weights", (receivers,))[0]
        return report

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder, `optimizer/` with the moments, and `trainer.json`.

        The folder is written completely or not at all. Raises RunError if `folder` exists, OSError if it
        cannot be written, TrainerError if a rank is gone.
        """
        with atomic_folder(folder) as partial:
            steps = self._ranks.call("save", (str(partial),))
            write_companions(self._companions, partial)
            state = {
                "weight_version": self._weight_version,
                "optimizer_steps": steps[0],
                "weights_digest": weights_digest(partial),
            }
            state |= adapter_state(self._settings)
            (partial / "trainer.json").write_text(json.dumps(state, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, on any number of ranks and any ZeRO stage.

        Raises RunError if the folder is no such checkpoint.
        """
        try:
            state = json.loads((folder / "trainer.json").read_text())
            check_same_adapter(folder, state, self._settings)
            if state["weights_digest"] != weights_digest(folder):
                raise RunError(
                    f"the checkpoint {folder} has weights that do not belong to its trainer.json. "
                    "Resume from an earlier one."
                )
            version, steps = int(state["weight_version"]), int(state["optimizer_steps"])
            self._ranks.call("load", (str(folder), steps))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"cannot continue from the checkpoint {folder}: {error}. Resume from an earlier one."
            ) from error
        self._weight_version = version
        self._companions |= read_companions(folder)

    def close(self) -> None:
        """End the rank processes that this trainer started."""
        if self._owns_ranks:
            self._ranks.close()


def windows_of_ranks(
    shares: Sequence[Sequence[WeightedBatch | None]], parts: int
) -> list[list[WeightedBatch | None]]:
    """Return each rank's micro-batches. shares: those of each group of `parts` neighbouring ranks."""
    found: list[list[WeightedBatch | None]] = []
    for share in shares:
        cut = [[None] * parts if batch is None else cut_into_windows(batch, parts) for batch in share]
        found += [[windows[part] for windows in cut] for part in range(parts)]
    return found
