"""What a model's config.json says before its weights are there: what can play and train it, and how far.

It reads one file and loads no weights. Invariant: a model is refused only for what would fail, or be wrong,
later.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfplay.errors import EngineError

FULL, SLIDING = "full_attention", "sliding_attention"
# Their attention adds sinks to each softmax.
SINKS = ("deepseek_v4", "gpt_oss", "granite_swa", "granitemoe_swa", "hy_v4", "mimo_v2_flash")
# Settings of config.json that count experts.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Rotary scalings whose factor config.json leaves out of max_position_embeddings.
STRETCHED = ("yarn", "linear", "dynamic")


def read_architecture(model: str, local_files_only: bool = False) -> Any:
    """The transformers configuration of a folder or id. Raises EngineError unless it is a causal model's.

    local_files_only: of the Hugging Face cache; else config.json of an id is fetched.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    is_local = local_files_only or Path(model).exists()
    try:
        config: Any = AutoConfig.from_pretrained(model, local_files_only=is_local)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, and its own
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise EngineError(
            f"the config.json of {model} cannot be read: {type(error).__name__}: {first_line} "
            "Set policy.model to a model whose model_type this version of transformers knows; selfplay runs "
            "no code that comes with a model."
        ) from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise EngineError(
            f"the model {model} is of type {config.model_type!r}, which is no causal language model. "
            "Set policy.model to one that continues text."
        )
    return config


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """The window of each layer in tokens; None: the layer attends to everything before it."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or [SLIDING] * int(text.num_hidden_layers)
    return tuple(window if kind == SLIDING else None for kind in kinds)


def longest_text(config: Any) -> int | None:
    """Tokens of the longest text that the model's positions are made for; None if it does not say.

    A factor of rotary scaling counts where max_position_embeddings leaves it out, as vLLM counts it.
    """
    text = config.get_text_config()
    longest: int | None = getattr(text, "max_position_embeddings", None)
    scaling = getattr(text, "rope_parameters", None) or {}
    if not longest or scaling.get("rope_type") not in STRETCHED or not scaling.get("factor"):
        return longest
    original = scaling.get("original_max_position_embeddings") or longest
    return max(longest, int(original * scaling["factor"]))


def check_architecture(model: str, config: Any, engine: str, trainer: str, packing: bool) -> None:
    """Raises EngineError with the remedy if `engine` cannot play this model, or `trainer` cannot train it.

    model: its name for messages. engine, trainer: the settings engine.type and trainer.type; trainer is "" if
    nothing is trained. packing: whether several episodes share a row of a batch.
    """
    for fault, remedy in _faults(config, engine, trainer, packing):
        raise EngineError(f"the model {model} ({config.model_type}) {fault}. {remedy}")


def _faults(config: Any, engine: str, trainer: str, packing: bool) -> Iterator[tuple[str, str]]:
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    others = sorted(kinds - {FULL, SLIDING})
    if (trainer or engine == "hf") and getattr(config, "quantization_config", None):
        method = dict(config.quantization_config).get("quant_method", "in a format of its own")
        yield (
            f"has quantised weights ({method}), which cannot be trained",
            "Set policy.model to its release in bfloat16.",
        )
    if SLIDING in kinds and not getattr(text, "sliding_window", None):
        yield "has sliding-window layers without sliding_window", "Add it to config.json."
    if trainer and packing and others:
        yield (
            f"has layers of type {others[0]!r}, which carry a state over to the next episode of a row",
            "Set trainer.packing = false.",
        )
    experts = next((key for key in EXPERTS if getattr(text, key, None)), "")
    if trainer == "deepspeed" and experts:
        yield (
            f"is a mixture of experts ({experts} = {getattr(text, experts)}), which the deepspeed trainer "
            "does not train",
            "Set trainer.type = 'torch'.",
        )
    if engine != "hf":
        return
    remedy = "Set engine.type = 'vllm' if vLLM knows it, or use another policy."
    if others:
        yield f"has layers of type {others[0]!r}; the hf engine plays full and sliding attention", remedy
    if getattr(text, "kv_lora_rank", None):
        yield "has latent attention (kv_lora_rank), which the hf engine does not cache", remedy
    if text.model_type in SINKS:
        yield "has attention sinks, which the hf engine does not compute", remedy
