"""Memory of a model: on a trainer rank under ZeRO, and on a rollout server. Pure arithmetic on its shape.

Machines are in `placement`. Invariant: figures are bytes on one GPU, or in one process where there is no GPU.
Each formula names its source; `docs/cluster.md` compares them with measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfplay.engines.architectures import EXPERTS
from selfplay.errors import PlacementError
from selfplay.settings.learning import ShapeSettings, TrainerSettings

GIB = 1 << 30
BUCKET = 50_000_000  # elements of DeepSpeed's buckets, as set in selfplay/training/ranks/worker.py
LIVE = 1_000_000_000  # most elements that ZeRO-3 keeps gathered: DeepSpeed's stage3_max_live_parameters
RUNTIME_BYTES = int(1.5 * GIB)  # CUDA context, NCCL buffers, cuBLAS workspaces; assumed
BATCHED_TOKENS = 8192  # tokens that vLLM computes in one step: its default on large GPUs
GRAPH_BYTES = 2 * GIB  # CUDA graphs and CUDA context of vLLM; assumed


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder with gated feed-forward layers and grouped-query attention (Llama, Qwen2, Qwen3, CWM).

    kv_heads      heads of keys, and of values
    intermediate  width inside a feed-forward layer
    tied          input embedding and output head share their weights
    """

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
        """Width of all queries of a token in one layer."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all keys of a token in one layer; the values are as wide."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The matrices of a layer by their names in transformers: (input width, output width)."""
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
        """All parameters except biases and the norms of queries and keys, which are less than 0.1 %."""
        return (
            self.layers * self.layer_parameters
            + self.hidden
            + self.vocabulary * self.hidden * (1 if self.tied else 2)
        )


def described_shape(name: str, shape: ShapeSettings) -> ModelShape:
    """The shape that the setting `policy.shape` describes."""
    return read_shape(name, shape.model_dump())


def read_shape(name: str, config: Mapping[str, Any]) -> ModelShape:
    """The shape from the contents of a model's config.json.

    Raises PlacementError for any other kind of model.
    """
    if experts := [key for key in EXPERTS if config.get(key)]:
        raise PlacementError(
            f"the model {name} is a mixture of experts ({experts[0]} = {config[experts[0]]}), whose memory "
            "--dry-run cannot estimate. Describe a dense model with as many parameters in policy.shape, or "
            "start without --dry-run."
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
            f"the config.json of {name} has no {error}, so its memory cannot be estimated. Describe the "
            "model in policy.shape."
        ) from error


def adapter_parameters(shape: ModelShape, settings: TrainerSettings) -> int:
    """Parameters of a LoRA adapter; 0 without one.

    Each adapted matrix has factors A (rank, in) and B (out, rank).
    """
    chosen = [
        sum(widths)
        for name, widths in shape.linears.items()
        if not settings.lora_layers or name in settings.lora_layers
    ]
    return shape.layers * settings.lora_rank * sum(chosen)


def activation_bytes(shape: ModelShape, bf16: bool = True, lora_rank: int = 0) -> int:
    """Bytes per token and layer that the forward pass keeps for the backward pass.

    Counted as in Korthikanti et al. ("Reducing Activation Recomputation in Large Transformer Models", arXiv
    2205.05198), for what transformers computes here:

    - Under autocast the residual stream stays fp32. A norm keeps an fp32 input and an fp32 normalised copy.
    - A matrix product keeps its input in `unit` bytes.
    - Fused attention keeps queries, output, and keys and values repeated for every head, but no scores.
    - An adapter also keeps the tensor between its factors. Its A needs the input that the frozen matrix no
      longer needs. Frozen norms need no normalised copy.
    """
    unit = 2 if bf16 else 4
    norms = 2 * (4 + (0 if lora_rank else 4) + unit) * shape.hidden
    attention = 6 * unit * shape.query + 2 * unit * shape.key
    feed_forward = 4 * unit * shape.intermediate
    return norms + attention + feed_forward + unit * lora_rank * len(shape.linears)


def logit_bytes(shape: ModelShape, bf16: bool = True, with_reference: bool = False) -> int:
    """Bytes per action token at the loss.

    These are the head's output, its fp32 copy and its log-softmax, with their gradients, two at a time. The
    head runs for action tokens only (selfplay/training/objective.py). with_reference: a reference policy adds
    its own output, copy and log-softmax, the probabilities and their differences.
    """
    unit = 2 if bf16 else 4
    reference = unit + 4 + 4 + 4 + 4 if with_reference else 0
    return (unit + 4 + 4 + 4 + reference) * shape.vocabulary


