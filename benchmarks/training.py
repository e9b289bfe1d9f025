"""Tokens/s of one update of the torch trainer and of supervised steps, as shares of the floor: bare bf16 matrix products of 6·N per token.

Run: python -m benchmarks.training. The model is untrained and of the carried policy's size; attention is not counted in the floor.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.rollouts import make_model
from selfplay.config import TrainerSettings
from selfplay.models import load_causal_model
from selfplay.training.batch import Sample
from selfplay.training.sft import Document, SftSettings, pack, train
from selfplay.training.torch_trainer import TorchTrainer


def matrix_flops(size: int = 1024, seconds: float = 1.0) -> float:
    """FLOP/s of bare bf16 products of square matrices, the named reference."""
    left, right = torch.randn(size, size).bfloat16(), torch.randn(size, size).bfloat16()
    left @ right
    started, done = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        left @ right
        done += 1
    return 2 * size**3 * done / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--rows", type=int, default=16, help="supervised rows of 512 tokens a step")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch))
        trainer = TorchTrainer(folder, TrainerSettings(), 1024, seed=0)
        ids = torch.randint(5, 1000, (options.episodes, options.tokens), generator=torch.Generator().manual_seed(0)).tolist()
        mask = [int(place % 10 == 9) for place in range(options.tokens)]
        samples = [Sample(row, mask, [-7.0] * options.tokens, (-1.0) ** i, "solver") for i, row in enumerate(ids)]
        trainer.step(samples[:2])
        trained = trainer.step(samples)["tokens_per_s"]
        batch = pack([Document(row[:512], [1.0] * len(row[:512])) for row in ids], options.rows, 512)[0]
        speeds: list[float] = []
        model = load_causal_model(folder, torch.float32)
        train(model, lambda _: batch, SftSettings(steps=6, compile=not options.no_compile), lambda p: speeds.append(p.tokens_per_s))
        supervised = sorted(speeds[1:])[2]
        weights = sum(parameter.numel() for parameter in model.parameters())
        floor = matrix_flops() / (6 * weights)
        print(f"floor: {floor:.0f} tokens/s ({weights / 1e6:.1f}M weights, 6 FLOP each a token, at the speed of bare bf16 products)")
        print(
            f"trainer: {trained:.0f} tokens/s, {trained / floor:.2f} of the floor ({options.episodes} episodes of {options.tokens} tokens)"
        )
        print(f"supervised: {supervised:.0f} tokens/s, {supervised / floor:.2f} of the floor")


if __name__ == "__main__":
    main()
