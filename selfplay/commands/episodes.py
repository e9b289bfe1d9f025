"""`selfplay episodes`: which episodes a run has, by filters; the members of one group."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from selfplay.commands.choices import check_known, chosen_run
from selfplay.curriculum.store import Store
from selfplay.viewing.episodes import EpisodeFilter, show_episodes
from selfplay.viewing.tables import output_console


def list_episodes(run: str, runs: Path, wanted: EpisodeFilter, *, as_json: bool = False) -> None:
    """Print the episodes. Raises UsageError, with the names that there are, for a name that the run lacks."""
    folder = chosen_run(run, runs)
    with closing(Store.open(folder.database, writer=False)) as store:
        check_names(store, wanted)
        show_episodes(store, wanted, output_console(), as_json=as_json)


def check_names(store: Store, wanted: EpisodeFilter) -> None:
    every = store.episodes()
    check_known("--role", wanted.role, (row.role for row in every))
    check_known("--finish", wanted.finish, (row.finish for row in every))
    check_known("--update", wanted.update, (row.update for row in every))
    check_known("--check", wanted.check, (verdict.failed_check for verdict in store.verdicts(accepted=False)))
