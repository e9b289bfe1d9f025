"""Tokens/s and peak memory of one update, by the torch, DeepSpeed and (if installed) TRL GRPO trainers.

    python -m benchmarks.training

All get the same sequences and model, which is untrained and of the carried policy's size. Supervised steps
are measured too. Speeds are shares of the floor: bare matrix products of 6·N FLOP per token in the precision
that `trainer.bf16 = "auto"` chooses here, without attention.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.options import at_least_one
from benchmarks.rollouts import make_model
from benchmarks.training_workers import Figures
from selfplay.agent.chat import policy_path
from selfplay.engines.models import load_causal_model
from selfplay.engines.precision import trains_in_bf16
from selfplay.settings.learning import TrainerSettings
from selfplay.training.batch import Sample
from selfplay.training.deepspeed_trainer import DeepSpeedTrainer
from selfplay.training.ranks.controller import Ranks
from selfplay.warm_start.documents import Document
from selfplay.warm_start.sft import SftSettings, pack, train


def matrix_flops(dtype: torch.dtype, size: int = 1024, seconds: float = 1.0) -> float:
    """FLOP/s of bare products of square matrices, the named reference."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    left @ right
    started, done = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        left @ right
        done += 1
    return 2 * size**3 * done / (time.monotonic() - started)


