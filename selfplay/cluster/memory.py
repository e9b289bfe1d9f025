"""How much memory a model takes: as a trainer rank holds it under ZeRO, and as a rollout server holds it. Pure arithmetic on its shape.

Leaves machines to `placement`. Invariant: figures are bytes on one GPU (or in one process, where there is none), from formulas whose
source stands beside them; `docs/cluster.md` says how far each was from what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfplay.config import ShapeSettings, TrainerSettings
from selfplay.errors import PlacementError

GIB = 1 << 30
BUCKET = 50_000_000  # elements: selfplay/training/ranks/worker.py sets DeepSpeed's buckets to it
LIVE = 1_000_000_000  # elements that ZeRO-3 keeps gathered at most: DeepSpeed's stage3_max_live_parameters
RUNTIME_BYTES = int(1.5 * GIB)  # CUDA context, nccl's buffers, cuBLAS' workspaces: assumed
BATCHED_TOKENS = 8192  # that vLLM computes in one step: its default on large GPUs
GRAPH_BYTES = 2 * GIB  # vLLM's CUDA graphs and context: assumed

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder with gated feed-forward layers and grouped-query attention: Llama, Qwen2, Qwen3, CWM and their like."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def query(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Of a layer, by the names that transformers gives them: width in, width out."""
        into = {
            "q_proj": self.query,
            "k_proj": self.key,
            "v_proj": self.key,
            "gate_proj": self.intermediate,
            "up_proj": self.intermediate,
        }
        out_of = {"o_proj": self.query, "down_proj": self.intermediate}
        return {name: (self.hidden, width) for name, width in into.items()} | {
            name: (width, self.hidden) for name, width in out_of.items()
        }

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """Without biases and the norms of queries and keys, which are less than a thousandth."""
        return (
            self.layers * self.layer_parameters
            + self.hidden
            + self.vocabulary * self.hidden * (1 if self.tied else 2)
        )


def described_shape(name: str, shape: ShapeSettings) -> ModelShape:
    return read_shape(name, shape.model_dump())


