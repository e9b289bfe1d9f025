"""The settings tree: TOML in, `--set key=value` on top, resolved JSON out. Unknown keys and wrong types are errors that name the key.

Defaults are the paper's task at a size one machine can run; the quickstart and the paper's own scale are recipes in `runs/recipes/`.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from selfplay.errors import ConfigError

Range = tuple[int, int]

# Arguments of a vLLM server that settings decide, so that nothing contradicts them -> what decides.
OWN_OPTIONS = {
    "--model": "policy.model",
    "--host": "selfplay: servers of our own are reached from this machine alone",
    "--port": "selfplay, which takes a free one",
    "--dtype": "engine.dtype",
    "--max-model-len": "agent.context_tokens",
    "--max-num-seqs": "engine.max_batch",
    "--gpu-memory-utilization": "engine.gpu_memory",
    "--kv-cache-memory-bytes": "engine.cache_mb",
    "--served-model-name": "selfplay",
    "--generation-config": "selfplay: a model's own filters would make the importance ratio untrue",
    "--weight-transfer-config": "engine.sync",
    "--logprobs-mode": "selfplay: log-probabilities are those at temperature 1",
}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSettings(Section):
    name: str = ""  # "": made from date and time
    folder: str = "runs"

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if name in (".", "..", "recipes") or "/" in name or "\\" in name:
            raise ValueError("a run name is one folder name, and not 'recipes'")
        return name


class TrainSettings(Section):
    updates: int = Field(10, ge=1)
    injector_groups: int = Field(1, ge=0)
    solver_groups: int = Field(3, ge=0)
    group_size: int = Field(8, ge=2)
    injector_group_size: int = Field(0, ge=0)  # 0: group_size
    even: bool = False  # solver groups take the places of injector groups that wait: every update plays as many episodes
    learn: tuple[Literal["injector", "solver"], ...] = (
        "injector",
        "solver",
    )  # whose episodes are trained on; both play
    bugs: str = ""  # task records whose bugs are in the curriculum from the start; with injector_groups = 0 a fixed set
    ahead: int = Field(
        0, ge=0
    )  # updates that are played ahead of the one that trains, at most max_lag; 0: playing and training take turns
    refills: int = Field(0, ge=0)  # solver groups that an update may add for those that carry no gradient
    preparing: int = Field(4, ge=1)  # sandboxes that are opened and filled at the same time
    workers: int = Field(2, ge=1)  # verdicts and grades that run at the same time
    episodes_in_flight: int = Field(32, ge=1)  # each with a sandbox of its own
    max_machine_failures: float = Field(
        0.3, gt=0, le=1
    )  # share of an update's episodes above which the run stops
    keep_checkpoints: int = Field(2, ge=1)

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
        plays = {"injector": self.injector_groups > 0, "solver": self.solver_groups > 0 or self.even}
        if not any(plays[role] for role in self.learn):
            raise ValueError(
                f"only the {self.learn[0]} learns and it never plays; set {self.learn[0]}_groups to 1 or more, or learn to who plays"
            )
        return self

    @field_validator("learn")
    @classmethod
    def _some_role(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        if not roles or len(set(roles)) < len(roles):
            raise ValueError('names each role once and at least one of "injector" and "solver"')
        return roles


class ShapeSettings(Section):
    """What a model's config.json says, by the names it has there: for planning with a model that is not on this machine."""

    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    tie_word_embeddings: bool = False


class PolicySettings(Section):
    model: str = "carried"  # "carried": the small policy in the package; else a path or a Hugging Face id
    shape: ShapeSettings | None = None  # for --dry-run alone, where the model is not at hand


