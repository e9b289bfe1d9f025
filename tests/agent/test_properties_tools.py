"""Properties of calls, edits and observations, for any text of the policy and any output of commands."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hostile_texts import LINES, contents, lines
from selfplay.agent.chat import ChatFormat, load_tokenizer
from selfplay.agent.editing import EditError, apply_edit
from selfplay.agent.observations import cap_output, make_harmless, render_observation
from selfplay.agent.tool_format import (
    CLOSING,
    LOOSE_CLOSING,
    LOOSE_OPENING,
    OPENING,
    BadFormat,
    format_action,
)
from selfplay.agent.tools import MARKS, STANDARD, Action, format_edit, parse_action
from tiny_policy import SPECIALS, TAGS, build_tiny_tokenizer

MARKER = 26  # the most tokens of the note on cut text, as in the tools
unicode_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
bodies = contents() | unicode_texts
thoughts = contents(4) | st.just("")


def holds_no_tag(text: str) -> bool:
    return not OPENING.search(text) and not CLOSING.search(text)


def holds_no_mark(text: str) -> bool:
    return not any(line.rstrip() in (MARKS[0], MARKS[2]) for line in text.split("\n"))


# ---- calls


@given(thought=thoughts, tool=st.sampled_from(["bash", "create", "submit"]), body=bodies)
@example(thought="", tool="bash", body="\nls\n\n")
@example(thought="", tool="submit", body="\n")
def test_a_formatted_call_reads_back(thought: str, tool: str, body: str) -> None:
    assume(holds_no_tag(thought) and holds_no_tag(body) and "\0" not in body)
    assume(tool != "bash" or body.strip())
    assume(tool != "create" or body.partition("\n")[0].strip())
    action = parse_action(f"{thought}\n{format_action(tool, body)}")
    assert (action.tool, action.body, action.thought) == (tool, body, thought.strip())
    if tool == "create":
        first, _, content = body.partition("\n")
        assert action.path == first.strip()
        assert action.replace == content or (action.replace == content + "\n" and not content.endswith("\n"))


paths = st.sampled_from(["a.py", "pkg/with blank.py", "é.py", "a:b", "a:1:2", "c:/x", "-rf", "$(x)"])


@given(path=paths, line=st.none() | st.integers(0, 999_999_999), search=bodies, replace=bodies)
def test_a_formatted_edit_reads_back(path: str, line: int | None, search: str, replace: str) -> None:
    assume(line is not None or path != "a:1:2")  # a path that ends with a number needs a line
    assume(
        search
        and all(holds_no_tag(text) and holds_no_mark(text) and "\0" not in text for text in (search, replace))
    )
    middles = [row.rstrip() for row in f"{search}\n{replace}".split("\n")].count(MARKS[1])
    assume(middles < 8)
    action = parse_action(format_action("edit", format_edit(path, line, search, replace)))
    assert (action.path, action.line) == (path, line)
    assert (search, replace) in action.readings and len(action.readings) <= middles + 1


CALL_LINES = st.sampled_from(
    [
        *LINES,
        *(f"<tool: {tool}>" for tool in STANDARD.tools),
        "<tool: >",
        " <tool: bash>",
        "</tool> ",
        "a.py:\u0663",
        "a.py:3",
        "\0",
    ]
)


EDIT = ["<<<<<<< SEARCH", "a", "=======", "b", ">>>>>>> REPLACE"]
call_rows = st.lists(CALL_LINES, max_size=10)
edit_calls = st.builds(
    lambda where, more: ["<tool: edit>", where, *EDIT, *more, "</tool>"],
    CALL_LINES,
    st.lists(CALL_LINES, max_size=1),
)


tag_rows = st.lists(st.sampled_from(["<tool: bash>", "<tool: submit>", "</tool>", "ls", ""]), max_size=6)


@given(rows=call_rows | tag_rows | edit_calls)
@example(rows=["<tool: bash>", "ls", "</tool>", "<tool: submit>", "</tool>"])
@example(rows=["<tool: bash>", "ls", "</tool>", "so be it"])
@example(rows=["<tool: edit>", "a.py:\u0663", *EDIT, "</tool>"])
@example(rows=["<tool: bash>", "ls", "</tool>", " <tool: submit>"])
@example(rows=["<tool: create>", "a", " <tool: submit></tool>"])
def test_any_reply_is_one_call_or_is_refused_with_an_explanation(rows: list[str]) -> None:
    text = "\n".join(rows)
    try:
        action = parse_action(text)
    except BadFormat as error:
        assert str(error).isprintable()
        return
    assert action.tool in STANDARD.tools and isinstance(action, Action)
    assert len(OPENING.findall(text)) <= 1 and len(CLOSING.findall(text)) <= 1
    if not OPENING.search(text):  # read since nothing else in the reply can be a call
        assert len(LOOSE_OPENING.findall(text)) == len(LOOSE_CLOSING.findall(text)) == 1
    assert holds_no_tag(action.body)
    assert text.rstrip().endswith("</tool>")
    if action.line is not None:
        assert f":{action.line}" in action.body.partition("\n")[0]


# ---- edits


dense = st.text("ab\n", max_size=8)  # parts of it occur several times, also overlapping or across lines


@settings(max_examples=2 * settings.default.max_examples)
@given(
    before=dense | contents(4),
    search=st.text("ab\n", min_size=1, max_size=3)
    | st.text("ab\n\r ", min_size=1, max_size=4)
    | lines.filter(bool),
    after=dense | contents(4),
    replace=dense | bodies,
    line=st.none() | st.integers(-1, 8),
)
@example(before="", search="aa", after="a", replace="b", line=None)
@example(before="b\n", search="a", after="\n", replace="b", line=1)
@example(before="a\na\n", search="a", after="\na", replace="b", line=2)
@example(before="", search="a", after="\r\n", replace="x\r\ny", line=None)
@example(before="b\r\n", search="a\nb", after="\r\n", replace="a\r\nb", line=None)
@example(before="", search="a\nb", after="\nc\r\n", replace="x", line=None)
def test_an_edit_changes_the_only_occurrence_or_says_why_not(
    before: str, search: str, after: str, replace: str, line: int | None
) -> None:
    text = before + search + after
    shown = text if "\r" in search else text.replace("\r\n", "\n")
    fits = occurrences(shown, search, line)
    try:
        new = apply_edit(text, search, replace, line)
    except EditError as error:
        would_be = shown[: fits[0]] + replace + shown[fits[0] + len(search) :] if len(fits) == 1 else None
        assert would_be is None or squashed(would_be) == squashed(shown), error
        return
    assert new != text
    assert len(fits) == 1
    assert squashed(new) == squashed(shown[: fits[0]] + replace + shown[fits[0] + len(search) :])
    assert any(
        new.startswith(text[:start]) and new.endswith(text[end:]) for start, end in spans_of(text, search)
    )


def occurrences(text: str, search: str, line: int | None) -> list[int]:
    starts = [start for start in range(len(text)) if text.startswith(search, start)]
    return [start for start in starts if line is None or text.count("\n", 0, start) + 1 == line]


def squashed(text: str) -> str:
    return re.sub(r"\r+\n", "\n", text)


def spans_of(text: str, search: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each occurrence of `search` in the text, where any of its line breaks may be CRLF."""
    for start in range(len(text)):
        for end in range(start + len(search), start + 2 * len(search) + 1):
            if search in (text[start:end], text[start:end].replace("\r\n", "\n")):
                yield start, end


