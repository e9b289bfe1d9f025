"""The pictures of docs/gallery.md: screens of a run in a terminal emulator, and its report in a browser.

PYTHONPATH=. python tests/helpers/gallery.py RUN docs/pictures [NAME …]

Each picture is what a command shows of RUN; that of `train` is its live display with the counts of RUN. The
report needs chromium on PATH.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

from selfplay.curriculum.store import Store
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.viewing.progress import TrainProgress, counts_so_far
from selfplay.viewing.summary import evaluation_folders
from terminal_screen import TerminalScreen

FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # rich names fonts on the network; a page needs none
CODES = {"brown": "yellow", "brightbrown": "bright_yellow"}  # colours that pyte calls otherwise
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
Shown = str | Callable[[str], bool]


@dataclass(frozen=True)
class Shot:
    """A command and what is typed before its picture is taken.

    steps: (wait for this, then type these keys).
    """

    arguments: Sequence[str]
    steps: Sequence[tuple[Shown, str]]
    columns: int = 100
    lines: int = 30


@dataclass(frozen=True)
class Page:
    """A window of a browser on a report. section: the only one that is shown; "" for all."""

    width: int
    height: int
    section: str = ""
    dark: bool = False


PAGES = {
    "report": Page(1100, 800),
    "report-rejections": Page(1100, 620, "rejections"),
    "report-dark": Page(1100, 620, "bugs", dark=True),
    "report-phone": Page(390, 800, "ends"),
}


def shots(run: Path) -> dict[str, Shot]:
    """Name -> picture of a terminal, from the episodes and bugs that the run has."""
    name = run.name
    with Store.open(run / "selfplay.db", writer=False) as store:
        bug = max(store.bugs(), key=lambda one: (one.solve_rate is not None, 0 < (one.solve_rate or 0) < 1))
        solved = [row for row in store.attempts(bug.bug_id) if row.passed] or store.attempts(bug.bug_id)
        episode = solved[0].episode_id
    found = {
        "replay": Shot(("replay", episode, "--run", name), (("? help", "l"), (_at_a_turn, ""))),
        "replay-tokens": Shot(
            ("replay", episode, "--run", name), (("? help", "p"), ("tokens", "l"), (_at_a_turn, ""))
        ),
        "inspect-bugs": Shot(("inspect-bugs", name), (("? help", ""),), 120, 24),
        "bug-story": Shot(("inspect-bugs", name, "--bug", bug.bug_id), (("? help", ""),)),
        "rejected": Shot(("inspect-bugs", name, "--rejected"), ((_is_over, ""),), 100, 20),
        "doctor": Shot(("doctor",), ((_is_over, ""),), 100, 36),
    }
    folders = [str(folder.path.relative_to(run.parents[1])) for _, folder in evaluation_folders(run)]
    if len(folders) > 1:
        found["eval-compare"] = Shot(
            ("eval", "--compare", folders[0], folders[-1]), ((_is_over, ""),), 100, 60
        )
    return found


def _is_over(text: str) -> bool:
    """Never: the picture is taken when the command has ended."""
    return False


def _at_a_turn(text: str) -> bool:
    """True once the page and the line of state, which is drawn last, show the first turn."""
    lines = text.splitlines()
    return lines[1].startswith("━━ turn 1 ") and lines[-1].startswith(" turn 1 ")


# ---- terminals


def photograph(shot: Shot, folder: Path) -> str:
    """The SVG of a command's screen."""
    with TerminalScreen(shot.arguments, folder, shot.columns, shot.lines) as terminal:
        for shown, keys in shot.steps:
            if shown is _is_over:
                terminal.end()
            else:
                terminal.wait_for(shown)
                terminal.press(keys)
        return svg_of(terminal.screen, f"selfplay {' '.join(shot.arguments)}")


def draw_training(run: Path) -> str:
    """The SVG of the live screen, as it would be while solvers play the last update with the run's counts."""
    updates = RunFolder(run).config().train.updates
    with Store.open(run / "selfplay.db", writer=False) as store:
        counts = counts_so_far(store)
    progress = TrainProgress(Console(file=io.StringIO()), updates, updates - 1, counts)
    progress.phase("solving")
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    console.print(progress)
    svg = console.export_svg(title="selfplay train", theme=MONOKAI, unique_id="picture")
    return FONTS.sub("", svg)


def svg_of(screen: pyte.Screen, title: str) -> str:
    """A terminal's screen as an SVG, without the empty lines at its end."""
    rows = [_row(screen, number) for number in range(screen.lines)]
    while rows and not rows[-1].plain.strip():
        rows.pop()
    console = Console(record=True, width=screen.columns, file=io.StringIO(), force_terminal=True)
    for row in rows:
        console.print(row, no_wrap=True, crop=True)
    svg = console.export_svg(title=title, theme=MONOKAI, unique_id="picture")
    return FONTS.sub("", svg)


def _row(screen: pyte.Screen, number: int) -> Text:
    chars = [screen.buffer[number][column] for column in range(screen.columns)]
    row = Text()
    for style, alike in groupby(chars, _style):
        row.append("".join(char.data for char in alike), style)
    return row


def _style(char: Char) -> Style:
    return Style(
        color=_colour(char.fg),
        bgcolor=_colour(char.bg),
        bold=char.bold,
        italic=char.italics,
        underline=char.underscore,
        reverse=char.reverse,
    )


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return CODES.get(name, name.replace("bright", "bright_"))


# ---- the report


def photograph_report(run: Path, picture: Path, page: Page) -> None:
    """Write a PNG of the run's report as a browser shows it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit("no chromium on PATH (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.html"
        write = [sys.executable, "-m", "selfplay.cli", "report", str(run), "--output", str(report)]
        subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
        options += ["--blink-settings=preferredColorScheme=0"] if page.dark else []
        options += [f"--window-size={page.width},{page.height}", f"--user-data-dir={scratch}/browser"]
        if page.section:
            others = re.compile(rf'<section id="(?!{page.section}").*?</section>', re.DOTALL)
            report.write_text(others.sub("", report.read_text(encoding="utf-8")), encoding="utf-8")
        subprocess.run(
            [browser, *options, f"--screenshot={picture.absolute()}", report.as_uri()],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def main(run: Path, folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SELFPLAY_CACHE", "cache")
    terminals = shots(run)
    for name in names or [*terminals, "train", *PAGES]:
        if name in PAGES:
            photograph_report(run, folder / f"{name}.png", PAGES[name])
            continue
        svg = draw_training(run) if name == "train" else photograph(terminals[name], run.parents[1])
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        print(f"{name}: {len(svg) / 1000:.0f} kB")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("folder", type=Path)
    options.add_argument("names", nargs="*")
    chosen = options.parse_args()
    main(chosen.run.absolute(), chosen.folder.absolute(), chosen.names)
