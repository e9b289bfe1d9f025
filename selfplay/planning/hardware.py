"""Speeds of hardware: a decoding step, prefill, an update, a weight sync. Formulas, each with its source.

Invariant: a figure that was not measured is a field with a default. `hardware_assumptions` names its source.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.errors import UsageError
from selfplay.planning.workload import EpisodeMeans

BYTES = 2  # of a weight, and of a cached key or value, in bfloat16
# Bytes per parameter in training: fp32 master, two moments, gradient (Rajbhandari et al. 2020, ZeRO). The
# gathered bf16 copy is part of them.
TRAIN_BYTES = 16
MEMORY_SHARE = 0.9  # share of a GPU's memory that can be used
_MAX_REQUESTS = 512  # of a server
_LEAST_REQUESTS = 32  # episodes that a server should hold at once


@dataclass(frozen=True)
class ModelSize:
    """A decoder.

    width     width of the residual stream
    kv_width  width of all keys of a token in one layer: heads x head width
    """

    parameters: float
    layers: int
    width: int
    kv_width: int

    @property
    def kv_bytes(self) -> float:
        """Bytes of the keys and values of one token: 2 · layers · kv_width · 2."""
        return 2.0 * self.layers * self.kv_width * BYTES


def assumed_shape(parameters: float) -> ModelSize:
    """A usual dense decoder of this size: N = 12 L d², d = 96 L, 6 query heads per key head."""
    layers = max(1, round((parameters / (12 * 96**2)) ** (1 / 3)))
    width = max(8, round(math.sqrt(parameters / (12 * layers))))
    return ModelSize(parameters, layers, width, max(1, width // 6))


@dataclass(frozen=True)
class Gpu:
    """One GPU, and the share of its peak that is reached. Defaults: H100 SXM.

    peak_flops   dense bf16 FLOP/s; NVIDIA's data sheet: 989 TFLOP/s
    bandwidth    bytes/s of its memory; data sheet: 3.35 TB/s
    memory       bytes; data sheet: 80 GB
    mfu          share of peak_flops in training; 0.38: Llama 3 (arXiv 2407.21783) with sequences of 131,072
                 tokens
    read_mfu     share of peak_flops during prefill; assumed
    mbu          share of bandwidth during decoding; assumed
    step_s       fixed seconds of a decoding step (kernel launches, all-reduce); assumed
    link         bytes/s of the network link that weights go through; 50 GB/s: 400 Gbit/s, as in Llama 3's
                 cluster
    sync_fixed_s seconds of a weight sync that do not depend on its size (pause, resume, checks); assumed
    """

    peak_flops: float = 989e12
    bandwidth: float = 3.35e12
    memory: float = 80e9
    mfu: float = 0.38
    read_mfu: float = 0.5
    mbu: float = 0.6
    step_s: float = 0.005
    link: float = 50e9
    sync_fixed_s: float = 2.0


@dataclass(frozen=True)
class ServerSpeed:
    """Speed of a rollout server.

    most      requests that may run at once
    read_s    seconds per prefilled token
    measured  (running requests, seconds per token) of a measured server, in rising order

    With b running requests, each samples a token in

        token_s(b) = fixed_s + max(memory_s + memory_each_s · b, compute_each_s · b)

    a roofline with two sides that are linear in b. For a measured server token_s is linear between the points
    of `measured`, and constant before the first and after the last of them.
    """

    most: int
    fixed_s: float = 0.0
    memory_s: float = 0.0
    memory_each_s: float = 0.0
    compute_each_s: float = 0.0
    read_s: float = 0.0
    measured: tuple[tuple[float, float], ...] = ()

    def token_s(self, batch: int) -> float:
        if self.measured:
            weights = interpolation_weights([b for b, _ in self.measured], batch)
            return sum(weight * seconds for weight, (_, seconds) in zip(weights, self.measured, strict=True))
        return self.fixed_s + max(self.memory_s + self.memory_each_s * batch, self.compute_each_s * batch)

    def tokens_per_s(self, batch: int) -> float:
        """Tokens per second of the whole server."""
        return batch / self.token_s(batch)


def interpolation_weights(knots: Sequence[float], value: float) -> list[float]:
    """Weights of the rising `knots` for linear interpolation at `value`; they add up to 1.

    Outside the knots the nearest knot has all the weight.
    """
    weights = [0.0] * len(knots)
    after = bisect_right(knots, value)
    if after in (0, len(knots)):
        weights[min(after, len(knots) - 1)] = 1.0
    else:
        low, high = knots[after - 1], knots[after]
        weights[after] = (value - low) / (high - low)
        weights[after - 1] = 1 - weights[after]
    return weights


@dataclass(frozen=True)
class TrainerSpeed:
    """Seconds of an update: fixed_s + token_s · Σ T + square_s · Σ T² over its sequences of T tokens."""

    fixed_s: float = 0.0
    token_s: float = 0.0
    square_s: float = 0.0

    def seconds(self, tokens: float, squares: float) -> float:
        return self.fixed_s + self.token_s * tokens + self.square_s * squares


def server_speed(gpu: Gpu, model: ModelSize, gpus: int, means: EpisodeMeans) -> ServerSpeed:
    """Speed of a server with `gpus` GPUs in tensor parallel, by the roofline of a decoding step.

    A step reads every weight once, and the KV cache of each request (its mean context). It computes 2 N FLOP
    per request. The slower of reading and computing decides. The server runs as many requests as mean whole
    episodes fit beside the weights. Raises UsageError if not even one fits.
    """
    room = gpus * gpu.memory * MEMORY_SHARE - BYTES * model.parameters
    most = math.floor(room / (max(means.tokens, 1.0) * model.kv_bytes)) if room > 0 else 0
    if most < 1:
        raise UsageError(
            f"a server of {gpus} GPU(s) with {gpu.memory / 1e9:.0f} GB has no room for an episode of "
            f"{means.tokens:,.0f} tokens beside {model.parameters:.3g} parameters. "
            f"Give --server-gpus {2 * gpus}, or a larger --gpu-gb."
        )
    reach = gpus * gpu.bandwidth * gpu.mbu
    return ServerSpeed(
        most=min(most, _MAX_REQUESTS),
        fixed_s=gpu.step_s,
        memory_s=BYTES * model.parameters / reach,
        memory_each_s=means.context * model.kv_bytes / reach,
        compute_each_s=2 * model.parameters / (gpus * gpu.peak_flops * gpu.read_mfu),
        read_s=2 * model.parameters / (gpus * gpu.peak_flops * gpu.read_mfu),
    )


def choose_server_gpus(gpu: Gpu, model: ModelSize, means: EpisodeMeans, most: int = 8) -> int:
    """The smallest of 1, 2, 4 and 8 GPUs that holds the weights and 32 mean episodes; at most `most`."""
    needed = BYTES * model.parameters + _LEAST_REQUESTS * means.tokens * model.kv_bytes
    return next(
        (count for count in (1, 2, 4) if count * gpu.memory * MEMORY_SHARE >= needed and count <= most),
        min(8, most),
    )


def trainer_speed(gpu: Gpu, model: ModelSize, gpus: int) -> TrainerSpeed:
    """Speed of a trainer on `gpus` GPUs: FLOPs of the model over peak times MFU.

    FLOPs of a sequence of T tokens, forward and backward: 6 N T (Kaplan et al. 2020) + 6 L d T² of causal
    attention. In the forward pass of a layer QKᵀ and AV take 2 d T² each; the causal mask halves that. The
    backward pass takes twice as much. MFU as in Chowdhery et al. 2022 (PaLM): recomputed activations do not
    count.
    """
    reach = gpus * gpu.peak_flops * gpu.mfu
    return TrainerSpeed(0.0, 6 * model.parameters / reach, 6.0 * model.layers * model.width / reach)


def fewest_trainer_gpus(gpu: Gpu, model: ModelSize) -> int:
    """GPUs whose memory holds weights, gradients and optimiser states. Activations are left out."""
    return max(1, math.ceil(TRAIN_BYTES * model.parameters / (gpu.memory * MEMORY_SHARE)))


def sync_seconds(gpu: Gpu, model: ModelSize) -> float:
    """Seconds to send all weights once through one link (a pipelined broadcast), plus the fixed part."""
    return BYTES * model.parameters / gpu.link + gpu.sync_fixed_s


def hardware_assumptions(gpu: Gpu, model: ModelSize) -> tuple[str, ...]:
    """One sentence for each figure that was not measured here, with its source."""
    return (
        f"policy: {model.parameters:.3g} parameters, {model.layers} layers of width {model.width}, every "
        f"layer attends to the whole context, {model.kv_bytes / 1000:.0f} kB of keys and values per token",
        f"GPU: {gpu.peak_flops / 1e12:.0f} TFLOP/s dense bf16, {gpu.bandwidth / 1e12:.2f} TB/s, "
        f"{gpu.memory / 1e9:.0f} GB (defaults: NVIDIA's data sheet of the H100 SXM)",
        f"training: {gpu.mfu:.0%} of peak (default: Llama 3, arXiv 2407.21783, at 131,072 tokens); "
        "FLOPs 6 N T + 6 L d T^2",
        f"trainer memory: weights, gradients and moments need {fewest_trainer_gpus(gpu, model)} GPU(s); "
        "activations and logits are not counted here. `selfplay train --dry-run` with a recipe counts them, "
        "and names the trainer.sequence_parallel that fits",
        f"decoding: {gpu.mbu:.0%} of memory bandwidth and {1000 * gpu.step_s:g} ms a step; prefill: "
        f"{gpu.read_mfu:.0%} of peak (the defaults are our assumptions)",
        f"weight sync: 2 bytes per parameter at {gpu.link / 1e9:g} GB/s, plus {gpu.sync_fixed_s:g} s; the "
        "servers pause meanwhile, and every conversation is prefilled again afterwards (as our vLLM engine "
        "does)",
    )
