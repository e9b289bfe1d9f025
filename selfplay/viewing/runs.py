"""Prints the runs of a folder: how far each is, and the settings in which they differ.

Reads each run's settings and database. A run that cannot be read is listed with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from selfplay.curriculum.database import is_being_written
from selfplay.curriculum.store import Store
from selfplay.errors import SelfplayError
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.viewing.shell import show_command
from selfplay.viewing.tables import Column, Listing, print_note, shown_text, table

MAX_SETTINGS = 12
# Every run has its own; the folder is the one that is listed.
OWN_SETTINGS = ("run.name", "run.folder")
RUN_COLUMNS = (
    Column("run"),
    Column("started", rank=2),
    Column("updates", right=True),
    Column("bugs", rank=1, right=True),
    Column("state", least=10),
)


@dataclass(frozen=True)
class RunFacts:
    """What the list says of one run.

    updates   committed ones
    planned   `train.updates`
    state     "playing", "done", "stopped", or "unreadable: " and the reason
    settings  name -> value, of the settings in which the listed runs differ
    """

    run: str
    started: str
    updates: int = 0
    planned: int = 0
    bugs: int = 0
    state: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def run_facts(runs: Sequence[RunFolder]) -> list[RunFacts]:
    """The facts of each run, in the order given."""
    settings = {}
    found = []
    for run in runs:
        started = datetime.fromtimestamp(run.repositories_file.stat().st_mtime).isoformat(" ", "minutes")
        try:
            config = run.config()
            with closing(Store.open(run.database, writer=False)) as store:
                done, bugs = store.last_update(), store.count_bugs()
        except SelfplayError as error:
            found.append(RunFacts(run.path.name, started, state=f"unreadable: {error}"))
            continue
        settings[run.path.name] = flat_settings(config.model_dump(mode="json"))
        is_done = done >= config.train.updates
        state = "playing" if is_being_written(run.database) else "done" if is_done else "stopped"
        found.append(RunFacts(run.path.name, started, done, config.train.updates, bugs, state))
    differing = differing_settings(settings)
    return [RunFacts(**asdict(facts) | {"settings": differing.get(facts.run, {})}) for facts in found]


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"updates": 8}}` as `{"train.updates": 8}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= flat_settings(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run -> its values of the settings that differ between runs. A run may lack a setting."""
    names = sorted({name for values in settings.values() for name in values} - set(OWN_SETTINGS))
    different = [
        name
        for name in names
        if len({json.dumps(values.get(name), sort_keys=True) for values in settings.values()}) > 1
    ]
    return {
        run: {name: values[name] for name in different if name in values} for run, values in settings.items()
    }


def show_runs(runs: Sequence[RunFolder], console: Console, as_json: bool = False) -> None:
    """Print the table of runs, then the settings in which they differ. JSON goes to stdout."""
    facts = run_facts(runs)
    if as_json:
        print(json.dumps([asdict(one) for one in facts], indent=2))
        return
    rows = [
        {
            "run": one.run,
            "started": one.started,
            "updates": f"{one.updates} of {one.planned}",
            "bugs": str(one.bugs),
            "state": one.state,
        }
        for one in facts
    ]
    console.print(Listing(RUN_COLUMNS, rows), highlight=False)
    if any(one.settings for one in facts):
        console.print(Text("\nSettings that differ", style="bold"))
        shown = table("run", "settings", whole=("run",))
        for one in facts:
            shown.add_row(shown_text(one.run), shown_text(_settings_text(one.settings)))
        console.print(Padding(shown, (0, 0, 0, 2)), highlight=False)
    console.print()
    print_note(console, f"{len(facts)} run(s), the newest last.", show_command(runs[-1].path))


def _settings_text(settings: Mapping[str, Any]) -> str:
    texts = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    more = [f"… {len(texts) - MAX_SETTINGS} more; --json has all"] if len(texts) > MAX_SETTINGS else []
    return "  ".join(texts[:MAX_SETTINGS] + more) or "–"
