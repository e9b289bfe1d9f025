"""The progress of work that counts its steps: plain lines, and a bar in a terminal."""

import io

from rich.console import Console

from selfplay.viewing.steps import StepProgress


def test_plain_lines_show_the_first_step_at_once_and_others_now_and_then():
    now = [0.0]
    console = Console(file=io.StringIO(), width=60)
    with StepProgress(console, clock=lambda: now[0], plain_interval_s=5.0) as progress:
        progress.report("reading", 0, 0)
        assert console.file.getvalue() == "reading\n"
        for second, done in ((1.0, 1), (4.9, 2), (5.0, 3), (6.0, 4)):
            now[0] = second
            progress.report("reading", done, 1_000)
        progress.report("simulating", 0, 90, "of at most")
    assert console.file.getvalue().splitlines() == [
        "reading",
        "reading: 3 of 1,000",
        "simulating: 0 of at most 90",
    ]


def test_a_terminal_shows_a_bar_that_fits_and_goes_at_the_end():
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    with StepProgress(console) as progress:
        progress.report("reading [red]\x1bmine", 5_999, 6_000)
        progress._bar.refresh()
        assert "5,999 of 6,000 0:00:00" in console.file.getvalue()
        progress.report("simulating", 35, 110, "of at most")
        progress._bar.refresh()
        shown = console.file.getvalue()
    assert "[red]\\x1bmine" in shown
    assert "35 of at most 110" in shown
    assert "━" in shown
    assert console.file.getvalue().endswith("\x1b[2K")  # the line of the bar is cleared
