"""Tokens/s of the embedded engine against a plain `model.generate` on the same prompts, in the same run. Prints the ratio."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from selfplay.engines.base import GenerationRequest, Sampling
from selfplay.engines.hf_engine import HFEngine


def make_model(folder: Path, vocabulary: int = 1024) -> Path:
    """An untrained Qwen3-shaped model of the carried policy's size (4.2M parameters)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model folder; without it an untrained one of 4.2M parameters")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--prompt-tokens", type=int, default=800)
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--distinct", type=int, default=0, help="different prompts (0: all); a group's episodes share theirs")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or make_model(Path(scratch))
        engine = HFEngine(folder, max_batch=options.requests, dtype=dtype)
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        generator = torch.Generator().manual_seed(0)
        count = options.distinct or options.requests
        prompts = torch.randint(5, 1000, (count, options.prompt_tokens), generator=generator).repeat(-(-options.requests // count), 1)
        prompts = prompts[: options.requests]
        requests = [GenerationRequest(tuple(prompt.tolist()), options.new_tokens, seed, frozenset()) for seed, prompt in enumerate(prompts)]
        tokens = options.requests * options.new_tokens
        engine.generate(requests[:2], Sampling())
        started = time.monotonic()
        done = engine.generate(requests, Sampling())
        ours = tokens / (time.monotonic() - started)
        started = time.monotonic()
        with torch.inference_mode():
            model.generate(
                prompts, attention_mask=torch.ones_like(prompts), min_new_tokens=options.new_tokens, max_new_tokens=options.new_tokens,
                do_sample=True, top_k=0, top_p=1.0, temperature=1.0, pad_token_id=0,
            )  # fmt: skip
        plain = tokens / (time.monotonic() - started)
        with torch.inference_mode():
            ids = torch.tensor([list(r.prompt_ids + c.token_ids) for r, c in zip(requests[:4], done[:4], strict=True)])
            with torch.autocast("cpu", torch.bfloat16):
                logits = model.float()(ids).logits[:, options.prompt_tokens - 1 : -1]
            trainer = torch.log_softmax(logits.float(), -1).gather(2, ids[:, options.prompt_tokens :, None])[..., 0]
            gap = (trainer - torch.tensor([c.logprobs for c in done[:4]])).abs().mean().item()
        engine.close()
    print(f"engine {ours:.0f} new tokens/s, model.generate {plain:.0f}, ratio {ours / plain:.2f}; gap to bf16 autocast {gap:.4f}")


if __name__ == "__main__":
    main()
