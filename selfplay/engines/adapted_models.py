"""An adapter on top of a model, merged once into a model folder of the cache.

Everything after that (engines, trainers, the reference policy) sees an ordinary folder. Invariant: the
folder's name holds the hashes of the model's and the adapter's files, so another adapter gets another folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from selfplay.engines.models import load_causal_model
from selfplay.errors import EngineError, PrerequisiteError
from selfplay.repositories.checkouts import cache_root, new_folder
from selfplay.runtime.resources import resource
from selfplay.settings.learning import PolicySettings

CONFIG = "adapter_config.json"
CARRIED = "carried"  # the adapter in the package
CARRIED_ON = "smollm2"  # the `policy.model` that it was trained on


def adapted_folder(model: str, place: Path) -> str:
    """The folder of `model` with the adapter of the folder `place` added to its weights.

    model: a folder or id, as `policy_path` gives it. Raises EngineError and PrerequisiteError.
    """
    digest = hashlib.sha256(model.encode())
    for folder in (Path(model), place):
        for file in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*config.json")):
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    target = cache_root() / "models" / f"adapted-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        with new_folder(target) as folder:
            _merge(model, place, folder)
    return str(target)


def adapter_folder(policy: PolicySettings) -> Path:
    """The folder of `policy.adapter`. Raises EngineError if there is none, or if it is of another model."""
    adapter = policy.adapter
    place = Path(adapter).expanduser()
    if adapter == CARRIED:
        place = resource("data/adapter")
        if policy.model != CARRIED_ON:
            raise EngineError(
                f"policy.adapter = {CARRIED!r} was trained on policy.model = {CARRIED_ON!r}, "
                f"not on {policy.model!r}. Set policy.model to {CARRIED_ON!r}, or policy.adapter to a folder."
            )
    if not (place / CONFIG).is_file():
        raise EngineError(
            f"policy.adapter = {adapter!r}: no {CONFIG} at {place.absolute()}; give a folder that peft "
            "saved, such as the folder adapter of a checkpoint or of `selfplay warm-start --adapter`."
        )
    return place


def _merge(model: str, adapter: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    try:
        from peft import PeftModel
    except ImportError as error:
        raise PrerequisiteError(
            'policy.adapter needs the package peft. Install it with: pip install "selfplay-swe[lora]".'
        ) from error
    dtype = getattr(AutoConfig.from_pretrained(model), "dtype", None) or torch.float32
    base = load_causal_model(model, torch.float32)
    try:
        merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    except Exception as error:  # peft raises ValueError, KeyError, RuntimeError, SafetensorError
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise EngineError(
            f"policy.adapter: {adapter} does not fit on {model}: {type(error).__name__}: {first_line}. "
            "Set policy.model to the model that the adapter was trained on."
        ) from error
    merged.to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
