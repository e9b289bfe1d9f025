"""Tool calls: which texts are one, what an edit does, and what an observation may show."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.editing import EditError, apply_edit, apply_one_of
from selfplay.agent.observations import cap_output, make_harmless, render_observation
from selfplay.agent.tool_format import BadFormat, format_action
from selfplay.agent.tools import format_edit, no_such_file, parse_action
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
        ("I would <tool: bash>ls</tool>", "No tool call"),
        ("<tool: bash>ls</tool> or <tool: bash>cat</tool>", "each tag stands alone on its line"),
        ("<tool: bash>\nls </tool> -l", "not closed"),
        ("`<tool: bash>` it is:\n  <tool: bash>\n  ls\n  </tool>", "each tag stands alone on its line"),
        ('<tool_call>\n{"name": "bash", "arguments": {}}\n</tool_call>', "'<tool_call' is of another format"),
        ("<think>\nI could call bash", "not closed by `</think>`"),
        ("<tool: bash>\ncat > x <<'X'\n</tool>\nX\n</tool>", "More than one `</tool>`: lines 3, 5 .*printf"),
        ("<think>no</think>\n<tool: bash>\nls\n</tool>\n<tool: bash>\nls\n</tool>", "lines 2, 5 .*open one"),
        ("<tool: bash>\n```python\nprint(1)\n```\n</tool>", "fenced block of 'python'"),
        ("<tool: edit>\na.py\n>>>>>>> REPLACE\n</tool>", "must begin with `<<<<<<< SEARCH`"),
        ("<tool: edit>\na.py\n<<<<<<< SEARCH\na\n>>>>>>> REPLACE\n</tool>", "No line `=======`"),
        (
            "<tool: edit>\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n</tool>",
            "path of the file is missing",
        ),
        (
            "<tool: edit>\na.py\n<<<<<<< SEARCH\na\n" + 9 * "=======\n" + ">>>>>>> REPLACE\n</tool>",
            "9 lines are `=======`.*with bash",
        ),
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


@pytest.mark.parametrize(
    "text",
    [
        "<tool: bash>\r\nls\r\ncat a\r\n</tool>\r\n",
        "```\n<tool: bash>\nls\ncat a\n</tool>\n```",
        "So:\n```text\n<tool: bash>\nls\ncat a\n</tool>\n```\n",
        "<tool: bash>\n```bash\nls\ncat a\n```\n</tool>",
        "  <tool: bash>\n  ls\n  cat a\n  </tool>",
        "  <tool: bash>\nls\ncat a\n  </tool>",
        "<tool: Bash>\nls\ncat a\n</tool>",
        "<tool: bash>ls\ncat a</tool>",
        "<tool:bash>\nls\ncat a\n</tool>",
        "<tool: bash>\nls\ncat a\n</tool: bash>",
        "<tool=bash>\nls\ncat a\n</tool>",
        "~~~~\n<tool: bash>\nls\ncat a\n</tool>\n~~~~",
        "Well.\n<think>\n<tool: submit>\n</tool>\n</think>\n<tool: bash>\nls\ncat a\n</tool>",
        '<tool name="bash">\nls\ncat a\n</tool>',
        "<tool: bash>\nls\ncat a\n</tool><|im_end|>",
        "<tool: bash>\nls\ncat a\n</tool></s>\n",
        "＜tool: bash＞\nls\ncat a\n＜/tool＞",
        "<think>\nCall\n<tool: bash>\nrm a\n</tool>\nor not.\n</think>\n<tool: bash>\nls\ncat a\n</tool>",
        "\n<think>a</think><tool: bash>\nls\ncat a\n</tool>",
        "[THINK]<tool: submit>\n</tool>[/THINK]\n<tool: bash>\nls\ncat a\n</tool>",
    ],
)
def test_a_call_that_can_be_meant_in_one_way_only_is_read(text: str) -> None:
    action = parse_action(text)
    assert (action.tool, action.body) == ("bash", "ls\ncat a")


def test_reasoning_is_part_of_the_thought_and_its_mark_in_a_body_ends_nothing() -> None:
    assert (
        parse_action("<think>a\n</think>\nso\n<tool: bash>\nls\n</tool>").thought == "<think>a\n</think>\nso"
    )
    assert parse_action("<tool: bash>\necho '</think>'\n</tool>").body == "echo '</think>'"
    assert parse_action("<think>so\n<tool: bash>\necho '</think>'\n</tool>").body == "echo '</think>'"
    with pytest.raises(BadFormat, match="No tool call found"):
        parse_action("<think>\n<tool: bash>\nls\n</tool>\n</think>")
    for copied in ("</tool>\n</think>\n", "<think>\n</think>\n"):
        with pytest.raises(BadFormat, match="More than one"):
            parse_action(f"<tool: create>\nnotes\n{copied}<tool: submit>\n</tool>")


def test_only_a_reply_in_crlf_loses_its_carriage_returns() -> None:
    body = "a.txt\none\r\ntwo\r"
    assert parse_action(format_action("create", body)).body == body
    assert parse_action(format_action("create", "a.txt\none\n").replace("\n", "\r\n")).replace == "one\n"
    edit = format_action("edit", format_edit("a.py", 3, "a\nb", "c"))
    assert parse_action(edit.replace("\n", "\r\n")).readings == (("a\nb", "c"),)


def test_an_indented_call_keeps_the_indentation_of_its_text() -> None:
    edit = "  <tool: edit>\na.py\n<<<<<<< SEARCH\n    a\n=======\n    b\n>>>>>>> REPLACE\n  </tool>"
    assert parse_action(edit).readings == (("    a", "    b"),)
    indented = "\n".join(f"  {row}" for row in edit.replace("  <", "<").split("\n"))
    assert parse_action(indented).readings == (("    a", "    b"),)


@pytest.mark.parametrize(
    "body",
    [
        f"```\na.py\n{A_TO_B}\n```",
        f"a.py\n```python\n{A_TO_B}\n```",
        f"\na.py\n\n{A_TO_B}\n\n",
    ],
)
def test_blank_lines_and_a_fence_around_an_edit_are_left_out(body: str) -> None:
    action = parse_action(format_action("edit", body))
    assert (action.path, action.readings) == ("a.py", (("a", "b"),))


HEADING = "Title\n=======\n\nReturns\n-------\n"
CONFLICT = "x = 1\n<<<<<<< HEAD\na\n=======\nb\n>>>>>>> other\ny = 2\n"


@pytest.mark.parametrize(
    ("text", "search", "replace"),
    [
        ("Example\n\ntext\n", "Example", "Example\n=======\nmore"),
        (HEADING, "Title\n=======", "Results\n======="),
        (HEADING, "Title\n=======\n", "Results\n"),
        (HEADING, "=======\n\nReturns", "=======\n\nReturns\n======="),
        (CONFLICT, CONFLICT.partition("x = 1\n")[2].partition("\ny")[0], "a"),
        (CONFLICT.replace("\n", "\r\n"), "a\n=======\nb", "c"),
    ],
)
def test_the_file_tells_which_line_of_seven_equals_signs_is_the_mark(
    text: str, search: str, replace: str
) -> None:
    action = parse_action(format_action("edit", format_edit("a.rst", None, search, replace)))
    assert (search, replace) in action.readings
    new, replacement = apply_one_of(text, action.readings)
    assert (new, replacement) == (apply_edit(text, search, replace), replace)


def test_a_heading_that_is_replaced_by_a_heading_is_the_reading_shown() -> None:
    action = parse_action(
        format_action("edit", format_edit("m.py", None, "Returns\n=======", "Results\n======="))
    )
    assert (action.search, action.replace) == ("Returns\n=======", "Results\n=======")


def test_an_edit_that_fits_in_no_reading_or_changes_nothing_says_so() -> None:
    action = parse_action(format_action("edit", format_edit("m.py", None, "A\n=======", "A\n=======")))
    with pytest.raises(EditError, match="nothing would change"):
        apply_one_of("A\n=======\n", action.readings)
    with pytest.raises(EditError, match="not in the file"):
        apply_one_of("B\n=======\n", action.readings)


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


def test_an_edit_of_the_wrong_line_shows_that_line() -> None:
    with pytest.raises(EditError, match=r"nowhere in the file. That line is:\n4:    y = x \+ 1$"):
        apply_edit(FILE, "y = x * 1", "y = x", 4)
    with pytest.raises(EditError, match=r"\n1:a{200}$"):
        apply_edit("a" * 300, "b", "c", 1)


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("src/what_patch/apply.py", "src/whatthepatch/apply.py"),
        ("/testbed/src/whatthepatch/applied.py", "src/whatthepatch/apply.py"),
        ("jasmespath/visitor.py", "jmespath/visitor.py"),
        ("jmespath/visitors.py", "jmespath/visitor.py"),
        ("something/else.txt", ""),
    ],
)
def test_the_answer_to_an_edit_of_no_file_names_the_nearest_one(path: str, nearest: str) -> None:
    files = [
        "jmespath/parser.py",
        "jmespath/visitor.py",
        "src/whatthepatch/apply.py",
        "src/whatthepatch/patch.py",
    ]
    hint = f" The nearest name is {nearest}" if nearest else ""
    assert no_such_file(path, files) == f"{path} is not a file that can be read.{hint}"
    assert no_such_file(path, []) == f"{path} is not a file that can be read."


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
