"""Folded text, and what is found in it."""

from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from selfplay.viewing.folding import MAX_LINE, Folded, folded_diff, folded_edit, folded_text, shown_lines
from selfplay.viewing.screens.page_view import find_all, section_lines
from selfplay.viewing.sections import Section

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e\r\x9b31m\x00[red]markup[/red]\u2028\udce9"


def printed(folded: Folded, width: int) -> list[str]:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(folded)
    return console.file.getvalue().split("\n")[:-1]


def styles(folded: Folded) -> dict[str, str]:
    return {text: style for line in folded.lines for text, style in line}


@pytest.mark.parametrize("text", ["x" * 25, "日本語" * 9, "é日x" * 9, "", "a\n\nb"])
@pytest.mark.parametrize("width", [7, 10])
def test_lines_fit_the_width_and_hold_the_whole_text(text, width):
    lines = printed(folded_text(text), width)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines) == text.replace("\n", "")


def test_a_line_of_many_pieces_goes_on_where_the_last_one_ended():
    assert printed(Folded([[("abc", "red"), ("defg", ""), ("日", "")]]), 5) == ["abcde", "fg日"]


def test_hostile_text_is_spelled_out():
    (line,) = shown_lines(HOSTILE)
    assert line == ("\\x1b]0;owned\\x07\\x1b[2J\\u202e\\x0d\\x9b31m\\x00[red]markup[/red]\\u2028\\xe9")


def test_a_huge_line_is_cut_and_the_rest_is_counted():
    (line,) = shown_lines("x" * (MAX_LINE + 5))
    assert line.endswith("… 5 characters more; --json has all") and len(line) < MAX_LINE + 50


def test_lines_of_a_diff_and_of_an_edit_have_their_colours():
    diff = styles(folded_diff("--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-x\n+y\n z\n"))
    assert diff == {"--- a/m.py": "bold", "+++ b/m.py": "bold", "@@ -1 +1 @@": "cyan"} | {
        "-x": "red",
        "+y": "green",
        " z": "",
    }
    edit = styles(folded_edit("m.py:1\n<<<<<<< SEARCH\nold\n=======\nnew\n>>>>>>> REPLACE"))
    assert (edit["m.py:1"], edit["old"], edit["new"]) == ("", "red", "green")


def test_a_text_is_found_in_any_case_also_across_folds_and_never_across_lines():
    part = Section("the part", (folded_text("0123456789abcdefghi\nkl"),))
    lines = section_lines(part, 12)  # 10 cells of text beside the bar
    assert [line.text for line in lines][1:4] == ["0123456789", "abcdefghi", "kl"]
    (found,) = find_all(lines, "89AB")
    assert found.parts == ((1, 10, 12), (2, 2, 4))
    assert find_all(lines, "ik") == [], "another line begins there"
    assert [match.line for match in find_all(lines, "the part")] == [0]
    assert find_all(lines, "") == []


def test_no_line_of_a_section_is_wider_than_the_screen():
    part = Section(HOSTILE * 5, (folded_text(HOSTILE * 20),))
    for width in (20, 80):
        for line in section_lines(part, width):
            assert line.strip.cell_length <= width
            assert not any(character in line.strip.text for character in "\x1b\x07\u202e\x9b\x00\r")
