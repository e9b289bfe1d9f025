"""The trainer contract: an update's samples in, new weights out. It knows no model, process or optimiser.

Invariant: on equal samples every trainer reaches equal weights, within its stated tolerance, whatever
micro-batches it forms.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from selfplay import DISTRIBUTION
from selfplay.errors import PrerequisiteError
from selfplay.settings.learning import TrainerSettings

if TYPE_CHECKING:
    from torch import Tensor

    from selfplay.training.batch import Sample
    from selfplay.weights.native_transfer import Receivers, SendReport


class Trainer(Protocol):
    """Learns from one update after another.

    Call one method at a time. Only the errors named below are expected.
    """

    @property
    def weight_version(self) -> int:
        """Number of updates that these weights have had."""
        ...

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Make one optimiser step over all samples, normalised per role over the whole update.

        Returns metrics, such as `<role>/loss`. Samples without a gradient change no weight and still count as
        an update. Raises ValueError for a sample longer than the context, RunError for a gradient that is not
        finite (the weights do not change), TrainerError if a process of the trainer is gone.
        """
        ...

    @property
    def ratios(self) -> Sequence[Tensor]:
        """The importance ratios of the last step: (tokens,) fp32 of each sample, NaN where none was computed.

        None is computed where nothing depends on it: for tokens of weight 0.
        """
        ...

    def export_weights(self) -> dict[str, Tensor]:
        """Return name -> fp32 weight as a copy on the CPU, for `Engine.load_weights`.

        Tied weights appear once; an adapter is merged.
        """
        ...

    def send_weights(self, receivers: Receivers) -> SendReport:
        """Send the weights to rollout servers by vLLM's own transfer, from the processes that hold them."""
        ...

    def save(self, folder: Path) -> None:
        """Write a folder that transformers loads and `load` continues from: completely or not at all.

        Raises RunError if `folder` exists, OSError if it cannot be written.
        """
        ...

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, as if never stopped.

        Raises RunError if the folder is no such checkpoint.
        """
        ...

    def close(self) -> None:
        """Free processes and memory. May be called twice. Call nothing else afterwards."""
        ...


class ExportedWeights(Mapping[str, "Tensor"]):
    """`trainer.export_weights()`, called at the first access.

    So an engine that takes weights another way never gathers them here.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._weights: dict[str, Tensor] | None = None

    def _all(self) -> dict[str, Tensor]:
        if self._weights is None:
            self._weights = self._trainer.export_weights()
        return self._weights

    def __getitem__(self, name: str) -> Tensor:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def check_trainer(settings: TrainerSettings) -> None:
    """Raises PrerequisiteError, with the remedy, if this machine lacks what `settings.type` needs.

    Loads nothing heavy.
    """
    if settings.type == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise PrerequisiteError(
            "trainer.type = 'deepspeed' needs DeepSpeed, which is not installed here. Install it with: "
            f"DS_BUILD_OPS=0 pip install '{DISTRIBUTION}[deepspeed]', or set trainer.type = 'torch'."
        )
    check_adapter(settings)


def check_adapter(settings: TrainerSettings) -> None:
    """Raises PrerequisiteError, with the remedy, if an adapter needs peft and it is missing.

    Loads nothing heavy.
    """
    if settings.lora_rank and importlib.util.find_spec("peft") is None:
        raise PrerequisiteError(
            f"trainer.lora_rank = {settings.lora_rank} needs peft, which is not installed here. "
            f"Install it with: pip install '{DISTRIBUTION}[lora]', or set trainer.lora_rank = 0."
        )
