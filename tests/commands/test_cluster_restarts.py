"""A cluster that loses a trainer rank: how often the run goes on by itself, and with how many ranks."""

import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from selfplay.cluster.memory import GIB
from selfplay.cluster.seats import Node
from selfplay.commands import train as start
from selfplay.commands.clusters import Done, play_on_what_is_left
from selfplay.config import build_config
from selfplay.curriculum.store import Store
from selfplay.errors import ServerLost, TrainerError
from selfplay.orchestrator.run_folder import create_run


class Machines:
    """A cluster that has the next number of nodes in `counts` at each call, and places without processes."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts

    def nodes(self) -> list[Node]:
        return [Node(f"n{number}", 1, 80 * GIB, 8, 64 * GIB) for number in range(self._counts.pop(0))]

    def places(self, plan: Any) -> Any:
        return SimpleNamespace(plan=plan, close=lambda: None)


@pytest.fixture
def play_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """A function that plays with a trainer that is lost `losses` times. It returns the ranks of each try."""

    def run(losses: int, counts: list[int], restarts: int = 2) -> list[int]:
        values = {
            "run": {"folder": str(tmp_path), "name": "r"},
            "trainer": {"type": "deepspeed", "ranks": 4},
            "cluster": {"restarts": restarts},
        }
        folder, config = create_run(build_config(values), "x\n", datetime(2026, 1, 1), "")
        Store.open(folder.database).close()
        ranks: list[int] = []

        def play(planned: Any, *_: Any) -> None:
            ranks.append(planned.config.trainer.ranks)
            if len(ranks) <= losses:
                raise TrainerError("rank 1 of 4 was lost")

        monkeypatch.setattr(start, "_play", play)
        planned = start.PlannedRun(folder, config, [], SimpleNamespace(), "", Console(quiet=True))
        start._play_on(Machines(counts), planned)
        return ranks

    return run


def test_a_run_goes_on_with_what_is_left_of_the_cluster(play_on: Callable[..., list[int]]) -> None:
    assert play_on(2, [4, 3, 1]) == [4, 2, 1]


def test_an_evaluation_that_loses_its_servers_goes_on_while_attempts_are_finished() -> None:
    finished, servers, console = [0, 2, 2, 2], [], Console(file=io.StringIO(), width=200)
    config = build_config({"engine": {"type": "vllm", "servers": 4}, "cluster": {"restarts": 2}})

    def play(placed: Any, _: Any) -> str:
        servers.append(placed.engine.servers)
        raise ServerLost("vllm-0 could not be opened")

    done = Done(lambda: finished.pop(0), lambda number: f"{number} finished attempt(s)")
    with pytest.raises(ServerLost):
        play_on_what_is_left(Machines([4, 3, 2, 1]), config, play, done, console, trains=False)
    assert servers == [4, 3, 2, 1]
    assert "Going on from 2 finished attempt(s) on what is left" in console.file.getvalue()


def test_losses_without_an_update_between_them_end_the_run(play_on: Callable[..., list[int]]) -> None:
    with pytest.raises(TrainerError, match="rank 1 of 4 was lost"):
        play_on(9, [4] * 9, restarts=2)
