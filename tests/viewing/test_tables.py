import io

from rich.console import Console

from selfplay.viewing.tables import PIPE_WIDTH, Column, Listing, output_console

COLUMNS = (
    Column("bug"),
    Column("change", rank=1, least=6),
    Column("status", rank=2),
    Column("solved", right=True),
)
ROWS = [
    {"bug": "u0001-bug", "change": "return a + b → return a - b", "status": "measured", "solved": "3/8"},
    {"bug": "u0002-bug", "change": "two\nlines", "status": "void", "solved": "–"},
]


def lines(width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(Listing(COLUMNS, ROWS))
    return console.file.getvalue().splitlines()


def test_each_row_of_a_listing_is_one_line_at_every_width():
    for width in range(17, 90):
        shown = lines(width)
        assert len(shown) == 1 + len(ROWS), width
        assert max(map(len, shown)) <= width
        assert "u0001-bug" in shown[1] and "3/8" in shown[1]


def test_columns_of_a_high_rank_are_left_out_first_then_texts_are_cut():
    assert "return a + b → return a - b" in lines(80)[1]
    assert "measured" in lines(41)[1] and "…" in lines(41)[1]
    assert "measured" not in lines(30)[1] and "…" in lines(30)[1]
    assert lines(17)[0].split() == ["bug", "solved"]


def test_a_listing_that_cannot_fit_prints_its_narrow_form_with_whole_numbers():
    wide = Listing(
        (Column("rate", right=True),),
        [{"rate": "21.9% ± 9.1"}],
        Listing((Column("rate"),), [{"rate": "21.9%"}]),
    )
    for width, text in ((11, "21.9% ± 9.1"), (10, "21.9%")):
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(wide)
        assert console.file.getvalue().split("\n")[1].strip() == text


def test_a_line_break_in_a_text_does_not_break_the_row():
    assert "two⏎lines" in lines(80)[2]


def test_a_pipe_has_room_for_all_columns_and_COLUMNS_decides_otherwise(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert output_console().width == PIPE_WIDTH
    monkeypatch.setenv("COLUMNS", "72")
    assert output_console().width == 72
