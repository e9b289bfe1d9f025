"""`selfplay export`: bugs or episodes of a run in a format that other tools read."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

from selfplay import parts
from selfplay.commands.choices import chosen_run
from selfplay.curriculum.store import Store
from selfplay.errors import UsageError
from selfplay.exports.base import RunExport
from selfplay.viewing.tables import output_console

SETTING = "export"  # the kind of part


def write_export(name: str, runs: Path, format_: str, output: Path | None) -> None:
    """Write the export whole or not at all.

    Raises UsageError for an unknown format, and for an output that exists or cannot be written.
    """
    if not format_:
        raise UsageError(f"--format NAME is needed: {', '.join(parts.names_of(SETTING))}.")
    try:
        parts.check_name(SETTING, format_)
    except ValueError as error:
        raise UsageError(f"--format {error}") from error
    if output is None:
        raise UsageError("--output OUTPUT is needed: the file or folder to write.")
    if output.exists() or not output.absolute().parent.is_dir():
        problem = "it exists" if output.exists() else "there is no such folder above it"
        raise UsageError(f"cannot write the export to {output}: {problem}. Give a new path.")
    folder = chosen_run(name, runs)
    partial = output.with_name(f".{output.name}.partial")
    _remove(partial)  # of an export that was killed
    with closing(Store.open(folder.database, writer=False)) as store:
        run = RunExport(folder, folder.config(), store)
        try:
            count = parts.call(SETTING, format_, run, partial)
            partial.rename(output)
        finally:
            _remove(partial)
    console = output_console()
    console.print(f"{count} written to {output} as {format_}.", markup=False, highlight=False, soft_wrap=True)
    for reason, number in sorted(run.left_out.items()):
        if number:
            console.print(f"Left out: {number} {reason}.", markup=False, highlight=False, soft_wrap=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
