"""`selfplay show` and `selfplay runs`: a run's summary at any time, and which runs there are."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from selfplay.commands.choices import chosen_run
from selfplay.curriculum.store import Store
from selfplay.errors import RunError
from selfplay.orchestrator.run_folder import found_runs
from selfplay.viewing.runs import show_runs
from selfplay.viewing.summary import print_summary, summary_data
from selfplay.viewing.tables import output_console


def show_run(name: str, runs: Path, *, as_json: bool = False) -> None:
    """Print the summary of a run as it is now, also while it plays."""
    folder = chosen_run(name, runs)
    with closing(Store.open(folder.database, writer=False)) as store:
        if as_json:
            print(json.dumps(summary_data(store, folder.path), indent=2))
        else:
            print_summary(store, folder.path, output_console())


def list_runs(runs: Path, *, as_json: bool = False) -> None:
    """Print the runs below a folder. Raises RunError if there are none."""
    found = found_runs(runs)
    if not found:
        raise RunError(f"there are no runs in {runs}. Start one with: selfplay train --repos list.txt")
    show_runs(found, output_console(), as_json=as_json)
