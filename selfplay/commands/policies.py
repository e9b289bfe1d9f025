"""Checks of the policy that a command is about to play with, before anything is fetched or started."""

from __future__ import annotations

from rich.console import Console

from selfplay import parts
from selfplay.agent.chat import ChatFormat, load_tokenizer, policy_path
from selfplay.agent.prompting import check_prompts
from selfplay.config import Config
from selfplay.engines.adapted_models import adapted_folder
from selfplay.engines.choice import choose_engine
from selfplay.engines.vllm_launch import check_installed


def check_model(config: Config) -> str:
    """The policy's folder or id, after prompts, parts, chat template and vLLM's installation were checked.

    Raises EngineError that names the policy when it cannot be one, PartError and PromptError.
    """
    parts.check_parts(config.parts())
    check_prompts(config.injector.strategies)
    if config.engine.type == "vllm" and not config.engine.urls:
        check_installed()
    model = policy_path(config.policy.model)
    if config.policy.adapter:
        model = adapted_folder(model, config.policy.adapter)
    ChatFormat(load_tokenizer(model)).check()
    return model


def with_engine(config: Config, model: str, console: Console) -> Config:
    """The configuration with an engine in place of "auto". Prints which and why if the policy is large.

    model: what `check_model` gave.
    """
    engine, why = choose_engine(config.engine, model)
    if why:
        console.print(why, markup=False, highlight=False)
    return config.model_copy(update={"engine": engine})