def read_shape(name: str, config: Mapping[str, Any]) -> ModelShape:
    """From what a model's config.json holds. Raises PlacementError for a model of another kind."""
    if experts := [key for key in _EXPERTS if config.get(key)]:
        raise PlacementError(
            f"the model {name} is a mixture of experts ({experts[0]} = {config[experts[0]]}), whose memory --dry-run does not know. "
            "Describe a dense model of as many parameters in policy.shape, or start without --dry-run."
        )
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return ModelShape(
            name,
            hidden,
            int(config["num_hidden_layers"]),
            heads,
            int(config.get("num_key_value_heads") or heads),
            int(config.get("head_dim") or hidden // heads),
            int(config["intermediate_size"]),
            int(config["vocab_size"]),
            bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise PlacementError(
            f"the config.json of {name} has no {error}, so its memory is not known. Describe it in policy.shape."
        ) from error


def adapter_parameters(shape: ModelShape, settings: TrainerSettings) -> int:
    """An adapter's factors, A (rank, in) and B (out, rank) of each of its layers; 0 without one."""
    chosen = [
        sum(widths)
        for name, widths in shape.linears.items()
        if not settings.lora_layers or name in settings.lora_layers
    ]
    return shape.layers * settings.lora_rank * sum(chosen)


def activation_bytes(shape: ModelShape, bf16: bool = True, lora_rank: int = 0) -> int:
    """Per token and layer, what the backward pass needs of the forward pass.

    Counted as Korthikanti et al. do ("Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198), for what
    transformers computes here: the residual stream stays fp32 under autocast, norms keep an fp32 input and an fp32 normalised copy,
    matrix products keep their input in `unit` bytes, fused attention keeps queries, output and keys and values repeated for every head,
    no scores. An adapter adds what stands between its factors, whose A wants the input that the frozen matrix no longer does; frozen norms
    want no normalised copy.
    """
    unit = 2 if bf16 else 4
    norms = 2 * (4 + (0 if lora_rank else 4) + unit) * shape.hidden
    attention = 6 * unit * shape.query + 2 * unit * shape.key
    feed_forward = 4 * unit * shape.intermediate
    return norms + attention + feed_forward + unit * lora_rank * len(shape.linears)


def logit_bytes(shape: ModelShape, bf16: bool = True, anchored: bool = False) -> int:
    """Per action token, at the loss: the head's output, its fp32 copy and log-softmax, with the gradient of each, two at a time.

    selfplay/training/objective.py (`action_logits`, `weighed_losses`) computes the head for action tokens alone.
    """
    unit = 2 if bf16 else 4
    anchor = (
        unit + 4 + 4 + 4 + 4 if anchored else 0
    )  # its head's output, copy and log-softmax; probabilities and their gaps
    return (unit + 4 + 4 + 4 + anchor) * shape.vocabulary


def trainer_bytes(
    shape: ModelShape, settings: TrainerSettings, context_tokens: int, action_share: float
) -> dict[str, int]:
    """On one rank: weights, gradients, optimiser, activations, logits, working.

    Shares as in Rajbhandari et al. ("ZeRO", arXiv 1910.02054, section 5) with 4 bytes each for weights, gradients and both moments, since
    masters are fp32 and bf16 is made of them in matrix products alone; an anchor is a second, frozen copy of the weights.
    DeepSpeed 0.19.8: stages 1 and 2 clone a rank's share as the optimiser's master, stage 3 takes the share itself. The torch trainer
    holds what stage 0 does. With an adapter gradients and optimiser are of its factors alone.
    A micro-batch holds `batch_tokens`, or one episode of `context_tokens` where that is more.
    """
    total = 4 * (shape.parameters + adapter_parameters(shape, settings))
    trained = _trained_bytes(shape, settings)
    ranks = settings.ranks
    stage = settings.zero_stage if settings.type == "deepspeed" else 0
    share = -(-trained // ranks)
    off = settings.offload
    held = total + (4 * shape.parameters if settings.kl_coef else 0)
    weights = -(-held // ranks) if stage == 3 else held
    gradients = (share if stage >= 2 else trained) if not off or stage == 1 else 0
    masters = share if stage in (1, 2) else 0
    moments = 2 * (share if stage else trained)
    tokens = max(settings.batch_tokens, context_tokens)
    layer = activation_bytes(shape, settings.bf16, settings.lora_rank)
    kept = (
        shape.layers * 4 * shape.hidden + layer if settings.activation_checkpointing else shape.layers * layer
    )
    working = RUNTIME_BYTES
    if settings.type == "deepspeed":
        working += 2 * 4 * BUCKET
    if stage == 3:
        # Gathered at a time: layers as bf16, and the largest matrix that is not part of one, the embedding, as fp32.
        working += 2 * min(shape.parameters, LIVE) + 4 * shape.vocabulary * shape.hidden
    return {
        "weights": weights,
        "gradients": gradients,
        "optimiser": 0 if off else masters + moments,
        "activations": tokens * kept,
        "logits": int(tokens * action_share)
        * logit_bytes(shape, settings.bf16, anchored=settings.kl_coef > 0),
        "working": working,
    }


def trainer_host_bytes(shape: ModelShape, settings: TrainerSettings) -> int:
    """In main memory for one rank: what `offload` moves there (a master, a gradient and both moments of its share)."""
    return 4 * -(-_trained_bytes(shape, settings) // settings.ranks) if settings.offload else 0


def _trained_bytes(shape: ModelShape, settings: TrainerSettings) -> int:
    """One fp32 copy of what the optimiser holds."""
    return 4 * (adapter_parameters(shape, settings) if settings.lora_rank else shape.parameters)


def cache_bytes_per_token(shape: ModelShape, tensor_parallel: int, unit: int = 2) -> int:
    """A key and a value of every layer on one of a server's GPUs; heads are shared out, and each GPU has at least one.

    Kwon et al. ("PagedAttention", arXiv 2309.06180, section 3).
    """
    return 2 * shape.layers * max(1, -(-shape.kv_heads // tensor_parallel)) * shape.head_dim * unit


def server_bytes(
    shape: ModelShape, budget: int, tensor_parallel: int, max_batch: int, unit: int = 2
) -> dict[str, int]:
    """On one of a server's GPUs that may take `budget` bytes: weights, working, and the cache of keys and values with what is left.

    working: one step of BATCHED_TOKENS tokens (vLLM measures it at its start), fp32 logits and probabilities of `max_batch` requests.
    The cache is negative where weights alone do not fit.
    """
    weights = -(-unit * shape.parameters // tensor_parallel)
    step = (
        BATCHED_TOKENS
        * unit
        * (4 * shape.hidden + (shape.query + 2 * shape.key + 3 * shape.intermediate) // tensor_parallel)
    )
    working = GRAPH_BYTES + step + 2 * 4 * max_batch * shape.vocabulary
    return {"weights": weights, "working": working, "cache": budget - weights - working}
