"""The first sections of a run's summary as an SVG, for the README.

python tests/helpers/run_picture.py RUN docs/figures/run.svg
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from selfplay.curriculum.store import Store
from selfplay.metrics import read_metrics
from selfplay.orchestrator.run_folder import open_run
from selfplay.viewing.summary import print_sections, summary_sections

WIDTH = 80  # columns
SECTIONS = 4  # bugs, rejections, solve rates, rewards
FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # rich names fonts on the network; a page needs none


def draw(run: str, picture: Path) -> None:
    folder = open_run(run, Path("runs"))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    with Store.open(folder.database, writer=False) as store:
        sections = summary_sections(store, folder.path, read_metrics(folder.metrics))
        print_sections(sections[:SECTIONS], console)
    svg = console.export_svg(title="selfplay train", theme=MONOKAI, unique_id="run")
    picture.write_text(FONTS.sub("", svg), encoding="utf-8")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run")
    options.add_argument("picture", type=Path)
    chosen = options.parse_args()
    draw(chosen.run, chosen.picture)
