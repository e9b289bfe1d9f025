"""The factors that a low-rank adapter starts from: of another adapter, or of a trained model's difference.

All weights learn faster than an adapter does (docs/log.md, 2026-11-30). So a model can be trained first, and
its difference from the base becomes the adapter, which then trains on. Does not train.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.engines.adapted_models import CONFIG, adapter_folder
from selfplay.errors import ConfigError
from selfplay.settings.learning import PolicySettings

if TYPE_CHECKING:
    from torch import Tensor

    from selfplay.training.adapter import Adapter
    from selfplay.warm_start.settings import WarmStartSettings

SPARE = 16  # directions beyond the rank that are computed, for accuracy
ITERATIONS = 4


def start_factors(model: Any, added: Adapter, settings: WarmStartSettings) -> None:
    """Put the adapter's factors into float32, with the values that `settings.adapter` names, if it does.

    model: the base, with the adapter `added`. Raises ConfigError if the folder has other layers or another
    rank, and EngineError if it is neither an adapter nor a model.
    """
    start: Mapping[str, Tensor] = {}
    if settings.adapter:
        folder = Path(settings.adapter).expanduser()
        is_model = (folder / "config.json").is_file() and not (folder / CONFIG).is_file()
        start = _of_difference(model, added, folder) if is_model else _read(added, settings)
    for name in added.names:
        factor = model.get_parameter(name)
        value = start.get(name, factor.data)
        if value.shape != factor.shape:
            raise ConfigError(
                f"adapter = {settings.adapter!r} has rank {min(value.shape)}, and lora_rank is "
                f"{settings.lora_rank}. Set lora_rank to the adapter's rank."
            )
        factor.data = value.float()


def _read(added: Adapter, settings: WarmStartSettings) -> Mapping[str, Tensor]:
    folder = adapter_folder(PolicySettings(model=settings.base, adapter=settings.adapter))
    try:
        return added.read(folder, added.names)
    except (OSError, KeyError) as error:
        raise ConfigError(f"adapter = {settings.adapter!r} cannot be read: {error}") from error


def _of_difference(model: Any, added: Adapter, folder: Path) -> Mapping[str, Tensor]:
    """The best factors of the adapter's rank for the difference between the model in `folder` and the base.

    By singular values (Eckart and Young, 1936), found at random directions (Halko et al., arXiv 0909.4061).
    """
    import torch

    from selfplay.engines.models import load_causal_model
    from selfplay.training.adapter import outer_name

    trained = dict(load_causal_model(str(folder), torch.float32).named_parameters())
    base = {outer_name(name): tensor for name, tensor in model.named_parameters()}
    found: dict[str, Tensor] = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, (first, second) in added.factors.items():
            if name not in trained or trained[name].shape != base[name].shape:
                raise ConfigError(
                    f"adapter = {str(folder)!r} is a model without the base's weight {name!r}. "
                    "Give a model that was trained from the base."
                )
            difference = (trained[name] - base[name].float()) / added.scaling  # (out, in)
            rank = model.get_parameter(first).shape[0]
            wanted = min(rank + SPARE, *difference.shape)
            left, values, right = torch.svd_lowrank(difference, q=wanted, niter=ITERATIONS)
            root = values[:rank].sqrt()
            found[first] = (right[:, :rank] * root).T.contiguous()  # A (rank, in)
            found[second] = (left[:, :rank] * root).contiguous()  # B (out, rank)
    return found
