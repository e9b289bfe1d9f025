"""A low-rank adapter (LoRA) beside a frozen model: put in by peft, merged, written and read here. All that it trains are its factors.

Leaves gathering, optimisers and their moments to the trainers. Invariant: weights go by the names of the model without an adapter, and B
begins at zero, so that what is merged before the first step is the base exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfplay.config import TrainerSettings
from selfplay.errors import ConfigError, RunError
from selfplay.training.base import check_adapter

FOLDER = "adapter"  # in a checkpoint, as peft reads it

_INNER = ".base_layer."  # what peft puts into the names of weights that have an adapter
_NAME = "default"  # peft's own for an adapter that is the only one
_PREFIX = "base_model.model."  # of every name in its files
_WEIGHTS = "adapter_model.safetensors"
_DECIDING = ("lora_rank", "lora_alpha", "lora_layers")


@dataclass(frozen=True)
class Adapter:
    """factors: a weight's name -> the names of its A (rank, in) and B (out, rank) among the model's parameters, in the model's order."""

    config: Any  # peft.LoraConfig
    scaling: float
    factors: Mapping[str, tuple[str, str]]

    @property
    def names(self) -> list[str]:
        """Of all its parameters."""
        return [name for pair in self.factors.values() for name in pair]

    def merged(self, name: str, weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """weight + scaling B A, in fp32 (Hu et al., "LoRA", arXiv 2106.09685, section 4.1); a weight without factors as it is."""
        if name not in self.factors:
            return weight
        first, second = (factors[factor] for factor in self.factors[name])  # A, B
        with torch.no_grad():
            return torch.addmm(weight, second, first, alpha=self.scaling)

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """`tensors`: all of `names`. A folder that `peft.PeftModel.from_pretrained` takes. Raises OSError when it cannot be written."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        folder.mkdir()
        self.config.save_pretrained(folder)
        kept = {_kept_name(name): tensors[name].detach().cpu().contiguous() for name in self.names}
        try:
            save_file(kept, folder / _WEIGHTS, {"format": "pt"})
        except SafetensorError as error:  # its way of reporting a full disk
            raise OSError(str(error)) from error

    def read(self, folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
        """Some of what `write` wrote. Raises OSError or KeyError when it is not there."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(folder / _WEIGHTS, "pt") as file:
                return {name: file.get_tensor(_kept_name(name)) for name in names}
        except SafetensorError as error:
            raise KeyError(str(error)) from error


def add_adapter(model: Any, settings: TrainerSettings, seed: int) -> Adapter | None:
    """Put one into `model`, in place, and freeze the rest; None where `settings` want none.

    Drawn on the CPU in the model's order, so that a seed gives the same on every trainer, device and number of ranks. Raises
    PrerequisiteError without peft, ConfigError for layers that the model does not have.
    """
    if not settings.lora_rank:
        return None
    check_adapter(settings)
    from peft import LoraConfig, inject_adapter_in_model

    head = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    layers = sorted(settings.lora_layers or found)
    if missing := [name for name in layers if name not in found]:
        raise ConfigError(
            f"trainer.lora_layers: the model has no linear layer {missing[0]!r}. It has {sorted(found)}; [] takes all."
        )
    if not layers:
        raise ConfigError(
            f"trainer.lora_rank = {settings.lora_rank}: the model has no linear layer beside its head. Set it to 0."
        )
    config = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=layers, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    weights = [name for name, _ in model.named_parameters() if name.endswith(f"{_INNER}weight")]
    factors = {outer_name(name): (_factor_name(name, "A"), _factor_name(name, "B")) for name in weights}
    return Adapter(config, settings.lora_alpha / settings.lora_rank, factors)


def outer_name(name: str) -> str:
    """Of a weight, as the model without an adapter calls it; factors keep theirs."""
    return name.replace(_INNER, ".")


def _factor_name(inner: str, factor: str) -> str:
    return f"{inner.removesuffix(f'{_INNER}weight')}.lora_{factor}.{_NAME}.weight"


def _kept_name(factor: str) -> str:
    return _PREFIX + factor.replace(f".{_NAME}.", ".")


def adapter_state(settings: TrainerSettings) -> dict[str, Any]:
    """What a checkpoint says of the adapter that it belongs to; nothing without one."""
    return (
        {key: json.loads(settings.model_dump_json())[key] for key in _DECIDING} if settings.lora_rank else {}
    )


def check_same_adapter(folder: Path, state: Mapping[str, Any], settings: TrainerSettings) -> None:
    """Raises RunError when the checkpoint whose `adapter_state` is in `state` was made with another adapter, or with none."""
    now = adapter_state(settings)
    for key in _DECIDING:
        kept, wanted = state.get(key, 0), now.get(key, 0)
        if kept != wanted:
            raise RunError(
                f"the checkpoint {folder} was made with trainer.{key} = {kept}, and this trainer has trainer.{key} = {wanted}. "
                f"Set trainer.{key} = {kept}, or start a new run whose policy.model is that folder."
            )


def check_same_base(folder: Path, name: str, kept: Tensor, now: Tensor) -> None:
    """Raises RunError when a checkpoint's merged weight is not this model's base with the checkpoint's adapter (up to rounding)."""
    if kept.shape != now.shape or not torch.allclose(kept, now, rtol=1e-4, atol=1e-5):
        raise RunError(
            f"the checkpoint {folder} was made over another model: its {name} is not this model's with the checkpoint's adapter. "
            "Open the trainer on the model that the run began with."
        )