def make_samples(episodes: int, longest: int, group: int = 1) -> list[Sample]:
    """Return samples of `longest` / 2 to `longest` tokens.

    A tenth are actions, in turns of 20, as in real episodes. With a group of more than 1 so many samples
    have the same prompt, of a third of the longest.
    """
    rng = random.Random(0)
    made = []
    prompt: list[int] = []
    first_action = longest // 3 if group > 1 else 100
    for number in range(episodes):
        length = rng.randint(longest // 2, longest)
        ids = [rng.randrange(5, 1000) for _ in range(length)]
        if group > 1:
            prompt = ids[:first_action] if number % group == 0 else prompt
            ids[:first_action] = prompt
        mask = [int(index >= first_action and index % 200 < 20) for index in range(length - 1)] + [1]
        made.append(Sample(ids, mask, [-7.0] * length, (-1.0) ** number, "solver"))
    return made


def alone(name: str, *arguments: Any) -> Figures:
    """Run one method of `Alone` in a process of its own."""
    ranks = Ranks(1, worker="benchmarks.training_workers:Alone")
    try:
        return ranks.call(name, arguments)[0]
    finally:
        ranks.close()


def with_deepspeed(
    folder: str, settings: TrainerSettings, context: int, samples: Sequence[Sample], steps: int
) -> Figures:
    ranks = Ranks(settings.ranks, worker="benchmarks.training_workers:MeasuredRank")
    try:
        before = ranks.call("resident")
        trainer = DeepSpeedTrainer(folder, settings, context, seed=0, ranks=ranks)
        trainer.step(samples[:2])
        metrics = [trainer.step(samples) for _ in range(steps)]
        grown = max(peak - rest for peak, rest in zip(ranks.call("peak"), before, strict=True))
        seconds = median(row["seconds"] for row in metrics)
        return Figures(seconds, grown, metrics[-1]["loss"], metrics[-1]["grad_norm"])
    finally:
        ranks.close()


def supervised(folder: Path, samples: Sequence[Sample], rows: int, compiled: bool) -> float:
    """Return tokens/s, padding included."""
    batch = pack([Document(s.token_ids[:512], [1.0] * len(s.token_ids[:512])) for s in samples], rows, 512)[0]
    speeds: list[float] = []
    model = load_causal_model(folder, torch.float32)
    train(
        model,
        lambda _: batch,
        SftSettings(steps=6, compile="step" if compiled else ""),
        lambda p: speeds.append(p.tokens_per_s),
    )
    return median(speeds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=at_least_one, default=16)
    parser.add_argument(
        "--tokens", type=at_least_one, default=1024, help="of the longest episode; the shortest has half"
    )
    parser.add_argument("--steps", type=at_least_one, default=3)
    parser.add_argument(
        "--batch-tokens", type=at_least_one, default=8192, help="of one micro-batch, of every trainer"
    )
    parser.add_argument(
        "--ranks", type=int, nargs="*", default=[1, 2], help="of the DeepSpeed trainer; none leaves it out"
    )
    parser.add_argument("--stages", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--rows", type=at_least_one, default=16, help="supervised rows of 512 tokens a step")
    parser.add_argument("--no-supervised", action="store_true")
    parser.add_argument(
        "--group", type=at_least_one, default=8, help="episodes with the same prompt; 1: no two have one"
    )
    parser.add_argument("--model", default="untrained", help='"untrained", "smollm2", a folder')
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (
            make_model(Path(scratch)) if options.model == "untrained" else Path(policy_path(options.model))
        )
        samples = make_samples(options.episodes, options.tokens, options.group)
        tokens = sum(len(s.token_ids) for s in samples)
        weights = sum(
            parameter.numel() for parameter in load_causal_model(folder, torch.float32).parameters()
        )
        dtype = torch.bfloat16 if trains_in_bf16("auto", torch.cuda.is_available()) else torch.float32
        floor = matrix_flops(dtype) / (6 * weights)
        print(
            f"floor: {floor:.0f} tokens/s ({weights / 1e6:.1f}M weights, 6 FLOP per weight and token, "
            f"at the speed of bare products in {str(dtype).removeprefix('torch.')})"
        )
        # TRL's rate does not warm up. With equal rates the losses and norms can be compared.
        settings = TrainerSettings(batch_tokens=options.batch_tokens, warmup_updates=0)
        found: dict[str, Figures] = {}

        def show(name: str, figures: Figures) -> None:
            found[name] = figures
            speed = tokens / figures.seconds
            beside = ""
            if "TRL" in found and name != "TRL":
                beside = f", {found['TRL'].seconds / figures.seconds:.2f} times TRL"
                if figures.cpu_seconds:
                    beside += f" ({found['TRL'].cpu_seconds / figures.cpu_seconds:.2f} in CPU time)"
            print(
                f"{name}: {speed:.0f} tokens/s, {speed / floor:.2f} of the floor{beside}; "
                f"peak {figures.grown_bytes / 2**20:.0f} MiB per process above the start; "
                f"loss {figures.loss:.6f}, norm {figures.grad_norm:.5f}",
                flush=True,
            )

        print(
            f"{options.episodes} episodes, {tokens} tokens per update, "
            f"{options.batch_tokens} per micro-batch, "
            f"groups of {options.group}, medians of {options.steps} updates"
        )
        measured = (str(folder), settings, options.tokens, samples, options.steps)
        if importlib.util.find_spec("trl"):
            show("TRL", alone("measure_trl", *measured))
        else:
            print("TRL: not installed (pip install trl)")
        show("torch", alone("measure_torch", *measured))
        separate = settings.model_copy(update={"shared_prompts": False})
        show("torch, prompts not shared", alone("measure_torch", str(folder), separate, *measured[2:]))
        if not options.no_compile:
            compiled = settings.model_copy(update={"compile": True})
            show("torch, compiled", alone("measure_torch", str(folder), compiled, *measured[2:]))
        if importlib.util.find_spec("deepspeed") is None:
            print("DeepSpeed: not installed (DS_BUILD_OPS=0 pip install 'selfplay-swe[deepspeed]')")
            options.ranks = []
        for ranks in options.ranks:
            for stage in options.stages:
                settings = separate.model_copy(
                    update={"type": "deepspeed", "ranks": ranks, "zero_stage": stage}
                )
                show(
                    f"DeepSpeed, {ranks} rank(s), stage {stage}",
                    with_deepspeed(str(folder), settings, *measured[2:]),
                )
        if not options.no_supervised:
            speed = supervised(folder, samples, options.rows, not options.no_compile)
            print(f"supervised: {speed:.0f} tokens/s, {speed / floor:.2f} of the floor")


if __name__ == "__main__":
    main()
