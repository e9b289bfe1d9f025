"""Tokens/s of one update of the torch trainer and of supervised steps, on an untrained model of the carried policy's size."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from benchmarks.rollouts import make_model

from selfplay.config import TrainerSettings
from selfplay.training.batch import Sample
from selfplay.training.sft import Document, SftSettings, pack, train
from selfplay.training.torch_trainer import TorchTrainer, load_causal_model


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
        print(f"trainer: {trainer.step(samples)['tokens_per_s']:.0f} tokens/s ({options.episodes} episodes of {options.tokens} tokens)")
        batch = pack([Document(row[:512], [1.0] * len(row[:512])) for row in ids], options.rows, 512)[0]
        speeds: list[float] = []
        started = time.monotonic()
        model = load_causal_model(folder, torch.float32)
        train(model, lambda _: batch, SftSettings(steps=6, compile=not options.no_compile), lambda p: speeds.append(p.tokens_per_s))
        print(f"supervised: {sorted(speeds[1:])[2]:.0f} tokens/s, all 6 steps {time.monotonic() - started:.0f} s, the first compiles")


if __name__ == "__main__":
    main()
