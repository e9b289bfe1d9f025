"""Builds a tiny tokenizer and a tiny policy with random weights, for tests of code that uses a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfplay.warm_start.settings import WarmStartSettings

TAGS = ("<tool: bash>", "<tool: edit>", "<tool: create>", "<tool: submit>", "</tool>")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = """\
def add(first, second):
    return first + second

class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

import os, sys
grep -rn 'def add(' --include=*.py .
git diff > /submit/bug_inject.diff; bash /submit/test_script.sh
[exit 0; 12 turns, 1033 tokens left]
system user assistant tests/test_calculator.py assert add(1, 2) == 3
"""


def build_tiny_tokenizer(folder: Path) -> Path:
    """Save a byte-level BPE tokenizer with ChatML and tool tags of one token. Returns the folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    # With this file the folder counts as a model, though it has no weights.
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    return folder


def build_tiny_policy(folder: Path, seed: int = 0) -> Path:
    """Save a 2-layer Qwen3 with random weights and its tokenizer in `folder`. Returns the folder."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    build_tiny_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_warm_start(repository: str, **changes: Any) -> WarmStartSettings:
    """A warm start that takes seconds: one layer, one stage of two steps, one repository."""
    from selfplay.warm_start.settings import WarmStartSettings

    values: dict[str, Any] = {
        "corpus": (repository,),
        "held_out": repository,
        "tokenizer_texts": 60,
        "shape": {
            "vocabulary": 400,
            "hidden": 32,
            "layers": 1,
            "heads": 1,
            "head_dim": 16,
            "intermediate": 32,
        },
        "rows": 1,
        "sequence_tokens": 1500,
        "context_tokens": 4000,
        "compile": False,
        "measured": 2,
        "stages": [{"name": "one", "steps": 2, "mix": {"injector": 1, "solver_drill": 1, "copy": 1}}],
    }
    return WarmStartSettings.model_validate(values | changes)


# ---- chat templates with the constructs of today's models, written anew

_LISTED = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n"
    '{% endif %}Call with <tool_call> and JSON of "name" and "arguments":\n'
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n"
    "{% endif %}"
)
# Tools' answers are a user's message, within marks; reasoning before the last question is left out, and
# answers after it show theirs; reasoning can be turned off. As Qwen3.
QWEN = (
    _LISTED + "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last %}{{ m.content }}{% else %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% endif %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The prompt opens the reasoning, and old reasoning stays; a tool's name is in the role. As CWM.
CWM = (
    "{% for m in messages %}<|im_start|>{% if m.role == 'tool' %}tool: {{ m.name }}{% else %}{{ m.role }}"
    "{% endif %}{{ '\n\n' }}{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n<think>\n{% endif %}"
)
# Answers have a role of another name, and are strings of JSON. As Llama 3.1.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>ipython\n\n"
    "{{ m.content | tojson }}<|im_end|>"
    "{% else %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
# The first answer of a tool is framed otherwise than the next ones. As DeepSeek-V3.
DEEPSEEK = (
    "{% set ns = namespace(first=true) %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<outputs>' if ns.first else '' }}<output>{{ m.content }}</output><|im_start|>assistant\n"
    "{% set ns.first = false %}"
    "{% else %}{% if not (m.role == 'assistant' and messages[loop.index0 - 1].role == 'tool') %}"
    "<|im_start|>{{ m.role }}\n{% endif %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|im_start|>assistant\n{% endif %}"
)
# Calls in XML, with a list of the tools that names each parameter. As Qwen3-Coder.
CODER = _LISTED.replace(
    'JSON of "name" and "arguments"', "<function=NAME> and <parameter=NAME>"
) + QWEN.removeprefix(_LISTED)
# Roles must alternate, and an answer of a tool needs a call with an id. As Mistral.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}<|im_start|>{{ m.content }}<|im_end|>{% else %}{{ m.content }}<|endoftext|>"
    "{% endif %}{% endfor %}"
)
