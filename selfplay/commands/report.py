"""`selfplay report`: one HTML page about one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfplay.commands.choices import chosen_run
from selfplay.errors import UsageError
from selfplay.viewing.report.page import report_page
from selfplay.viewing.report.run_data import read_run
from selfplay.viewing.tables import output_console


def write_report(names: Sequence[str], runs: Path, output: Path | None) -> None:
    """Write the page.

    names: runs; none for the newest. output: None for report.html in the first run's folder.
    Raises UsageError for a run that is named twice, and for an output that cannot be written.
    """
    folders = [chosen_run(name, runs) for name in names or ("",)]
    if twice := [folder.path.name for folder in folders if folders.count(folder) > 1]:
        raise UsageError(f"the run {twice[0]!r} is named twice; name each run once.")
    path = output if output is not None else folders[0].path / "report.html"
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"cannot write the report to {path}: it is no file in a folder that exists.")
    page = report_page([read_run(folder) for folder in folders])
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.rename(path)
    output_console().print(
        f"{path} written; open it in a browser.", markup=False, highlight=False, soft_wrap=True
    )
