"""Checks of the policy that a command is about to play with, before anything is fetched or started."""

from __future__ import annotations

from selfplay import parts
from selfplay.agent.chat import ChatFormat, load_tokenizer, policy_path
from selfplay.agent.prompting import check_prompts
from selfplay.config import Config
from selfplay.engines.adapted_models import adapted_folder, adapter_folder
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
        model = adapted_folder(model, adapter_folder(config.policy))
    ChatFormat(load_tokenizer(model)).check()
    return model
