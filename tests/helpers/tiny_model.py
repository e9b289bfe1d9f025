"""A tiny untrained Qwen3-shaped model in a folder, for tests of engines and trainers."""

from pathlib import Path
from typing import Any

import torch


def make_tiny_model(folder: Path, vocabulary: int = 50, layers: int = 2) -> Path:
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


# The shapes of model families: sizes as above, a window that short prompts leave, one full layer at least.
COMMON = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "cwm": {
        "num_hidden_layers": 4,
        "sliding_window": 7,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 16.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {"num_hidden_layers": 2, "sliding_window": 7},
    "gemma2": {
        "num_hidden_layers": 3,
        "sliding_window": 7,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": {
        "num_hidden_layers": 3,
        "sliding_window": 7,
        "sliding_window_pattern": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
    "gemma3": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 49,
        "boi_token_index": 48,
        "eoi_token_index": 47,
    },
    "granite": {"num_hidden_layers": 2, "logits_scaling": 3.0},
    "qwen3_moe": {
        "num_hidden_layers": 3,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
}


def make_tiny_shape(folder: Path, kind: str, **changes: Any) -> Path:
    """Save an untrained model of a family of SHAPES. `changes` go into its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    values = {**SHAPES[kind], **changes}
    if "vision_config" in values:  # a model that reads images too: its text has a configuration of its own
        config = AutoConfig.for_model(kind, text_config=COMMON | SHAPES[f"{kind}_text"], **values)
    else:
        config = AutoConfig.for_model(kind, **COMMON | values)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
