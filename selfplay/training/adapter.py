"""A low-rank adapter (LoRA) beside a frozen model. peft adds it; this module merges, writes and reads it.

The trainers gather its tensors and optimise them. Invariants: weights have the names of the model without an
adapter; B starts at zero, so before the first step the merged weights are exactly the base.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfplay.errors import ConfigError, RunError
from selfplay.settings.learning import TrainerSettings
from selfplay.training.base import check_adapter
from selfplay.training.router_load import expert_modules

FOLDER = "adapter"  # in a checkpoint; peft reads it

_INNER = ".base_layer."  # peft adds this to the names of weights that have an adapter
_NAME = "default"  # peft's name for the only adapter
_PREFIX = "base_model.model."  # of every name in peft's files
_WEIGHTS = "adapter_model.safetensors"
_IDENTITY = ("lora_rank", "lora_alpha", "lora_layers")  # settings that a checkpoint must share


@dataclass(frozen=True)
class Adapter:
    """factors: name of a weight -> names of its A (rank, in) and B (out, rank), in the model's order."""

    config: Any  # peft.LoraConfig
    scaling: float
    factors: Mapping[str, tuple[str, str]]

    @property
    def names(self) -> list[str]:
        """Names of all parameters of the adapter."""
        return [name for pair in self.factors.values() for name in pair]

    def merged(self, name: str, weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """Return weight + scaling · B A in fp32. A weight without factors returns unchanged.

        Source: Hu et al., "LoRA", arXiv 2106.09685, section 4.1.
        """
        if name not in self.factors:
            return weight
        first, second = (factors[factor] for factor in self.factors[name])  # A (rank, in), B (out, rank)
        with torch.no_grad():
            return torch.addmm(weight.float(), second.float(), first.float(), alpha=self.scaling)

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write a folder for `peft.PeftModel.from_pretrained`. Raises OSError if it cannot be written.

        tensors: all of `names`.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        folder.mkdir()
        self.config.save_pretrained(folder)
        saved = {_saved_name(name): tensors[name].detach().cpu().contiguous() for name in self.names}
        try:
            save_file(saved, folder / _WEIGHTS, {"format": "pt"})
        except SafetensorError as error:  # for example a full disk
            raise OSError(str(error)) from error

    def read(self, folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
        """Read some of the tensors that `write` wrote. Raises OSError or KeyError if they are missing."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(folder / _WEIGHTS, "pt") as file:
                return {name: file.get_tensor(_saved_name(name)) for name in names}
        except SafetensorError as error:
            raise KeyError(str(error)) from error


def add_adapter(model: Any, settings: TrainerSettings, seed: int) -> Adapter | None:
    """Add an adapter to `model` in place and freeze the rest. Returns None if `settings` ask for none.

    A is initialised on the CPU in the model's order, so a seed gives the same adapter on every trainer,
    device and number of ranks. In a mixture of experts only the attention gets one. Raises
    PrerequisiteError without peft, ConfigError for layers that the model lacks.
    """
    if not settings.lora_rank:
        return None
    check_adapter(settings)
    from peft import LoraConfig, inject_adapter_in_model

    head = model.get_output_embeddings()
    # peft would put factors on whole tensors of experts, and on the dense layers that share their names.
    blocks = {name.split(".")[-2] for name in expert_modules(model)}  # such as "mlp"
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and blocks.isdisjoint(name.split("."))
    }
    layers = sorted(settings.lora_layers or found)
    if missing := [name for name in layers if name not in found]:
        raise ConfigError(
            f"trainer.lora_layers: the model has no linear layer {missing[0]!r}. "
            f"It has {sorted(found)}; [] takes all."
        )
    if not layers:
        raise ConfigError(
            f"trainer.lora_rank = {settings.lora_rank}: the model has no linear layer besides its head. "
            "Set it to 0."
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


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """In the `with` block the model computes as its base does. A model without an adapter stays as it is."""
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]  # peft's layers
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def outer_name(name: str) -> str:
    """Return a weight's name in the model without an adapter. Names of factors do not change."""
    return name.replace(_INNER, ".")


def _factor_name(inner: str, factor: str) -> str:
    return f"{inner.removesuffix(f'{_INNER}weight')}.lora_{factor}.{_NAME}.weight"


def _saved_name(factor: str) -> str:
    return _PREFIX + factor.replace(f".{_NAME}.", ".")


def adapter_state(settings: TrainerSettings) -> dict[str, Any]:
    """Return what a checkpoint records of its adapter: nothing without one."""
    if not settings.lora_rank:
        return {}
    values = json.loads(settings.model_dump_json())
    return {key: values[key] for key in _IDENTITY}


def check_same_adapter(folder: Path, state: Mapping[str, Any], settings: TrainerSettings) -> None:
    """Raises RunError if a checkpoint has another adapter, or none. state: contains its `adapter_state`."""
    now = adapter_state(settings)
    for key in _IDENTITY:
        saved, wanted = state.get(key, 0), now.get(key, 0)
        if saved != wanted:
            raise RunError(
                f"the checkpoint {folder} was made with trainer.{key} = {saved}, "
                f"and this trainer has trainer.{key} = {wanted}. "
                f"Set trainer.{key} = {saved}, or start a new run whose policy.model is that folder."
            )


def check_same_base(folder: Path, name: str, saved: Tensor, merged: Tensor) -> None:
    """Raises RunError if a checkpoint was made over another base model.

    saved: the checkpoint's merged weight. merged: this model's base with the checkpoint's adapter. Both have
    the same shape. They may differ by rounding.
    """
    if saved.shape != merged.shape or not torch.allclose(saved, merged, rtol=1e-4, atol=1e-5):
        raise RunError(
            f"the checkpoint {folder} was made over another model: its {name} is not this model's with the "
            "checkpoint's adapter. Open the trainer on the model that the run started with."
        )
