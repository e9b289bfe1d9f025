"""Tool calls: which texts are one, what an edit does, and what an observation may show."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.editing import EditError, apply_edit
from selfplay.agent.observations import cap_output, make_harmless, render_observation
from selfplay.agent.tool_format import BadFormat, format_action
from selfplay.agent.tools import format_edit, parse_action
from tiny_policy import build_tiny_tokenizer

FILE = "import os\n\ndef f(x):\n    y = x + 1\n    return y + y\n\ndef g(x):\n    y = x + 1\n    return y\n"

A_TO_B = "<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE"


@pytest.mark.parametrize(
    ("tool", "body"),
    [("bash", "ls -l\ncat a"), ("submit", ""), ("submit", "a.diff\nb.diff"), ("create", "a.py\nx = 1\n")],
)
def test_a_formatted_call_reads_back(tool: str, body: str) -> None:
    action = parse_action(format_action(tool, body))
    assert (action.tool, action.body) == (tool, body)


def test_reasoning_may_precede_a_call() -> None:
    action = parse_action("I will look at `<tool: bash>` output first.\n<tool: bash>\nls\n</tool>\n")
    assert (action.body, action.thought) == ("ls", "I will look at `<tool: bash>` output first.")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("let me think", "No tool call"),
        ("<tool: bash>\nls", "not closed"),
        ("</tool>\n<tool: bash>\nls", "not closed"),
        ("<tool: bash>ls</tool>", "No tool call"),
        ("<tool: bash>\nls\n</tool>\n<tool: bash>\nls\n</tool>", "More than one"),
        ("<tool: bash>\nls\n</tool>\nThat was it.", "text after"),
        ("<tool: python>\nls\n</tool>", "no tool 'python'"),
        ("<tool: bash>\n\n</tool>", "empty"),
        ("<tool: bash>\nls \0\n</tool>", "null"),
        ("<tool: create>\n\n</tool>", "first line"),
        ("<tool: edit>\na.py\nold\nnew\n</tool>", "SEARCH"),
        ("<tool: edit>\na.py\n<<<<<<< SEARCH\n=======\nx\n>>>>>>> REPLACE\n</tool>", "empty"),
        (
            f"<tool: edit>\na.py\n{A_TO_B}\n{A_TO_B}\n</tool>",
            "SEARCH",
        ),
    ],
)
def test_text_that_is_not_one_call_is_refused_with_an_explanation(text: str, complaint: str) -> None:
    with pytest.raises(BadFormat, match=complaint):
        parse_action(text)


@pytest.mark.parametrize(("line", "replace"), [(None, "    return 2"), (4, "a\nb"), (12, "")])
def test_a_formatted_edit_reads_back(line: int | None, replace: str) -> None:
    action = parse_action(format_action("edit", format_edit("pkg/a.py", line, "    return 1\n", replace)))
    assert (action.path, action.line, action.search, action.replace) == (
        "pkg/a.py",
        line,
        "    return 1\n",
        replace,
    )


def test_a_created_file_ends_with_a_line_break() -> None:
    assert parse_action("<tool: create>\na.py\nx = 1\n</tool>").replace == "x = 1\n"


def test_submit_names_files() -> None:
    assert parse_action("<tool: submit>\n a.diff \n\nb.txt\n</tool>").names == ("a.diff", "b.txt")


def test_an_edit_without_a_line_needs_a_unique_text() -> None:
    assert apply_edit(FILE, "return y + y", "return y") == FILE.replace("y + y", "y")
    with pytest.raises(EditError, match="2 times, in lines 4, 8"):
        apply_edit(FILE, "y = x + 1", "y = x")
    with pytest.raises(EditError, match="not in the file"):
        apply_edit(FILE, "y = x * 1", "y = x")


def test_an_edit_with_a_line_changes_that_line_only() -> None:
    assert apply_edit(FILE, "+", "-", 8) == FILE[: FILE.rindex("+")] + "-" + FILE[FILE.rindex("+") + 1 :]


def test_an_edit_with_a_line_may_continue_on_the_next_line() -> None:
    assert apply_edit("a\nb\nc\n", "b\nc", "d", 2) == "a\nd\n"


@pytest.mark.parametrize(
    ("search", "line", "complaint"),
    [
        ("y", 5, "3 times in line 5"),
        ("import", 4, "starts in line 1"),
        ("nothing", 4, "nowhere"),
        ("y", 99, "no line 99"),
        ("y", 0, "no line 0"),
    ],
)
def test_an_edit_with_a_line_says_why_it_does_not_fit(search: str, line: int, complaint: str) -> None:
    with pytest.raises(EditError, match=complaint):
        apply_edit(
            "import os\n\ndef f(y):\n    pass\n    ret y yy\n" if search == "y" and line == 5 else FILE,
            search,
            "z",
            line,
        )


def test_overlapping_occurrences_count_as_two() -> None:
    with pytest.raises(EditError, match="2 times"):
        apply_edit("aaa", "aa", "b")


def test_an_edit_must_change_something() -> None:
    with pytest.raises(EditError, match="nothing would change"):
        apply_edit(FILE, "import os", "import os")


def test_an_edit_keeps_windows_line_ends() -> None:
    assert apply_edit("a\r\nb\r\nc\r\n", "a\nb", "x\ny") == "x\r\ny\r\nc\r\n"


def test_observations_end_with_the_turns_and_tokens_left() -> None:
    assert render_observation("out", 1, 3, 420) == "out\n[exit 1; 3 turns, 420 tokens left]"


def test_escapes_and_invisible_characters_are_shown_as_text() -> None:
    shown = make_harmless("red\x1b[31m\rback\x07 \u202egnp.exe\u200b\x9b tab\tend\r\n")
    assert shown == "red\\x1b[31m\\x0dback\\x07 \\u202egnp.exe\\u200b\\x9b tab\tend\n"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return ChatFormat(load_tokenizer(str(build_tiny_tokenizer(folder))))


def test_short_output_is_left_alone(chat: ChatFormat) -> None:
    assert cap_output("one\ntwo", 32, chat.spans) == "one\ntwo"


def test_long_output_keeps_head_and_tail_by_whole_lines(chat: ChatFormat) -> None:
    lines = [f"line {number}" for number in range(1000)]
    shown = cap_output("\n".join(lines), 100, chat.spans).split("\n")
    middle = next(number for number, line in enumerate(shown) if line.endswith("lines cut]"))
    assert shown[:middle] == lines[:middle]
    assert shown[middle + 1 :] == lines[-len(shown) + middle + 1 :]
    assert shown[middle] == f"[{1000 - len(shown) + 1} lines cut]"
    assert len(chat.encode("\n".join(shown))) <= 100


def test_one_very_long_line_is_cut_in_the_middle(chat: ChatFormat) -> None:
    shown = cap_output("x" * 500_000, 64, chat.spans)
    assert shown.startswith("xx") and shown.endswith("xx") and "characters cut]" in shown
    assert len(chat.encode(shown)) <= 64
