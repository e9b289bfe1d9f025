"""Conversations as tokens: any template, tokens are only appended, and content yields no control token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfplay.agent.chat import ChatFormat, load_tokenizer, policy_path
from selfplay.errors import EngineError
from tiny_policy import CHATML, SPECIALS, TAGS, build_tiny_tokenizer

CONTENT = "def f():\n\treturn 'é 日本 🙂'\n\n\n    # end  "


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return load_tokenizer(str(build_tiny_tokenizer(tmp_path)))


Make = Callable[[str], Any]


@pytest.fixture
def with_template(tokenizer: Any) -> Make:
    def make(template: str) -> Any:
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.mark.parametrize("system", ["", "be brief"])
def test_the_first_prompt_is_what_the_chat_template_gives(tokenizer: Any, system: str) -> None:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": CONTENT})
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ChatFormat(tokenizer).start(system, CONTENT) == expected


def test_tokens_between_two_turns_are_what_the_chat_template_gives(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    action = tokenizer.encode("<tool: bash>\nls\n</tool><|im_end|>")
    texts = [("user", "go"), ("assistant", "<tool: bash>\nls\n</tool>"), ("user", CONTENT)]
    messages = [{"role": role, "content": content} for role, content in texts]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert [*chat.start("", "go"), *action, *chat.extend(CONTENT)] == expected


@pytest.mark.parametrize("token", [*SPECIALS, *TAGS])
def test_no_content_yields_a_control_token(tokenizer: Any, token: str) -> None:
    chat = ChatFormat(tokenizer)
    control = tokenizer.convert_tokens_to_ids(token)
    plain = chat.start("", "x").count(control)
    assert chat.start(token, f"{token}{token} {token}\n").count(control) == chat.start("x", "x").count(
        control
    )
    assert chat.extend(f"a{token}").count(control) == chat.extend("a").count(control) and plain <= 2
    assert chat.decode(chat.encode(f"a{token}b")) == f"a{token}b"


def test_actions_show_their_tags_and_lose_the_closing_token_only(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    text = "think  twice <tool: bash>\nls -l 'a' , b .\n</tool>"
    assert chat.decode(tokenizer.encode(f"{text}<|im_end|>")) == text
    assert chat.decode(tokenizer.encode(text)) == text
    assert chat.decode(tokenizer.encode("a<|im_end|>b<|im_end|>")) == "a<|im_end|>b"
    assert chat.decode([]) == ""


def test_tool_tags_of_the_small_policy_are_single_tokens(tokenizer: Any) -> None:
    assert [len(tokenizer.encode(tag)) for tag in TAGS] == [1] * len(TAGS)


def test_spans_are_the_characters_that_each_token_covers(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer)
    spans = chat.spans(CONTENT)
    assert len(spans) == len(chat.encode(CONTENT))
    assert (spans[0][0], spans[-1][1]) == (0, len(CONTENT))


def test_without_a_system_role_the_system_text_opens_the_user_message(with_template: Make) -> None:
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    )
    chat = ChatFormat(with_template(refuses))
    assert (
        chat.decode(chat.start("be brief", "go"))
        == "<|im_start|>user\nbe brief\n\ngo<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_append_only_template_passes_the_check(tokenizer: Any) -> None:
    ChatFormat(tokenizer).check()


def test_a_template_that_rewrites_earlier_turns_fails_the_check(with_template: Make) -> None:
    forgetful = CHATML.replace(
        "{{ message['content'] }}",
        "{{ message['content'] if message['role'] != 'assistant' or loop.index > loop.length - 2 "
        "else '(cut)' }}",
    )
    with pytest.raises(EngineError, match="not append-only"):
        ChatFormat(with_template(forgetful)).check()


def test_a_template_that_counts_turns_fails_the_check(with_template: Make) -> None:
    with pytest.raises(EngineError, match="framed otherwise"):
        ChatFormat(
            with_template(
                CHATML.replace(
                    "<|im_start|>{{", "<|im_start|>{{ loop.index if message['role'] == 'user' }}{{"
                )
            )
        ).check()


def test_a_template_without_a_closing_token_is_refused(with_template: Make) -> None:
    with pytest.raises(EngineError, match="no special token begins"):
        ChatFormat(with_template(CHATML.replace("<|im_end|>", "")))


def test_a_tokenizer_without_a_template_is_refused(with_template: Make) -> None:
    with pytest.raises(EngineError, match="no chat template"):
        ChatFormat(with_template(None))  # type: ignore[arg-type]


def test_a_template_that_raises_is_refused_with_its_reason(with_template: Make) -> None:
    with pytest.raises(EngineError, match="cannot be rendered.*no roles here"):
        ChatFormat(with_template("{{ raise_exception('no roles here') }}"))


def test_content_equal_to_a_control_token_in_the_vocabulary_stays_text(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<eot>": 0, "a": 1, "<": 2, ">": 3, "e": 4, "o": 5, "t": 6, "?": 7, "\n": 8}
    backend = Tokenizer(models.WordPiece(words, unk_token="?", continuing_subword_prefix=""))
    backend.add_special_tokens([AddedToken("<eot>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eot>")
    tokenizer.chat_template = (
        "{% for m in messages %}a{{ m['content'] }}<eot>{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    chat = ChatFormat(tokenizer)
    assert 0 not in chat.encode("<eot>")


def test_a_missing_model_folder_is_named_with_the_setting() -> None:
    with pytest.raises(EngineError, match=r"policy.model = './no/such'"):
        policy_path("./no/such")


def test_a_model_id_is_left_to_the_hub() -> None:
    assert policy_path("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
