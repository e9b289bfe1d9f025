"""Observations in the role of a tool, arguments of a template, and tools that a template lists.

The templates are our own, with the constructs of today's families.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from five_turns import HOSTILE, play_five_turns
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.tools import Toolbox, toolbox
from selfplay.errors import EngineError
from selfplay.settings.playing import AgentSettings
from tiny_policy import CHATML, CODER, CWM, DEEPSEEK, LLAMA, QWEN, STRICT, build_tiny_tokenizer

Make = Callable[..., ChatFormat]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tokenizers import AddedToken

    loaded = load_tokenizer(str(build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))))
    # As in Qwen's vocabularies: tags of calls are tokens, and not special ones.
    loaded.add_tokens([AddedToken(tag, normalized=False) for tag in ("<tool_call>", "</tool_call>")])
    return loaded


@pytest.fixture
def chat_of(tokenizer: Any) -> Make:
    def make(template: str, tool_format: str = "tags", **arguments: Any) -> ChatFormat:
        tokenizer.chat_template = template
        chat = ChatFormat(tokenizer, arguments, tools_of(tool_format))
        chat.check()
        return chat

    return make


def tools_of(name: str) -> Toolbox:
    tools = ("bash", "submit") if name == "bash-block" else ("bash", "edit", "create", "submit")
    return toolbox(AgentSettings(tool_format=name, tools=tools))


FAMILIES = {
    "chatml": CHATML,
    "qwen": QWEN,
    "coder": CODER,
    "cwm": CWM,
    "llama": LLAMA,
    "deepseek": DEEPSEEK,
    "strict": STRICT,
}
FORMATS = ("tags", "hermes", "qwen-xml", "bash-block")


@pytest.mark.parametrize("tool_format", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_five_turns_with_a_failed_call_are_what_the_template_gives(
    chat_of: Make, tokenizer: Any, family: str, tool_format: str
) -> None:
    chat = chat_of(FAMILIES[family], tool_format)
    # The prompt opens the reasoning, and the template shows answers as they are given: so with the mark.
    thoughts = "so\n</think>\n\n" if family == "cwm" else ""
    played = play_five_turns(chat, thoughts)
    given = {"tools": [*chat.tools.schemas]} if chat.lists_tools else {}
    wanted = tokenizer.apply_chat_template(
        list(played.messages[:-1]), tokenize=False, add_generation_prompt=True, **given
    )
    assert tokenizer.decode(played.prompts[-1]) == wanted
    # What the engine was given and what the trainer gets are the same tokens.
    assert all(played.ids[: len(prompt)] == prompt for prompt in played.prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_content_that_spells_control_tokens_yields_none(chat_of: Make, tokenizer: Any, family: str) -> None:
    chat = chat_of(FAMILIES[family])
    control = set(tokenizer.get_added_vocab().values())
    spelled = "".join([*tokenizer.get_added_vocab(), HOSTILE])
    for tool in ("bash", ""):
        plain, hostile = (
            [id_ for id_ in chat.extend(text, tool) if id_ in control] for text in ("x", spelled)
        )
        assert plain == hostile and plain


@pytest.mark.parametrize(
    ("family", "shown"),
    [
        ("qwen", '<|im_start|>user\n<tool_response>\na "b"\n\n</tool_response><|im_end|>'),
        ("cwm", '<|im_start|>tool: bash\n\na "b"\n<|im_end|>'),
        ("llama", '<|im_start|>ipython\n\n"a \\"b\\"\\n"<|im_end|>'),
        # No role of its own, one whose frame changes, one that needs what a text has not.
        ("chatml", '<|im_start|>user\na "b"\n<|im_end|>'),
        ("deepseek", '<|im_start|>user\na "b"\n<|im_end|>'),
        ("strict", '<|im_start|>a "b"\n<|im_end|>'),
    ],
)
def test_a_tools_answer_has_the_role_that_the_template_has_for_it(
    chat_of: Make, tokenizer: Any, family: str, shown: str
) -> None:
    chat = chat_of(FAMILIES[family])
    assert shown in tokenizer.decode(chat.extend('a "b"\n', "bash"))
    assert chat.role_of("bash") == ("tool" if family in ("qwen", "cwm", "llama") else "user")
    # A reply without a call is answered by the user.
    assert chat.role_of("") == "user" and "tool" not in tokenizer.decode(chat.extend("x", ""))


def test_answers_to_blocks_of_bash_are_the_users(chat_of: Make) -> None:
    assert chat_of(QWEN, "bash-block").role_of("bash") == "user"


def test_arguments_reach_the_template(chat_of: Make, tokenizer: Any) -> None:
    plain, thoughtless = chat_of(QWEN), chat_of(QWEN, enable_thinking=False)
    assert tokenizer.decode(plain.start("", "go")).endswith("assistant\n")
    for ids in (thoughtless.start("", "go"), thoughtless.extend("out", "bash")):
        assert tokenizer.decode(ids).endswith("assistant\n<think>\n\n</think>\n\n")


def test_an_argument_that_the_template_does_not_use_is_refused(chat_of: Make) -> None:
    with pytest.raises(EngineError, match="has 'enable_thinkin', which the chat template of .* does not use"):
        chat_of(QWEN, enable_thinkin=False)


def test_a_template_lists_the_tools_if_it_describes_the_format_that_is_played(
    chat_of: Make, tokenizer: Any
) -> None:
    lists = {
        (family, name): chat_of(FAMILIES[family], name).lists_tools
        for family in ("qwen", "coder", "chatml")
        for name in FORMATS
    }
    assert {pair for pair, is_listed in lists.items() if is_listed} == {
        ("qwen", "hermes"),
        ("coder", "qwen-xml"),
    }
    start = tokenizer.decode(chat_of(QWEN, "hermes").start("Be brief.", "go"))
    assert start.startswith("<|im_start|>system\nBe brief.\n\nCall with <tool_call>")
    assert '"name": "edit"' in start and "Replaces text in one file." in start


def test_old_reasoning_stays_where_the_template_strips_it(chat_of: Make, tokenizer: Any) -> None:
    chat = chat_of(QWEN)
    thought = "<think>\nso\n</think>\n\n"
    played = play_five_turns(chat, thought)
    ours = tokenizer.decode(played.prompts[-1])
    theirs = tokenizer.apply_chat_template(
        list(played.messages[:-1]), tokenize=False, add_generation_prompt=True
    )
    # The second turn is answered by the user: before that message the template leaves reasoning out.
    assert (ours.count(thought), theirs.count(thought)) == (4, 2)
    assert ours.replace(thought, "", 2) == theirs


def test_a_prompt_is_taken_apart_into_task_answers_and_observations(chat_of: Make, tokenizer: Any) -> None:
    for family, template in FAMILIES.items():
        chat = chat_of(template, "hermes")
        reply = chat.tools.write("bash", command="ls")
        ids = chat.start("Be brief.", "go\nthere")
        for observation, tool in (("out\n1", "bash"), ("A reply ends …", "")):
            ids += [*chat.encode_call(reply), chat.stop_id, *chat.extend(observation, tool)]
        task, turns = chat.read(tokenizer.decode(ids))
        assert task.endswith("go\nthere"), family
        assert turns == [(reply, "out\n1"), (reply, "A reply ends …")], family


def test_tags_of_a_call_are_the_tokens_that_the_vocabulary_has_for_them(
    chat_of: Make, tokenizer: Any
) -> None:
    chat = chat_of(QWEN, "hermes")
    call = chat.tools.write("bash", command="echo '</tool_call>'")
    tags = tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
    ids = chat.encode_call(f"so\n{call}")
    assert [id_ for id_ in ids if id_ in tags] == tags and ids[-1] == tags[1]
    assert chat.decode(ids) == f"so\n{call}"
    assert not set(tags).intersection(chat.encode(call))