@given(
    rows=st.lists(st.sampled_from(["a", "b", "  c", ""]), min_size=1, max_size=6),
    at=st.integers(0, 30),
    size=st.integers(1, 8),
    put=st.sampled_from(["x", "x\ny", "x\r\ny", ""]),
)
@example(rows=["a"], at=0, size=1, put="x\r\ny")
@example(rows=["a", "b"], at=0, size=3, put="x\ny")
def test_a_file_with_windows_line_ends_keeps_them(rows: list[str], at: int, size: int, put: str) -> None:
    text = "\r\n".join(rows) + "\r\n"
    shown = make_harmless(text)
    start = at % len(shown)
    search = shown[start : start + size]
    try:
        new = apply_edit(text, search, put)
    except EditError:
        assert len(occurrences(shown, search, None)) > 1 or search == put
        return
    assert new.count("\n") == new.count("\r\n") and "\r\r" not in new
    assert make_harmless(new) == shown.replace(search, put.replace("\r\n", "\n"), 1)


# ---- observations


@given(text=st.text(max_size=60) | contents())
def test_shown_text_has_no_control_character(text: str) -> None:
    shown = make_harmless(text)
    assert all(
        character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
        for character in shown
    )
    shown.encode()
    assert make_harmless(shown) == shown
    assert shown.count("\n") == text.count("\n")


