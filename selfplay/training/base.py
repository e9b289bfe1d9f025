"""The trainer contract: an update's samples in, new weights out. Knows no model, process or optimiser.

Invariant: on equal samples every trainer reaches equal weights, within its stated tolerance, however it cuts them up.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from selfplay.config import TrainerSettings
from selfplay.errors import PrerequisiteError

if TYPE_CHECKING:
    from torch import Tensor

    from selfplay.training.batch import Sample
    from selfplay.weights.native_transfer import Receivers, SendReport


class Trainer(Protocol):
    """Learns from one update after another. One call at a time; what it raises besides the errors named is a bug of its own."""

    @property
    def weight_version(self) -> int:
        """The number of updates that these weights have seen."""
        ...

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimiser step over all samples, normalised per role over the whole update. Returns metrics, `<role>/loss` and the like.

        Samples without any gradient change no weight and still count as an update. Raises ValueError for a sample longer than the
        context, RunError for a gradient that is not finite (the weights stay), TrainerError when a process of its own is gone.
        """
        ...

    def export_weights(self) -> dict[str, Tensor]:
        """Name -> a copy of the fp32 weight on the CPU, tied weights once, an adapter merged, as `Engine.load_weights` takes them."""
        ...

    def send_weights(self, receivers: Receivers) -> SendReport:
        """The weights into rollout servers by vLLM's own transfer, from the processes that hold them and past the caller's."""
        ...

    def save(self, folder: Path) -> None:
        """Write a folder that transformers loads and `load` continues from, whole or not at all.

        Raises RunError when `folder` exists, OSError when it cannot be written.
        """
        ...

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote as if never stopped. Raises RunError when the folder is not such a checkpoint."""
        ...

    def close(self) -> None:
        """Let go of processes and memory. May be called twice; nothing else may be called after it."""
        ...


class ExportedWeights(Mapping[str, "Tensor"]):
    """`trainer.export_weights()`, made when it is first looked at: an engine that takes weights another way never gathers them here."""

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
    """Raises PrerequisiteError, with the remedy, when this machine lacks what `settings.type` needs. Loads nothing heavy."""
    if settings.type == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise PrerequisiteError(
            "trainer.type = 'deepspeed' needs DeepSpeed, which is not installed here. Install it with: "
            "DS_BUILD_OPS=0 pip install 'selfplay[deepspeed]', or set trainer.type = 'torch'."
        )
    check_adapter(settings)


def check_adapter(settings: TrainerSettings) -> None:
    """Raises PrerequisiteError, with the remedy, when `settings` want an adapter and peft is not here. Loads nothing heavy."""
    if settings.lora_rank and importlib.util.find_spec("peft") is None:
        raise PrerequisiteError(
            f"trainer.lora_rank = {settings.lora_rank} needs peft, which is not installed here. Install it with: "
            "pip install 'selfplay[lora]', or set trainer.lora_rank = 0."
        )
