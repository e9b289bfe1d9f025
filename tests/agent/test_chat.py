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


# ---- the shapes of today's templates, written anew: only what differs between them matters

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for m in messages %}"
PLAIN = EACH + TURN + "{% endfor %}" + PROMPT
# An answer without its reasoning, for an earlier turn.
STRIPPED = (
    EACH + "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and '</think>' in m['content'] %}"
    "{{ m['content'].split('</think>')[-1].lstrip() }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}"
)
FOLDED = (  # the system text opens the first user message, where it stays
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}"
    "{% set ms = messages[1:] %}{% else %}{% set s = '' %}{% set ms = messages %}{% endif %}"
    "{% for m in ms %}<|im_start|>{{ m['role'] }}\n{{ s if loop.first }}{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}" + PROMPT
)
MOVED = FOLDED.replace("if loop.first", "if m['role'] == 'user' and loop.last")
INSTRUCT = (  # no prompt of its own, and a blank before each answer
    EACH + "{% if m['role'] == 'user' %}<|im_start|> {{ m['content'] }}<|im_end|>"
    "{% elif m['role'] == 'system' %}<|im_start|>system {{ m['content'] }}<|im_end|>"
    "{% else %} {{ m['content'] }}<|endoftext|>{% endif %}{% endfor %}"
)
PARTS = (
    EACH + "<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<img>{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}" + PROMPT
)
ONLY_PARTS = PARTS.replace(
    "{% for p", "{% if m['content'] is string %}{{ raise_exception('parts, please') }}{% endif %}{% for p"
)
EITHER = PARTS.replace(
    "{% for p", "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p"
).replace("<img>{% endif %}{% endfor %}", "<img>{% endif %}{% endfor %}{% endif %}")
TRIMMED = PLAIN.replace("m['content']", "m['content'] | trim")
DATED = "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}.<|im_end|>\n" + PLAIN
DROPPED = PLAIN.replace(EACH, "{% for m in messages if m['role'] != 'system' %}")
OPENED = PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
THOUGHTLESS = PLAIN.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
FILLED = (
    EACH
    + TURN.replace(
        "{{ m['content'] }}",
        "{% if m['role'] == 'assistant' and '</think>' not in m['content'] %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m['content'] }}",
    )
    + "{% endfor %}"
    + PROMPT
)
ALTERNATING = (
    "{% if messages[0]['role'] != 'user' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
)

PLAYED = {
    "plain": PLAIN,
    "system text in the first user message, contents trimmed": FOLDED,
    "no prompt of its own": INSTRUCT,
    "contents in parts": PARTS,
    "contents in parts only": ONLY_PARTS,
    "contents as text or in parts": EITHER,
    "contents trimmed": TRIMMED,
    "a date": DATED,
    "no system role": ALTERNATING,
    "system text left out": DROPPED,
    "reasoning of earlier turns stripped": STRIPPED + PROMPT,
}


@pytest.mark.parametrize("template", PLAYED.values(), ids=PLAYED.keys())
@pytest.mark.parametrize("system", ["", " be brief\n"])
def test_a_conversation_of_several_turns_is_what_the_template_gives(
    with_template: Make, template: str, system: str
) -> None:
    tokenizer = with_template(template)
    chat = ChatFormat(tokenizer)
    chat.check()
    texts = [" go\n", "ls", "  out\n", "cat a", "out2", "rm a", "out3"]
    messages = chat.messages(system, texts[0])
    for number, text in enumerate(texts[1:]):
        messages.append({"role": "assistant" if number % 2 == 0 else "user", "content": text})
    wanted = rendered(tokenizer, messages, in_parts=template in (PARTS, ONLY_PARTS))
    ids = chat.start(system, texts[0])
    for answer, observation in zip(texts[1::2], texts[2::2], strict=True):
        sampled = f" {answer}" if template == INSTRUCT else answer
        ids += [*chat.encode(sampled), chat.stop_id, *chat.extend(observation)]
    assert tokenizer.decode(ids) == wanted
    shown = "".join(message["content"] for message in chat.messages(system, texts[0]))
    assert system.strip() in shown


