"""Calls, errors and ends of real rank processes, with a worker that has no model."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import all_end
from process_tree import is_alive
from selfplay.errors import EngineError, TrainerError
from selfplay.training.ranks.controller import RankLaunch, Ranks

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"


@pytest.fixture(autouse=True)
def _worker_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), str(ROOT)]))


def toys(world: int = 2, deadline_s: float = 60.0, logs: Path | None = None) -> Ranks:
    return Ranks(world, RankLaunch(logs), deadline_s, worker="toy_rank:ToyRank")


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    made = toys()
    yield made
    made.close()


def test_answers_come_in_the_order_of_ranks(ranks: Ranks) -> None:
    assert ranks.call("add", (1, 2)) == [3, 4]
    assert ranks.call("add", [(1, 0), (5, 0)]) == [1, 6]


def test_no_call_is_lost_however_soon_it_follows_another() -> None:
    ranks = toys(deadline_s=10.0)
    assert [ranks.call("add", (n, 1)) for n in range(3000)] == [[n + 1, n + 2] for n in range(3000)]
    ranks.close()


def test_values_that_ranks_yield_arrive_one_by_one_without_empty_ones(ranks: Ranks) -> None:
    assert list(ranks.stream("count", (5,))) == [1, 2, 3, 4, 5]


def test_a_stream_that_is_left_early_does_not_disturb_the_next_call(ranks: Ranks) -> None:
    stream = ranks.stream("count", (50,))
    assert next(stream) == 1
    stream.close()
    assert ranks.call("add", (1, 1)) == [2, 3]


def test_a_large_call_arrives(ranks: Ranks) -> None:
    assert ranks.call("take", (bytes(8 << 20),)) == [8 << 20] * 2


def test_a_killed_rank_is_named_with_its_last_words_and_the_others_end(tmp_path: Path) -> None:
    ranks = toys(3, logs=tmp_path)
    pids = ranks.pids
    with pytest.raises(
        TrainerError,
        match=r"rank 1 of 3 was killed by SIGKILL \(in die, the third layer\)\..*trainer-rank-1\.log",
    ) as caught:
        ranks.call("die", (1,))
    assert caught.value.rank == 1
    assert caught.value.log_tail.endswith("no memory left")
    assert all_end(pids)
    with pytest.raises(TrainerError, match="ranks are gone: rank 1 of 3 was killed"):
        ranks.call("add", (1, 2))


def test_a_rank_that_failed_is_named_before_those_that_only_lost_it() -> None:
    with pytest.raises(TrainerError, match=r"rank 1 of 2 failed: ValueError: the cause") as caught:
        toys().call("fail", (1,))
    assert caught.value.rank == 1
    assert "Traceback" in caught.value.log_tail


def test_a_selfplay_error_keeps_its_class() -> None:
    with pytest.raises(EngineError, match=r"^no model folder x$"):
        toys().call("refuse")


def test_a_full_disk_keeps_its_class() -> None:
    ranks = toys()
    with pytest.raises(OSError, match="No space left on device"):
        ranks.call("fill_the_disk")
    assert all_end(ranks.pids)


def test_a_hanging_rank_is_named_within_the_deadline() -> None:
    ranks = toys(deadline_s=2.0)
    pids, started = ranks.pids, time.monotonic()
    with pytest.raises(
        TrainerError,
        match=r"rank 0 of 2 gave no sign for 2 s and does not answer .*rank 1 was in the second layer",
    ) as caught:
        ranks.call("stop", (0,))
    assert caught.value.rank == 0
    assert time.monotonic() - started < 30
    assert all_end(pids)


def test_a_rank_that_hangs_leaves_its_stack_in_its_log() -> None:
    with pytest.raises(
        TrainerError,
        match=r"rank 1 of 2 gave no sign for 2 s \(in dawdle, micro-batch 1\).*rank 0 was in micro-batch 2",
    ) as caught:
        toys(deadline_s=2.0).call("dawdle", (1,))
    assert "in dawdle" in caught.value.log_tail


def test_signs_of_progress_extend_the_deadline() -> None:
    ranks = toys(deadline_s=4.0)
    assert ranks.call("work_on", (10, 0.5)) == [None, None]
    ranks.close()


def test_closing_ends_the_processes(ranks: Ranks) -> None:
    pids = ranks.pids
    ranks.close()
    assert all_end(pids)


def test_ranks_die_with_their_controller(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom selfplay.training.ranks.controller import Ranks\n"
        "ranks = Ranks(2, None, 60.0, 'toy_rank:ToyRank')\n"
        "print(*ranks.pids, flush=True)\nranks.call('work_on', (1, 60.0))\n"
    )
    controller = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert controller.stdout is not None
    pids = [int(pid) for pid in controller.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(is_alive, pids))
    os.kill(controller.pid, signal.SIGKILL)
    controller.wait()
    controller.stdout.close()
    assert all_end(pids)
