"""Checks of the policy that a command is about to play with, before anything is fetched or started.

They read config.json, the tokenizer's files and the settings. Weights are loaded later.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from selfplay import parts
from selfplay.agent.chat import chat_format, load_tokenizer, policy_path
from selfplay.agent.prompting import check_prompts
from selfplay.cluster.fit import check_least_memory
from selfplay.cluster.machines import policy_shape, this_machine
from selfplay.config import Config
from selfplay.engines.adapted_models import adapted_folder, adapter_folder
from selfplay.engines.architectures import check_architecture, longest_text, read_architecture
from selfplay.engines.choice import choose_engine
from selfplay.engines.templated_models import read_template, templated_folder
from selfplay.engines.vllm_launch import check_installed
from selfplay.errors import ConfigError, EngineError, PlacementError


def check_model(config: Config, trains: bool = True) -> str:
    """The policy's folder or id, after prompts, parts, vLLM's installation, the model's type and its chat
    template were checked.

    trains: False for an evaluation. Raises EngineError that names the policy when it cannot be one, PartError
    and PromptError.
    """
    parts.check_parts(config.parts())
    check_prompts(config.injector.strategies)
    if config.engine.type == "vllm" and not config.engine.urls:
        check_installed()
    check_given_files(config)
    model = policy_path(config.policy.model)
    check_files(config, model, trains)
    if config.policy.adapter:
        model = adapted_folder(model, adapter_folder(config.policy))
    if config.policy.chat_template:
        model = templated_folder(model, config.policy.chat_template)
    return model


def check_given_files(config: Config) -> None:
    """Raises EngineError for an adapter or a chat template that is not there or does not fit."""
    if config.policy.adapter:
        adapter_folder(config.policy)
    if config.policy.chat_template:
        read_template(config.policy.chat_template)


def check_training_settings(config: Config) -> None:
    """Raises ConfigError for settings with which a run would train on wrong log-probabilities."""
    if config.agent.temperature != 1:
        raise ConfigError(
            f"agent.temperature = {config.agent.temperature:g}: training samples at temperature 1, without "
            "filters, since its importance ratios are of the log-probabilities at temperature 1. Leave it "
            "out. Evaluations take another one: evaluation.temperature and evaluation.top_p."
        )


def check_files(config: Config, model: str, trains: bool = True, local_files_only: bool = False) -> None:
    """Check a policy by its config.json and its tokenizer. model: its folder or id.

    local_files_only: fetch nothing. Raises EngineError that names the policy, the value and the remedy.
    """
    name, engine = config.policy.model, choose_engine(config.engine, model)[0].type
    architecture = read_architecture(model, local_files_only)
    trainer = config.trainer.type if trains else ""
    check_architecture(name, architecture, engine, trainer, config.trainer.packing)
    tokenizer = load_tokenizer(model)
    if config.policy.chat_template:
        tokenizer.chat_template = read_template(config.policy.chat_template).decode("utf-8")
    chat_format(tokenizer, config.policy, config.agent).check()
    if engine == "hf" and Path(model).is_dir() and not any(Path(model).glob("*.safetensors")):
        raise EngineError(
            f"policy.model = {name!r}: no *.safetensors at {Path(model).absolute()}; give a model folder as "
            "transformers saves it, with its weights."
        )


def fitted_context(config: Config, model: str, local_files_only: bool = False) -> Config:
    """The settings of a new run or evaluation, whose episodes stay within the policy's positions.

    The default of agent.context_tokens gives way. Raises ConfigError if it was set beyond them.
    """
    longest = longest_text(read_architecture(model, local_files_only))
    set_to = config.agent.context_tokens
    if longest is None or set_to <= longest or config.engine.type == "scripted":
        return config
    if "context_tokens" in config.agent.model_fields_set:
        raise ConfigError(
            f"agent.context_tokens = {set_to}, and {config.policy.model} is made for {longest} tokens "
            f"(max_position_embeddings and its scaling in config.json). Set agent.context_tokens = {longest} "
            "or less."
        )
    return config.model_copy(update={"agent": config.agent.model_copy(update={"context_tokens": longest})})


def check_memory(config: Config) -> None:
    """Raises PlacementError if this machine is surely too small for the policy.

    A shape that is not known, or that no estimate is made for, passes.
    """
    try:
        shape = policy_shape(config)
    except (PlacementError, EngineError):
        return
    check_least_memory(config, shape, this_machine())


def with_engine(config: Config, model: str, console: Console) -> Config:
    """The configuration with an engine in place of "auto". Prints which and why if the policy is large.

    model: what `check_model` gave.
    """
    engine, why = choose_engine(config.engine, model)
    if why:
        console.print(why, markup=False, highlight=False)
    return config.model_copy(update={"engine": engine})