class EngineSettings(Section):
    """Those from `servers` on are for vllm alone."""

    type: Literal["hf", "vllm", "scripted"] = "hf"  # scripted: the teacher plays both roles
    max_batch: int = Field(32, ge=1)  # requests that run at the same time, in each server
    cache_mb: int = Field(
        1024, ge=0
    )  # hf: for conversations that wait for their next turn; a vllm server on a CPU: for all it holds
    servers: int = Field(1, ge=1)  # started and watched by the run, on this machine
    urls: tuple[str, ...] = ()  # servers that run already, in place of our own
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = (
        "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    )
    gpu_memory: float = Field(0.8, gt=0, le=1)  # share of a GPU's memory that a server takes
    options: tuple[str, ...] = ()  # more arguments of each server, for instance ["--tensor-parallel-size=8"]
    start_timeout_s: float = Field(600, gt=0)
    request_timeout_s: float = Field(1800, gt=0)
    sync: Literal["files", "nccl", "ipc", "gloo"] = (
        "files"  # how new weights reach servers: files in memory, or from the trainer itself
    )
    sync_timeout_s: float = Field(300, gt=0)  # of every call to a server while it takes new weights

    @field_validator("urls")
    @classmethod
    def _are_servers(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if (
                parts.scheme not in ("http", "https")
                or not parts.netloc
                or parts.path not in ("", "/")
                or parts.query
            ):
                raise ValueError(
                    f"{url!r} is not the address of a server, for instance http://127.0.0.1:8000"
                )
        if len({url.rstrip("/") for url in urls}) < len(urls):
            raise ValueError("names a server twice")
        return urls

    @field_validator("options")
    @classmethod
    def _are_free(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            name = option.partition("=")[0]
            if instead := OWN_OPTIONS.get(name):
                raise ValueError(f"{name} is set by {instead}")
        return options

    @model_validator(mode="after")
    def _belong_together(self) -> EngineSettings:
        changed = self.model_fields_set & {"servers", "urls", "dtype", "gpu_memory", "options", "sync"}
        if (
            changed
            and self.type != "vllm"
            and any(getattr(self, n) != type(self).model_fields[n].default for n in changed)
        ):
            raise ValueError(f"{sorted(changed)} mean something only with engine.type = 'vllm'")
        if self.urls and self.servers != 1:
            raise ValueError(
                "engine.servers counts servers of our own, and engine.urls names others; set one of the two"
            )
        if self.urls and self.sync != "files":
            raise ValueError(
                f"engine.sync = {self.sync!r} is for servers of our own: one that a broken transfer leaves behind is started anew"
            )
        if self.urls and self.options:
            raise ValueError("engine.options are for servers of our own; those of engine.urls run already")
        return self


class SandboxSettings(Section):
    type: Literal["auto", "docker", "bubblewrap"] = "auto"
    memory_mb: int = Field(1024, ge=64)
    processes: int = Field(128, ge=8)
    workspace_mb: int = Field(256, ge=8)
    tmp_mb: int = Field(64, ge=1)
    ready: int = Field(
        0, ge=0, le=256
    )  # opened ahead, of the kinds asked for last: they start in no time, and hold memory while they wait


class EnvironmentSettings(Section):
    build_timeout_s: float = Field(600, gt=0)
    test_timeout_s: float = Field(90, gt=0)
    baselines: int = Field(3, ge=2)


class AgentSettings(Section):
    max_turns: int = Field(64, ge=1)
    context_tokens: int = Field(32_768, ge=256)
    turn_tokens: int = Field(2_048, ge=16)
    observation_tokens: int = Field(4_096, ge=32)
    command_timeout_s: float = Field(120, gt=0)
    requeries: int = Field(3, ge=0)  # bad formats in a row that are answered before the episode ends
    timeouts_in_a_row: int = Field(3, ge=1)
    redraws: int = Field(
        0, ge=0
    )  # in training: a call that brings nothing new (refused, repeated, unreadable) is drawn again so often
    prompt_style: Literal["full", "terse"] = "full"
    temperature: float = Field(1.0, ge=0)


class InjectorSettings(Section):
    strategies: dict[Literal["removal", "history", "direct"], float] = {"removal": 1.0, "history": 1.0}
    given: tuple[Literal["tests", "target"], ...] = ()
    min_passing_tests: Range = (5, 5)  # each sampled per episode within its range
    min_failing_tests: Range = (1, 1)
    min_changed_files: Range = (1, 1)
    max_target_lines: int = Field(30, ge=1)  # given "target": the longest function that may be one
    reward: Literal["ssr", "consistency"] = "ssr"
    alpha: float = Field(0.8, ge=0, le=1)

    @field_validator("strategies")
    @classmethod
    def _some_weight(cls, weights: dict[str, float]) -> dict[str, float]:
        if not weights or any(w < 0 for w in weights.values()) or sum(weights.values()) <= 0:
            raise ValueError("needs at least one strategy with a weight above 0")
        return weights

    @field_validator("min_passing_tests", "min_failing_tests", "min_changed_files")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        if not 1 <= value[0] <= value[1]:
            raise ValueError(f"needs 1 <= low <= high, not {list(value)}")
        return value


class SolverSettings(Section):
    given: tuple[Literal["failure", "suspects", "tests"], ...] = ()
    max_suspects: int = Field(5, ge=1)  # given "suspects": how many functions are named
    max_spec_tokens: int = Field(
        8_192, ge=16
    )  # a longer reversed test_weaken.diff makes the bug spec_too_long
    second_order_share: float = Field(0.25, ge=0, le=1)
    replay_share: float = Field(
        0.0, ge=0, le=1
    )  # of the groups that replay a bug of mixed results while fresh ones wait


class ValidatorSettings(Section):
    determinism_runs: int = Field(2, ge=1)
    script_timeout_s: float = Field(90, gt=0)
    max_patch_bytes: int = Field(256 * 1024, ge=1024)
    max_log_bytes: int = Field(4 << 20, ge=1024)
    max_test_ids: int = Field(50_000, ge=1)


class TrainerSettings(Section):
    type: Literal["torch", "deepspeed"] = "torch"
    ranks: int = Field(1, ge=1)  # processes of the deepspeed trainer, one GPU each where there are any
    zero_stage: int = Field(
        3, ge=0, le=3
    )  # what they share out: 1 optimiser states, 2 gradients too, 3 weights too
    offload: bool = False  # optimiser states and its step on the CPU
    activation_checkpointing: bool = (
        False  # activations are computed again in the backward pass: slower, far less memory
    )
    compile: bool = (
        False  # the torch trainer's layers: the first updates take seconds longer, the others less
    )
    deadline_s: float = Field(1800, gt=0)  # a rank without a sign of progress for so long is taken to hang
    advantage: Literal["rloo", "dr_grpo", "cwm", "grpo"] = "rloo"
    aggregation: Literal["constant", "token", "sequence"] = "constant"
    negative_weight: float = Field(
        1.0, ge=0, le=1
    )  # of negative advantages, of episodes and calls; below 1 the gradient leans to what succeeded
    credit: Literal["episode", "kept"] = (
        "episode"  # kept: what succeeded is learned without calls that failed and edits taken back
    )
    call_reward_weight: float = Field(
        0.0, ge=0
    )  # of whether a call that was to change a file did so, whatever came of the episode
    kl_coef: float = Field(
        0.0, ge=0
    )  # of the divergence from the policy that the run began with, at every action token
    learning_rate: float = Field(3e-6, gt=0)
    warmup_updates: int = Field(30, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.25, gt=0)
    clip_negative: float = Field(3.0, gt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_tokens: int = Field(16_384, ge=256)  # of one micro-batch, padding included
    packing: bool = (
        False  # several episodes to a row, none of which sees another: less padding, attention by a mask
    )
    bf16: bool = True
    lora_rank: int = Field(
        0, ge=0
    )  # of an adapter (LoRA) that is trained in place of the weights; 0: all weights are trained
    lora_alpha: int = Field(32, ge=1)  # what the adapter adds is scaled by lora_alpha / lora_rank
    lora_layers: tuple[
        str, ...
    ] = ()  # its linear layers, for instance ["q_proj", "v_proj"]; (): all of attention and MLP, not the head

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
    def _fits_the_type(self) -> TrainerSettings:
        if self.type == "torch" and (self.ranks > 1 or self.offload):
            named = f"ranks = {self.ranks}" if self.ranks > 1 else "offload = true"
            raise ValueError(
                f"{named} needs trainer.type = 'deepspeed'; the torch trainer is one process that keeps all in one place"
            )
        if self.type == "deepspeed" and self.compile:
            raise ValueError(
                "compile = true is the torch trainer's; set trainer.type = 'torch', or leave it out"
            )
        if self.type == "deepspeed" and self.offload and not self.zero_stage:
            raise ValueError(
                "offload = true needs trainer.zero_stage of at least 1; stage 0 keeps everything on every rank"
            )
        return self


class EvaluationSettings(Section):
    """Repair rate during a run, on bugs that it does not train on: after the last update, each `every`, and `before` the first."""

    tasks: tuple[str, ...] = ()  # names of frozen sets ("own", "human") or files; (): no evaluation
    limit: int = Field(0, ge=0)  # a fixed subset of so many; 0: all
    attempts: int = Field(4, ge=0)  # drawn, of each task
    greedy: bool = True  # and one at temperature 0
    before: bool = True  # the policy as it is given; without it, `selfplay eval` can have measured that for many runs at once
    every: int = Field(0, ge=0)  # 0: only before and after

    @model_validator(mode="after")
    def _some_attempt(self) -> EvaluationSettings:
        if self.tasks and not self.attempts and not self.greedy:
            raise ValueError("needs attempts of at least 1, or greedy = true")
        return self


class NodeSettings(Section):
    """Machines of one kind."""

    count: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)
    gpu_gib: float = Field(0, ge=0)  # of each
    cpus: int = Field(ge=1)
    memory_gib: float = Field(gt=0)

    @model_validator(mode="after")
    def _gpus_have_memory(self) -> NodeSettings:
        if bool(self.gpus) != bool(self.gpu_gib):
            raise ValueError("gpus and gpu_gib (the memory of each) go together")
        return self


class ClusterSettings(Section):
    """For runs on Ray (`--cluster`) and for planning them (`--dry-run`)."""

    nodes: tuple[NodeSettings, ...] = ()  # what `--dry-run` plans for without `--cluster`; (): this machine
    action_share: float = Field(
        0.3, gt=0, le=1
    )  # of an episode's tokens, those that the policy wrote: only they need the head's memory
    share_gpus: bool = (
        False  # a trainer rank and a rollout server on one GPU; engine.gpu_memory is the server's share
    )
    restarts: int = Field(
        3, ge=0
    )  # in a row, without an update between them, after a trainer rank or its node was lost


class Config(Section):
    """Everything that decides a run. `resolved()` is what `config.json` holds."""

    seed: int = 0
    max_lag: int = Field(
        8, ge=0
    )  # the oldest episode that is trained on, in updates; 0: playing and training take turns
    run: RunSettings = RunSettings()
    train: TrainSettings = TrainSettings()
    policy: PolicySettings = PolicySettings()
    engine: EngineSettings = EngineSettings()
    sandbox: SandboxSettings = SandboxSettings()
    environment: EnvironmentSettings = EnvironmentSettings()
    agent: AgentSettings = AgentSettings()
    injector: InjectorSettings = InjectorSettings()
    solver: SolverSettings = SolverSettings()
    validator: ValidatorSettings = ValidatorSettings()
    trainer: TrainerSettings = TrainerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _share_a_gpu(self) -> Config:
        if self.engine.sync == "ipc" and self.trainer.type == "deepspeed" and self.trainer.ranks > 1:
            raise ValueError(
                f"engine.sync = 'ipc' is for a trainer of one process on the servers' GPU, and trainer.ranks is {self.trainer.ranks}; "
                "set engine.sync = 'nccl'"
            )
        return self

    def resolved(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def known_keys() -> list[str]:
    """Every dotted key, for suggestions and documentation."""
    keys: list[str] = []
    for name, info in Config.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys += [f"{name}.{key}" for key in section.model_fields]
        else:
            keys.append(name)
    return keys


def _parse_value(text: str) -> Any:
    """A `--set` value: TOML where it parses as such (numbers, booleans, lists, quoted text), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as dotted key -> value; raises ConfigError for one that is not that."""
    parsed: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {override!r} is not key=value, for instance --set train.updates=6")
        parsed[key.strip()] = _parse_value(value.strip())
    return parsed


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: '{section}' is a value, not a section.")
        values = inner
    values[last] = value


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, known_keys(), n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            lines.append(f"  {key}: unknown setting.{hint}")
        else:
            lines.append(f"  {key}: {item['msg']} (got {item['input']!r})")
    return f"{source}:\n" + "\n".join(lines)


def build_config(values: dict[str, Any], source: str = "configuration") -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, source)) from error


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file (or the JSON of a finished run) and lay `key=value` overrides on top.

    Raises ConfigError naming file, key, value and what would be right.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the configuration {path}: {error}. Recipes are in runs/recipes/."
            ) from error
        try:
            values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"{path} is not valid {path.suffix.lstrip('.').upper() or 'TOML'}: {error}"
            ) from error
    for key, value in parse_overrides(overrides).items():
        _assign(values, key, value)
    return build_config(values, str(path) if path else "--set")