def rendered(tokenizer: Any, messages: list[dict[str, str]], in_parts: bool) -> str:
    given: list[Any] = [
        {**message, "content": [{"type": "text", "text": message["content"]}]} if in_parts else message
        for message in messages
    ]
    text: str = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
    return text


OPEN_PROMPTS = {
    "opened, kept": OPENED,
    "opened, stripped later": STRIPPED + PROMPT.replace("assistant\n", "assistant\n<think>\n"),
}


@pytest.mark.parametrize("template", OPEN_PROMPTS.values(), ids=OPEN_PROMPTS.keys())
def test_reasoning_that_the_prompt_opens_stays_as_it_was_sampled(with_template: Make, template: str) -> None:
    tokenizer = with_template(template)
    chat = ChatFormat(tokenizer)
    chat.check()
    answer = [*chat.encode("so\n</think>\nls"), chat.stop_id]
    ids = [*chat.start("be brief", "go"), *answer, *chat.extend("out")]
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\ngo<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nso\n</think>\nls<|im_end|>\n"
        "<|im_start|>user\nout<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert chat.decode(answer) == "<think>\nso\n</think>\nls"


@pytest.mark.parametrize("template", [THOUGHTLESS, FILLED, STRIPPED + PROMPT])
def test_reasoning_that_is_left_out_or_empty_in_the_template_changes_no_other_text(
    with_template: Make, template: str
) -> None:
    tokenizer = with_template(template)
    chat = ChatFormat(tokenizer)
    chat.check()
    prompt = tokenizer.decode(chat.start("", "go")).removeprefix("<|im_start|>user\ngo<|im_end|>\n")
    assert tokenizer.decode(chat.extend("out")) == f"\n<|im_start|>user\nout<|im_end|>\n{prompt}"
    assert chat.decode(chat.encode("ls")) == "ls"


REFUSED = {
    "the system text moves": (MOVED, "not append-only: the system text moves.*raises an error for the role"),
    "the system text comes last": (
        PLAIN.replace(EACH, "{% for m in messages | reverse %}"),
        "not append-only",
    ),
    "a reminder": (
        PLAIN.replace(PROMPT, "<|im_start|>user\n{{ messages[0]['content'] }}<|im_end|>\n" + PROMPT),
        "not append-only",
    ),
    "old turns are cut": (
        PLAIN.replace(EACH, "{% for m in messages[-3:] %}"),
        "a later turn changes what came before it: .* becomes ",
    ),
    "old observations are cut": (
        PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if loop.index > loop.length - 3 else '' }}"),
        "a later turn changes what came before it",
    ),
    "another frame after reasoning": (
        PLAIN.replace(
            "<|im_end|>\n{% endfor",
            "{{ '<|endoftext|>' if '</think>' in m['content'] }}<|im_end|>\n{% endfor",
        ),
        "reasoning in an answer changes the text around it",
    ),
    "a prompt that no answer continues": (
        PLAIN.replace("assistant\n{% endif %}", "assistant\nSure: {% endif %}"),
        "does not continue the generation prompt: .*Sure",
    ),
    "no user text": ("{% for m in messages %}<|im_end|>{% endfor %}", "neither as a string nor as a list"),
    "no answers": (
        PLAIN.replace(EACH, "{% for m in messages if m['role'] != 'assistant' %}"),
        "does not show each message exactly once: one is missing",
    ),
}


@pytest.mark.parametrize(("template", "complaint"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_of_a_template_tells_the_reason(with_template: Make, template: str, complaint: str) -> None:
    with pytest.raises(EngineError, match=f"(?s){complaint}"):
        ChatFormat(with_template(template)).check()


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
    with pytest.raises(EngineError, match=r"no config.json at .*/runs/mine/checkpoints/update-00009"):
        policy_path("runs/mine/checkpoints/update-00009")


def test_a_model_id_is_left_to_the_hub() -> None:
    assert policy_path("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