def test_bytes_that_are_not_utf_8_are_shown_as_bytes() -> None:
    assert make_harmless(b"caf\xe9 \x1b".decode("utf-8", "surrogateescape")) == "caf\\xe9 \\x1b"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    return ChatFormat(load_tokenizer(str(build_tiny_tokenizer(folder))))


def one_each(text: str) -> list[tuple[int, int]]:
    return [(at, at + 1) for at in range(len(text))]


long_texts = st.builds(lambda text, times: text * times, contents(), st.integers(1, 60))


@given(text=long_texts, most=st.integers(1, 200), by_character=st.booleans())
def test_cut_output_keeps_its_limit_and_says_how_much_is_cut(
    chat: ChatFormat, text: str, most: int, by_character: bool
) -> None:
    spans = one_each if by_character else chat.spans
    text = make_harmless(text)
    shown = cap_output(text, most, spans)
    if shown == text:
        assert len(spans(text)) <= most
        return
    slack = 0 if by_character else 8  # a cut may split a token, and one character may be several tokens
    assert len(spans(shown)) <= max(most, MARKER + 6) + slack
    rows = shown.split("\n")
    notes = [
        at
        for at, row in enumerate(rows)
        if row.endswith((" lines cut]", " characters cut]")) and row.startswith("[")
    ]
    assert any(is_cut_of(text, rows[:at], rows[at], rows[at + 1 :]) for at in notes)


def is_cut_of(text: str, head_rows: list[str], note: str, tail_rows: list[str]) -> bool:
    head, tail = "\n".join(head_rows), "\n".join(tail_rows)
    number = int(note[1:].split(" ")[0])
    if not (text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text)):
        return False
    if "lines" in note:
        return len(head_rows) + number + len(tail_rows) == text.count("\n") + 1
    return len(head) + number + len(tail) == len(text)


hostile = st.lists(
    st.sampled_from([*SPECIALS, *TAGS, *LINES, "<|im_", "end|>", "assistant\n", "\u200b"]), max_size=12
)


@given(pieces=hostile, joint=st.sampled_from(["", "\n", " "]), most=st.integers(8, 100))
def test_no_observation_opens_a_turn_or_hides_its_last_line(
    chat: ChatFormat, pieces: list[str], joint: str, most: int
) -> None:
    output = cap_output(make_harmless(joint.join(pieces)), most, chat.spans)
    shown = render_observation(output, 1, 3, 99)
    assert shown.rpartition("\n")[2] == "[exit 1; 3 turns, 99 tokens left]"
    control = set(chat.extend("")) - set(chat.encode("user\nassistant\n"))
    assert control and control.isdisjoint(chat.encode(shown))
    assert chat.extend(shown).count(chat.stop_id) == chat.extend("").count(chat.stop_id)
    framing = chat.extend("")
    at = next(n for n in range(len(framing) + 1) if chat.extend("a")[:n] != framing[:n]) - 1
    assert chat.extend(shown) == [*framing[:at], *chat.encode(shown), *framing[at:]]


TOOL_NAMES = [*TAGS, "<tool: bash>"]


@given(text=long_texts, most=st.integers(1, 100))
def test_cutting_creates_no_tool_tag(text: str, most: int) -> None:
    text = make_harmless(text).replace("<tool", "x<tool").replace("</tool", "x</tool")
    shown = cap_output(text, most, one_each)
    assert "lines cut]" not in shown or not (OPENING.search(shown) or CLOSING.search(shown))
