"""Loads causal language models through transformers, for trainers and engines.

Errors name the model and the remedy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfplay.errors import EngineError, PrerequisiteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def load_causal_model(model_path: str | Path, dtype: torch.dtype) -> Any:
    """Load a causal model with all its weights.

    A local folder never needs the network. Raises EngineError with the remedy.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not torch.cuda.is_available():
        # To save a model, transformers imports DeepSpeed where it is there. It would warn of a missing GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    path = Path(model_path)
    is_local = path.exists()
    if not is_local and (path.is_absolute() or str(model_path).startswith((".", "~"))):
        raise EngineError(
            f"no model folder {model_path}. "
            "Give a folder that holds config.json and *.safetensors, or 'carried'."
        )
    # Runs load a checkpoint at each update; each would print a bar.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, local_files_only=is_local)
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, SafetensorError, KeyError, RuntimeError
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise EngineError(
            f"cannot load the model {model_path}: {type(error).__name__}: {first_line}. "
            "It needs config.json and *.safetensors of a causal language model that transformers knows."
        ) from error
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        # transformers' other implementations leave the cap of the scores out.
        model.set_attn_implementation("eager")
    return model


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """The fp32 logits (tokens, vocab) of final hidden states (tokens, hidden), as the model has them."""
    return finished_logits(model, model.get_output_embeddings()(hidden))


def finished_logits(model: Any, logits: Tensor) -> Tensor:
    """What the model makes of its head's output, in fp32. Cohere, Granite and Gemma 2 scale or bound it."""
    from selfplay.engines.attention import capped

    config = model.config.get_text_config()
    logits = logits.float()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    return capped(logits, getattr(config, "final_logit_softcapping", None))


def checkpoint_activations(model: Any) -> None:
    """Keep only each layer's input, and compute the layer again in the backward pass. Dropout stays off."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in _layers(model):
        # transformers checkpoints only layers in training mode. Their children stay in eval mode.
        layer.training = True


def compile_layers(model: Any) -> None:
    """Compile each layer with torch.compile, for batches of any shape. Weights and their names do not change.

    The first batches take seconds longer. Raises PrerequisiteError on a machine without a GPU and without a
    C++ compiler.
    """
    if not can_compile():
        raise PrerequisiteError(
            "trainer.compile = true needs a C++ compiler where there is no GPU. Install one "
            "(for example: apt-get install g++), or set trainer.compile = false."
        )
    for layer in _layers(model):
        layer.compile(dynamic=True)


def can_compile() -> bool:
    """Whether torch.compile works here: it needs a GPU or a C++ compiler."""
    import torch

    compilers = (os.environ.get("CXX", "g++"), "clang++")
    return torch.cuda.is_available() or any(map(shutil.which, compilers))


@contextmanager
def compiled_layers(model: Any) -> Iterator[None]:
    """The layers are compiled in the `with` block, as `compile_layers` does it, and not after it."""
    compile_layers(model)
    try:
        yield
    finally:
        for layer in _layers(model):
            layer._compiled_call_impl = None


def _layers(model: Any) -> Iterator[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
