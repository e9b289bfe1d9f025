"""How fast hardware is: a rollout server's step, reading a prompt, an update, a weight sync. Formulas, each with its source; no simulation.

Invariant: a figure that was not measured is a field with a default, and `assumptions` names where it comes from.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.errors import UsageError
from selfplay.planning.workload import EpisodeMeans

BYTES = 2  # of a weight or a cached key or value in bfloat16
TRAIN_BYTES = 16  # a parameter: fp32 master, both moments, gradient (Rajbhandari et al. 2020, ZeRO, with the bf16 copy gathered)
MEMORY_SHARE = 0.9  # of a GPU's memory that is to be had


@dataclass(frozen=True)
class ModelSize:
    """A decoder. width: of the residual stream. kv_width: of all keys of one token in one layer (heads x their width)."""

    parameters: float
    layers: int
    width: int
    kv_width: int

    @property
    def kv_bytes(self) -> float:
        """Bytes of a token's keys and values: 2 · layers · kv_width · 2."""
        return 2.0 * self.layers * self.kv_width * BYTES

    def train_flops(self, tokens: float) -> float:
        """Forward and backward of one sequence: 6 N T (Kaplan et al. 2020) and 6 L d T² of causal attention.

        Attention: QKᵀ and AV take 2 d T² each in a layer's forward pass, half of it under the causal mask, backward twice that.
        """
        return 6.0 * self.parameters * tokens + 6.0 * self.layers * self.width * tokens**2


PAPER_MODEL = ModelSize(32e9, 64, 6144, 8 * 128)


