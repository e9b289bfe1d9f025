"""The trainer of many ranks: cuts an update into equal shares, sums what they report, keeps the version. Knows no DeepSpeed itself.

Leaves processes to `ranks` and learning to `rank_worker`. Invariant: equal to the torch trainer on the same updates, within rounding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfplay.config import TrainerSettings
from selfplay.errors import RunError
from selfplay.training.adapter import adapter_state, check_same_adapter
from selfplay.training.base import check_trainer
from selfplay.training.batch import Sample, make_rank_batches
from selfplay.training.checkpoints import read_companions, weights_digest, write_companions, written_whole
from selfplay.training.objective import Tally, check_lengths, episode_weights, warmed_up_rate, weigh
from selfplay.training.ranks.controller import Ranks
from selfplay.training.ranks.link import RankLinks

if TYPE_CHECKING:
    from torch import Tensor

    from selfplay.training.ranks.worker import StepReport
    from selfplay.weights.native_transfer import Receivers, SendReport


class DeepSpeedTrainer:
    """`settings.ranks` processes under ZeRO `settings.zero_stage`, where `links` says, by default on this machine.

    `ranks` may be given, and is then the giver's to close.

    Raises PrerequisiteError without DeepSpeed, EngineError for a model that does not load, TrainerError when the ranks do not come up.
    """

    def __init__(
        self,
        model_path: str | Path,
        settings: TrainerSettings,
        context_tokens: int,
        seed: int,
        logs: Path | None = None,
        ranks: Ranks | None = None,
        links: RankLinks | None = None,
    ) -> None:
        check_trainer(settings)
        self._settings = settings
        self._context_tokens = context_tokens
        self._companions = read_companions(Path(model_path))
        self._weight_version = 0
        self._owns_ranks = ranks is None
        self._ranks = ranks or Ranks(settings.ranks, logs, settings.deadline_s, links=links)
        if self._ranks.world != settings.ranks:
            raise ValueError(f"{self._ranks.world} ranks were given, trainer.ranks is {settings.ranks}")
        try:
            self._ranks.call("open", (str(model_path), settings, seed))
        except BaseException:
            self.close()
            raise

    @property
    def weight_version(self) -> int:
        """The number of updates that these weights have seen."""
        return self._weight_version

    @property
    def rank_pids(self) -> list[int]:
        """The processes, by rank."""
        return self._ranks.pids

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimiser step over all ranks. Metrics as the torch trainer tells them, and `peak_bytes`, the largest rank's."""
        check_lengths(samples, self._context_tokens)
        started = time.monotonic()
        settings = self._settings
        rate = warmed_up_rate(settings, self._weight_version)
        weights = episode_weights(samples, settings, self._context_tokens)
        shares = make_rank_batches(
            samples, settings.batch_tokens, settings.ranks, settings.packing, settings.kl_coef > 0
        )
        tally, norm, peak, padded, fillers = Tally(), 0.0, 0, 0, 0
        if shares[0]:
            weighed = [
                [None if batch is None else weigh(batch, samples, weights) for batch in share]
                for share in shares
            ]
            reports: list[StepReport] = self._ranks.call("step", [(share, rate) for share in weighed])
            norm = reports[0].grad_norm
            if not all(report.is_applied for report in reports):
                raise RunError(
                    f"the gradient of update {self._weight_version + 1} is {norm}; nothing changed. Lower trainer.learning_rate and resume."
                )
            for report in reports:
                tally.merge(report.tally)
            peak = max(report.peak_bytes for report in reports)
            padded = sum(batch.padded_tokens for share in shares for batch in share if batch)
            fillers = sum(batch is None for share in shares for batch in share)
        self._weight_version += 1
        seconds = time.monotonic() - started
        return tally.means() | {
            "grad_norm": norm,
            "lr": rate,
            "tokens": float(sum(len(s.token_ids) for s in samples)),
            "padded_tokens": float(padded),
            "tokens_per_s": padded / seconds if seconds else 0.0,
            "seconds": seconds,
            "micro_batches": float(len(shares[0])),
            "empty_micro_batches": float(fillers),
            "peak_bytes": float(peak),
        }

    def weights(self, as_computed: bool = False) -> Iterator[Mapping[str, Tensor]]:
        """A layer group at a time, as rank 0 gathers it; nobody holds more than one. fp32, or `as_computed` what the forward pass uses."""
        return self._ranks.stream("weights", (as_computed,))

    def export_weights(self) -> dict[str, Tensor]:
        """Name -> a copy of the fp32 weight, tied weights once, an adapter merged, as `Engine.load_weights` takes them."""
        return {name: value for group in self.weights() for name, value in group.items()}

    def send_weights(self, receivers: Receivers) -> SendReport:
        """From rank 0 into rollout servers, past this process. Raises TrainerError when a rank is gone or hangs."""
        report: SendReport = self._ranks.call("send_weights", (receivers,))[0]
        return report

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder, `optimizer/` with the moments, and `trainer.json`, whole or not at all.

        Raises RunError when `folder` exists, OSError when it cannot be written, TrainerError when a rank is gone.
        """
        with written_whole(folder) as partial:
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
        """Continue from what `save` wrote, on any number of ranks and any stage. Raises RunError when it is not such a checkpoint."""
        try:
            state = json.loads((folder / "trainer.json").read_text())
            check_same_adapter(folder, state, self._settings)
            if state["weights_digest"] != weights_digest(folder):
                raise RunError(
                    f"the checkpoint {folder} has weights that do not belong to its trainer.json. Resume from an earlier one."
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
        """End the rank processes, unless they are somebody else's."""
        if self._owns_ranks:
            self._ranks.close()
