"""Fabricated texts, and how well a policy copies from them."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.editing import apply_edit
from selfplay.agent.tools import parse_action, toolbox
from selfplay.repositories.targets import is_held_out
from selfplay.settings.playing import AgentSettings
from selfplay.source.trees import FileEntry, Tree
from selfplay.teacher.phrases import LineEdit
from selfplay.warm_start.copy_tests import LEAST_COPIED, copy_tests, measure_copying
from selfplay.warm_start.copying import PolicyShape, build_policy
from selfplay.warm_start.fabrication import EpisodeMaker
from selfplay.warm_start.packages import Package
from selfplay.warm_start.transcripts import PlayLimits, Transcript
from tiny_policy import LLAMA, QWEN, build_tiny_tokenizer


def package() -> Package:
    source = "\n".join(
        f"def f{n}(a, b):\n    if a < b:\n        return a + {n}\n    return not b\n\n" for n in range(6)
    )
    tests = "from m import *\n\n\ndef test_all():\n" + "".join(
        f"    assert f{n}(1, 2) == {n}\n" for n in range(6)
    )
    tree = Tree({"m.py": FileEntry(source.encode()), "tests/test_m.py": FileEntry(tests.encode())})
    return Package("m==1", "MIT", tree, 22, 100)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    from transformers import AutoTokenizer

    return ChatFormat(
        AutoTokenizer.from_pretrained(build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    )


@pytest.mark.parametrize("whole_lines", [False, True])
@pytest.mark.parametrize("role", ["injector", "solver"])
def test_fabricated_calls_parse_and_their_edits_apply(chat: ChatFormat, role: str, whole_lines: bool) -> None:
    made = package()
    limits = PlayLimits(context_tokens=6000, whole_lines=whole_lines)
    maker = EpisodeMaker([made], chat, limits, random.Random(3))
    for _ in range(10):
        transcript = maker.transcript(role)
        counted = [action for text in replies(chat, transcript) if (action := parse_action(text))]
        assert counted[-1].tool == "submit"
        edits = [action for action in counted if action.tool == "edit"]
        assert edits
        if role == "injector":
            apply_edit(made.tree.text("m.py"), edits[0].search, edits[0].replace, edits[0].line)
        lines = made.tree.text("m.py").split("\n")
        whole = [action.search in lines or action.replace in lines for action in edits]
        assert all(whole) or not whole_lines


@pytest.mark.parametrize(("template", "tool_format"), [(QWEN, "hermes"), (LLAMA, "qwen-xml")])
def test_fabricated_calls_are_in_the_format_and_the_template_that_are_played(
    tmp_path: Path, template: str, tool_format: str
) -> None:
    tokenizer = load_tokenizer(str(build_tiny_tokenizer(tmp_path)))
    tokenizer.chat_template = template
    chat = ChatFormat(tokenizer, tools=toolbox(AgentSettings(tool_format=tool_format)))
    maker = EpisodeMaker([package()], chat, PlayLimits(context_tokens=6000), random.Random(3))
    for role in ("injector", "solver"):
        for _ in range(5):
            transcript = maker.transcript(role)
            counted = [chat.tools.parse(text) for text in replies(chat, transcript)]
            assert counted[-1].tool == "submit" and any(action.tool == "edit" for action in counted)
            _, turns = chat.read(tokenizer.decode(transcript.ids))
            shown = [observation for _, observation in turns]
            assert len(shown) == transcript.turns - 1
            assert all(
                "tokens left]" in observation and "<tool_response>" not in observation
                for observation in shown
            )


@pytest.mark.parametrize("tool_format", ["tags", "hermes", "qwen-xml"])
def test_the_opening_of_an_edit_says_the_line_and_not_what_it_becomes(tool_format: str) -> None:
    tools = toolbox(AgentSettings(tool_format=tool_format))
    edit = LineEdit('12:    return "a" + b', "m.py", 12, "+", "-")
    for whole_line in (False, True):
        reply, opening = edit.reply(tools, whole_line), edit.opening(tools, whole_line)
        assert reply.startswith(opening) and "+ b" in opening and "- b" not in opening
        other = replace(edit, replace="*")
        assert other.reply(tools, whole_line) != reply and other.opening(tools, whole_line) == opening
        later = replace(edit, shown='13:    return "a" + c', line=13)
        assert later.opening(tools, whole_line) != opening
    action = tools.parse(edit.reply(tools, whole_line=True))
    assert (action.search, action.replace, action.line) == ('    return "a" + b', '    return "a" - b', 12)


def replies(chat: ChatFormat, transcript: Transcript) -> list[str]:
    """The replies that count in training; mistakes do not."""
    found: list[list[int]] = [[]]
    for id_, weight in zip(transcript.ids, transcript.weight, strict=True):
        if weight == 1:
            found[-1].append(id_)
        elif found[-1]:
            found.append([])
    return [chat.decode(ids) for ids in found if ids]


def test_only_what_the_policy_writes_has_weight_1(chat: ChatFormat) -> None:
    transcript = EpisodeMaker([package()], chat, PlayLimits(), random.Random(1)).transcript("injector")
    counted = [id_ for id_, weight in zip(transcript.ids, transcript.weight, strict=True) if weight == 1]
    text = chat.decode(counted)
    assert "<tool: edit>" in text
    assert "injector direct" not in text
    assert "turns, " not in text


def test_no_text_shows_a_function_that_is_held_out() -> None:
    names = [f"f{n}" for n in range(40)]
    source = "".join(f"def {name}(a, b):\n    return a + b\n\n\n" for name in names)
    made = Package("m==1", "MIT", Tree({"m.py": FileEntry(source.encode())}), 22, 100)
    held = {name for name in names if is_held_out(name)}
    assert 0 < len(held) < len(names)
    assert {function.name for function, _ in made.functions} == set(names) - held
    assert {function.name for function, _ in replace(made, held_out=True).functions} == held
    assert set(re.findall(r"def (\w+)", made.shown("m.py"))) == set(names) - held


def test_a_new_policy_copies_a_repeated_span_without_training() -> None:
    import torch

    model = build_policy(PolicyShape(), seed=0, eos_token_id=2, pad_token_id=0)
    span = torch.randint(3, 1024, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        predicted = model(input_ids=torch.cat([span, span], 1)).logits[0].argmax(-1)
    # The first two tokens of the second span have no two tokens before them that occurred earlier.
    assert (predicted[62:119] == span[0, 3:]).float().mean() > 0.9


def test_copy_tests_ask_for_shown_identifiers_that_the_corpus_lacks(chat: ChatFormat) -> None:
    source = "".join(
        f"def function_{n}(operand, amount):\n    return operand + amount + function_{n}\n\n\n"
        for n in range(9)
    )
    made = Package("m==1", "MIT", Tree({"m.py": FileEntry(source.encode())}), 22, 100)
    corpus = Package(
        "c==1", "MIT", Tree({"c.py": FileEntry(b"def f(operand):\n    return operand\n")}), 22, 100
    )
    tests = copy_tests(EpisodeMaker([made], chat, PlayLimits(), random.Random(1)), [corpus], 12)
    assert len(tests) == 12
    for test in tests:
        for first, end in test.answers:
            answer = chat.decode(test.ids[first:end]).strip(" (")
            assert answer
            assert "operand" not in answer
            assert answer in chat.decode(test.ids[: first - 1])


def test_a_new_policy_passes_most_copy_tests(chat: ChatFormat) -> None:
    model = build_policy(PolicyShape(vocabulary=512), seed=0, eos_token_id=2, pad_token_id=0)
    tests = copy_tests(EpisodeMaker([package()], chat, PlayLimits(), random.Random(1)), [], 10)
    assert measure_copying(model, tests) >= LEAST_COPIED