def assumed_shape(parameters: float) -> ModelSize:
    """Layers and width of a dense model of so many parameters, with N = 12 L d², d = 96 L, and 6 query heads to a key head."""
    layers = max(1, round((parameters / (12 * 96**2)) ** (1 / 3)))
    width = max(8, round(math.sqrt(parameters / (12 * layers))))
    return ModelSize(parameters, layers, width, max(1, width // 6))


@dataclass(frozen=True)
class Gpu:
    """One GPU and how much of it is reached. Defaults: H100 SXM.

    peak_flops   dense bf16 FLOP/s; NVIDIA's data sheet: 989 TFLOP/s
    bandwidth    bytes/s of its memory; data sheet: 3.35 TB/s
    memory       bytes; data sheet: 80 GB
    mfu          share of peak_flops in training; 0.38: Llama 3 (arXiv 2407.21783) with sequences of 131,072 tokens
    read_mfu     share of peak_flops while prompts are read; assumed
    mbu          share of bandwidth while tokens are drawn; assumed
    step_s       fixed seconds of a decoding step (launching, all-reduce); assumed
    link         bytes/s of a GPU's network link, which weights go through; 50 GB/s: 400 Gbit/s, as in Llama 3's cluster
    sync_fixed_s seconds of a weight sync whatever its size (pause, resume, checks); assumed
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
    """A rollout server: `token_s(b)` seconds a token of each of b running requests, `read_s` seconds a prompt token, `most` requests.

    token_s is fixed_s + max(memory_s + memory_each_s · b, compute_each_s · b): a roofline whose two sides are straight lines in b;
    of a measured server the line through `measured` (b, seconds a token), level before its first point and after its last.
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
            return sum(
                share * seconds
                for share, (_, seconds) in zip(
                    hats([b for b, _ in self.measured], batch), self.measured, strict=True
                )
            )
        return self.fixed_s + max(self.memory_s + self.memory_each_s * batch, self.compute_each_s * batch)

    def tokens_per_s(self, batch: int) -> float:
        """Of the whole server."""
        return batch / self.token_s(batch)


def hats(knots: Sequence[float], value: float) -> list[float]:
    """Weights of the knots (rising) in a straight line between the two around `value`; they add up to 1."""
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
    """A server of `gpus` GPUs in tensor parallel, by the roofline of a decoding step.

    Each step reads every weight once and each request's cache (its mean context while drawing) from memory, and computes 2 N FLOP a
    request; the slower of the two holds. At most as many requests run as have room for the mean whole episode beside the weights.
    """
    room = gpus * gpu.memory * MEMORY_SHARE - BYTES * model.parameters
    most = math.floor(room / (max(means.tokens, 1.0) * model.kv_bytes)) if room > 0 else 0
    if most < 1:
        raise UsageError(
            f"a server of {gpus} GPU(s) with {gpu.memory / 1e9:.0f} GB holds {model.parameters:.3g} parameters and no episode of "
            f"{means.tokens:,.0f} tokens beside them. Give --server-gpus {2 * gpus} or --gpu-gb of larger GPUs."
        )
    reach = gpus * gpu.bandwidth * gpu.mbu
    return ServerSpeed(
        most=min(most, 512),
        fixed_s=gpu.step_s,
        memory_s=BYTES * model.parameters / reach,
        memory_each_s=means.context * model.kv_bytes / reach,
        compute_each_s=2 * model.parameters / (gpus * gpu.peak_flops * gpu.read_mfu),
        read_s=2 * model.parameters / (gpus * gpu.peak_flops * gpu.read_mfu),
    )


def choose_server_gpus(gpu: Gpu, model: ModelSize, means: EpisodeMeans, most: int = 8) -> int:
    """The fewest GPUs (1, 2, 4, 8) that hold the weights and 32 mean episodes."""
    needed = BYTES * model.parameters + 32 * means.tokens * model.kv_bytes
    return next(
        (count for count in (1, 2, 4) if count * gpu.memory * MEMORY_SHARE >= needed and count <= most),
        min(8, most),
    )


def trainer_speed(gpu: Gpu, model: ModelSize, gpus: int) -> TrainerSpeed:
    """The model's FLOPs over peak times MFU (Chowdhery et al. 2022, PaLM: recomputed activations do not count)."""
    reach = gpus * gpu.peak_flops * gpu.mfu
    return TrainerSpeed(0.0, 6 * model.parameters / reach, 6.0 * model.layers * model.width / reach)


def fewest_trainer_gpus(gpu: Gpu, model: ModelSize) -> int:
    """GPUs whose memory holds weights, gradients and optimiser states, activations left out."""
    return max(1, math.ceil(TRAIN_BYTES * model.parameters / (gpu.memory * MEMORY_SHARE)))


def sync_seconds(gpu: Gpu, model: ModelSize) -> float:
    """All weights once through one link (a pipelined broadcast), and the fixed part."""
    return BYTES * model.parameters / gpu.link + gpu.sync_fixed_s


def hardware_assumptions(gpu: Gpu, model: ModelSize) -> tuple[str, ...]:
    """Sentences for the output: each figure that nobody measured here, with its source."""
    return (
        f"policy: {model.parameters:.3g} parameters, {model.layers} layers of width {model.width}, all attention over the whole context, "
        f"{model.kv_bytes / 1000:.0f} kB of keys and values a token",
        f"GPU: {gpu.peak_flops / 1e12:.0f} TFLOP/s dense bf16, {gpu.bandwidth / 1e12:.2f} TB/s, {gpu.memory / 1e9:.0f} GB "
        "(defaults: NVIDIA's data sheet of the H100 SXM)",
        f"training: {gpu.mfu:.0%} of peak (default: Llama 3, arXiv 2407.21783, at 131,072 tokens); FLOPs 6 N T + 6 L d T^2",
        f"drawing: {gpu.mbu:.0%} of memory bandwidth and {1000 * gpu.step_s:g} ms a step; reading prompts: {gpu.read_mfu:.0%} of peak "
        "(defaults are assumptions of ours)",
        f"weight sync: 2 bytes a parameter at {gpu.link / 1e9:g} GB/s and {gpu.sync_fixed_s:g} s, servers paused meanwhile; "
        "every cached conversation is read anew after it (as our vLLM engine does)",
    )
