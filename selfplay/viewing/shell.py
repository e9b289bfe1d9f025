"""Commands that a listing prints, as a person can paste them into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

DEFAULT_RUNS = Path("runs")


def runs_option(run: Path) -> str:
    """` --runs FOLDER` for the folder that the run is in, "" if commands look there anyway."""
    parent = run.parent
    return "" if parent.resolve() == DEFAULT_RUNS.resolve() else f" --runs {shlex.quote(str(parent))}"


def inspect_command(run: Path, options: str = "") -> str:
    """`selfplay inspect-bugs` of this run."""
    return f"selfplay inspect-bugs {shlex.quote(run.name)}{options}{runs_option(run)}"


def replay_command(run: Path, episode_id: str) -> str:
    """`selfplay replay` of an episode of this run."""
    return f"selfplay replay {shlex.quote(episode_id)} --run {shlex.quote(run.name)}{runs_option(run)}"


def show_command(run: Path) -> str:
    """`selfplay show` of this run."""
    return f"selfplay show {shlex.quote(run.name)}{runs_option(run)}"