def trainer_bytes(
    shape: ModelShape, settings: TrainerSettings, context_tokens: int, action_share: float
) -> dict[str, int]:
    """Bytes on one rank, by part: weights, gradients, optimiser, activations, logits, working.

    Shares are as in Rajbhandari et al. ("ZeRO", arXiv 1910.02054, section 5). Weights, gradients and both
    moments take 4 bytes each: masters are fp32, and bf16 copies exist only in matrix products. A reference
    policy is a second, frozen copy of the weights; with an adapter it is the base, without a copy. In
    DeepSpeed 0.19.8 stages 1 and 2 clone a rank's share as the optimiser's master; stage 3 uses the share
    itself. The torch trainer holds the same as stage 0. With an adapter, gradients and optimiser exist only
    for its factors.

    Ranks that compute sequences together (`trainer.sequence_parallel`) share out activations and logits.

    settings        `bf16 = "auto"` counts as true
    context_tokens  tokens of an episode; a micro-batch holds `batch_tokens`, or one episode if that is longer
    action_share    share of the tokens that are action tokens
    """
    total = 4 * (shape.parameters + adapter_parameters(shape, settings))
    trained = _trained_bytes(shape, settings)
    ranks = settings.ranks
    stage = settings.zero_stage if settings.type == "deepspeed" else 0
    share = -(-trained // ranks)
    off = settings.offload
    held = total + (4 * shape.parameters if settings.kl_coef and not settings.lora_rank else 0)
    weights = (0 if settings.offload_weights else -(-held // ranks)) if stage == 3 else held
    gradients = (share if stage >= 2 else trained) if not off or stage == 1 else 0
    masters = share if stage in (1, 2) else 0
    moments = 2 * (share if stage else trained)
    tokens = rank_tokens(settings, context_tokens)
    working = RUNTIME_BYTES
    if settings.type == "deepspeed":
        working += 2 * 4 * BUCKET
    if stage == 3:
        # Gathered at a time: layers as bf16, and the largest other matrix, the embedding, as fp32.
        working += 2 * min(shape.parameters, LIVE) + 4 * shape.vocabulary * shape.hidden
    return {
        "weights": weights,
        "gradients": gradients,
        "optimiser": 0 if off else masters + moments,
        "activations": tokens * _kept_bytes(shape, settings),
        "logits": _loss_bytes(shape, settings, int(tokens * action_share)),
        "working": working,
    }


def rank_tokens(settings: TrainerSettings, context_tokens: int) -> int:
    """Tokens of a micro-batch that one rank computes."""
    return -(-max(settings.batch_tokens, context_tokens) // settings.sequence_parallel)


def _kept_bytes(shape: ModelShape, settings: TrainerSettings) -> int:
    """Bytes for each token of a rank that stay on its GPU from the forward to the backward pass.

    With checkpointing these are the fp32 input of each layer, and one layer whole. In `offload_activations`
    the inputs are in main memory. Ulysses attention holds queries, keys, values and output once more while
    they are exchanged (arXiv 2309.14509, section 3.2).
    """
    layer = activation_bytes(shape, bool(settings.bf16), settings.lora_rank)
    exchanged = 0
    if settings.sequence_parallel > 1:
        exchanged = (2 if settings.bf16 else 4) * 2 * (shape.query + shape.key)
    if not settings.activation_checkpointing:
        return shape.layers * layer + exchanged
    inputs = 0 if settings.offload_activations else shape.layers * 4 * shape.hidden
    return inputs + layer + exchanged


def _loss_bytes(shape: ModelShape, settings: TrainerSettings, actions: int) -> int:
    """Bytes at the loss of a rank's action tokens. See `logit_bytes`.

    In chunks (`logit_tokens`) only one chunk's logits exist. All action tokens' hidden states, with their
    gradients, stay, and the head's gradient exists twice while a chunk adds to it.
    """
    each = logit_bytes(shape, bool(settings.bf16), with_reference=settings.kl_coef > 0)
    if not settings.logit_tokens:
        return actions * each
    head = (2 if settings.bf16 else 4) * shape.vocabulary * shape.hidden
    states = 3 if settings.kl_coef else 2  # the hidden ones, their gradients, and those of a reference policy
    return min(actions, settings.logit_tokens) * each + actions * states * 4 * shape.hidden + head


def trainer_host_bytes(shape: ModelShape, settings: TrainerSettings, context_tokens: int = 0) -> int:
    """Bytes of main memory per rank: what the settings move there.

    `offload` moves the master copy, the gradient and both moments of the rank's share; `offload_weights` the
    share itself; `offload_activations` the fp32 inputs of all layers.
    """
    moved = 4 * -(-_trained_bytes(shape, settings) // settings.ranks) if settings.offload else 0
    if settings.offload_weights:
        moved += -(-4 * (shape.parameters + adapter_parameters(shape, settings)) // settings.ranks)
    if settings.offload_activations:
        moved += rank_tokens(settings, context_tokens) * shape.layers * 4 * shape.hidden
    return moved


def _trained_bytes(shape: ModelShape, settings: TrainerSettings) -> int:
    """Bytes of one fp32 copy of the trained parameters."""
    return 4 * (adapter_parameters(shape, settings) if settings.lora_rank else shape.parameters)


def cache_bytes_per_token(shape: ModelShape, tensor_parallel: int, unit: int = 2) -> int:
    """Bytes of the keys and values of one token on one GPU of a server.

    The GPUs of a server share the heads; each holds at least one head. Kwon et al. ("PagedAttention", arXiv
    2309.06180, section 3). unit: bytes of a number.
    """
    return 2 * shape.layers * max(1, -(-shape.kv_heads // tensor_parallel)) * shape.head_dim * unit


def server_bytes(
    shape: ModelShape, budget: int, tensor_parallel: int, max_batch: int, unit: int = 2
) -> dict[str, int]:
    """Bytes on one GPU of a server that may use `budget` bytes, by part: weights, working, cache.

    working  a step of BATCHED_TOKENS tokens (vLLM measures it at its start), and fp32 logits and
             probabilities of `max_batch` requests
    cache    keys and values get what is left; negative if the weights alone do not fit
    """
    weights = -(-unit * shape.parameters // tensor_parallel)
    step = (
        BATCHED_TOKENS
        * unit
        * (4 * shape.hidden + (shape.query + 2 * shape.key + 3 * shape.intermediate) // tensor_parallel)
    )
    working = GRAPH_BYTES + step + 2 * 4 * max_batch * shape.vocabulary
    return {"weights": weights, "working": working, "cache": budget - weights - working}
