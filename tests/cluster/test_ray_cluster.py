"""Trainer ranks, rollout servers and episodes on a real Ray cluster: several nodes on this machine.

Nodes and ranks are killed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import scripted_game
from local_cluster import Play, add_node, open_cluster, processes_on
from machine import all_end, open_or_skip
from run_contents import twice_or_lost
from selfplay.cluster.memory import ModelShape
from selfplay.cluster.placement import Placement, place
from selfplay.config import build_config
from selfplay.curriculum.store import Store
from selfplay.engines.base import GenerationRequest, Sampling
from selfplay.engines.vllm_client import Client
from selfplay.engines.vllm_engine import VllmEngine
from selfplay.engines.vllm_launch import Launch
from selfplay.engines.vllm_servers import ServerSet
from selfplay.errors import EngineError, PrerequisiteError, TrainerError
from selfplay.orchestrator.context import RunContext
from selfplay.repositories.prepare import ListedRepositories
from selfplay.training.ranks.controller import RankLaunch, Ranks
from selfplay.weights.weight_sync import FileWeightSync
from vllm_double import STOP, wait_until

ray = pytest.importorskip("ray", reason="Ray is missing: pip install 'selfplay-swe[cluster]'")

from selfplay.cluster.ray_cluster import Cluster  # noqa: E402

# Warnings that come from Ray itself cannot be fixed here.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]
ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
TINY = ModelShape("tiny", 64, 2, 2, 2, 32, 128, 256, True)


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    with open_cluster([HELPERS, ROOT, HELPERS / "standin"]) as opened:
        yield opened


@pytest.fixture
def cluster(machines: Any) -> Iterator[Cluster]:
    opened = Cluster(machines.address)
    yield opened
    opened.close()


def placement_of(cluster: Cluster, ranks: int) -> Placement:
    config = build_config(
        {
            "trainer": {"type": "deepspeed", "ranks": ranks, "batch_tokens": 256},
            "agent": {"context_tokens": 256},
        }
    )
    return place(config, TINY, cluster.nodes())


def toys(cluster: Cluster, placement: Placement, logs: Path, deadline_s: float = 60.0) -> Ranks:
    return Ranks(
        len(placement.ranks),
        RankLaunch(logs, cluster.places(placement).links),
        deadline_s,
        worker="toy_rank:ToyRank",
    )


def servers_placement(cluster: Cluster, servers: int) -> Placement:
    values = {
        "trainer": {"batch_tokens": 256},
        "agent": {"context_tokens": 256},
        "engine": {"type": "vllm", "servers": servers, "cache_mb": 1},
    }
    return place(build_config(values), TINY, cluster.nodes())


class _Unchecked(FileWeightSync):
    def verify(self, client: Client, weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        return {}  # the stand-in has no weights to compare


def test_ranks_on_two_nodes_answer_in_order_and_end_when_closed(
    machines: Any, cluster: Cluster, tmp_path: Path
):
    second = add_node(machines)
    placement = placement_of(cluster, 2)
    assert {seat.node for seat in placement.ranks} == {0, 1}
    ranks = toys(cluster, placement, tmp_path)
    pids = ranks.pids
    assert [ranks.call("add", (n, 1)) for n in range(50)] == [[n + 1, n + 2] for n in range(50)]
    assert list(ranks.stream("count", (5,))) == [1, 2, 3, 4, 5]
    assert ranks.call("take", (bytes(8 << 20),)) == [8 << 20] * 2
    ranks.close()
    assert all_end(pids)
    machines.remove_node(second)


def test_a_killed_rank_is_named_with_its_node_and_last_words(machines: Any, cluster: Cluster, tmp_path: Path):
    ranks = toys(cluster, placement_of(cluster, 1), tmp_path)
    pids = ranks.pids
    with pytest.raises(
        TrainerError, match=r"rank 0 of 1 was killed by SIGKILL \(in die, the third layer\)"
    ) as caught:
        ranks.call("die", (0,))
    assert caught.value.log_tail.endswith("no memory left")
    assert all_end(pids)


def test_a_lost_node_is_named_within_the_deadline_and_no_rank_is_left(
    machines: Any, cluster: Cluster, tmp_path: Path
):
    second = add_node(machines)
    ranks = toys(cluster, placement_of(cluster, 2), tmp_path)
    pids = ranks.pids
    started = time.monotonic()
    machines.remove_node(second, allow_graceful=False)
    with pytest.raises(TrainerError, match=r"rank 1 of 2 was lost with its actor on ") as caught:
        ranks.call("work_on", (1, 30.0))
    assert caught.value.rank == 1
    assert time.monotonic() - started < 30
    assert all_end(pids)
    assert len(cluster.nodes()) == 1  # what is left can be planned for


def test_an_error_of_selfplay_keeps_its_class(cluster: Cluster, tmp_path: Path):
    with pytest.raises(EngineError, match=r"^no model folder x$"):
        toys(cluster, placement_of(cluster, 1), tmp_path).call("refuse")


def test_a_rank_without_progress_is_named_within_the_deadline(cluster: Cluster, tmp_path: Path):
    ranks = toys(cluster, placement_of(cluster, 1), tmp_path, deadline_s=2.0)
    with pytest.raises(
        TrainerError,
        match=r"rank 0 of 1 gave no sign for 2 s and does not answer \(in stop, the second layer\)",
    ):
        ranks.call("stop", (0,))


def test_servers_on_two_nodes_answer_and_each_reads_the_new_weights_on_its_own_node(
    machines: Any, cluster: Cluster, tmp_path: Path
):
    second = add_node(machines)
    placement = servers_placement(cluster, 2)
    sync = _Unchecked("model", torch.float32, folder=tmp_path)
    servers = ServerSet(2, open_server=cluster.places(placement).open_server)
    engine = VllmEngine(Launch("model", 4096, 4, logs=tmp_path), sync, servers)
    read: set[str] = set()
    for version in (1, 2):
        engine.load_weights({"norm": torch.ones(version)}, version)
        infos = [
            server.client.call("GET", "/server_info", deadline_s=5)["read"]
            for server in engine.servers().values()
        ]
        assert len({tuple(files.values()) for files in infos}) == 1  # the same bytes
        assert len({file for files in infos for file in files}) == 2  # in two folders
        read |= {file for files in infos for file in files}
    assert len(read) == 4
    requests = [GenerationRequest((5,), 8, 41, frozenset({STOP}), f"solver/g{n}/0/0") for n in range(8)]
    assert {done.weight_version for done in engine.generate(requests, Sampling())} == {2}
    engine.close()
    assert not any(Path(file).exists() for file in read)
    machines.remove_node(second)


def test_if_a_node_with_a_server_is_lost_the_other_servers_answer(
    machines: Any, cluster: Cluster, tmp_path: Path
):
    second = add_node(machines)
    placement = servers_placement(cluster, 2)
    reports: list[str] = []
    sync = _Unchecked("model", torch.float32, folder=tmp_path)
    engine = VllmEngine(
        Launch("model", 4096, 4, logs=tmp_path),
        sync,
        ServerSet(2, open_server=cluster.places(placement).open_server),
        report=reports.append,
    )
    machines.remove_node(second, allow_graceful=False)
    requests = [GenerationRequest((5,), 8, 41, frozenset({STOP}), f"solver/g{n}/0/0") for n in range(8)]
    done = engine.generate(requests, Sampling())
    assert [completion.token_ids for completion in done] == [(11 + 41 % 7, 12, STOP)] * 8
    wait_until(lambda: any("could not be opened again" in text for text in reports), 30)
    assert list(engine.servers()) == ["vllm-0"]
    engine.close()


@pytest.mark.timeout(1200)
def test_a_run_whose_only_server_was_on_a_lost_node_goes_on_by_itself(
    machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_or_skip("bubblewrap")
    # The placement believes this nvidia-smi; nothing here computes on a GPU.
    claimed = tmp_path / "bin" / "nvidia-smi"
    claimed.parent.mkdir()
    claimed.write_text("#!/bin/sh\necho 81920; echo 81920\n")
    claimed.chmod(0o755)
    with monkeypatch.context() as there:
        there.setenv("PATH", str(claimed.parent), prepend=os.pathsep)
        far = add_node(machines, gpus=2)
    # The stand-in answers without tool calls. So no episode submits anything, there is no gradient, and no
    # new weights go to the servers.
    more = '[engine]\ntype = "vllm"\ncache_mb = 64\n'
    play = Play(tmp_path, machines.address, more, path=[ROOT, HELPERS, HELPERS / "standin"])
    few = (
        "--set",
        "train.updates=1",
        "--set",
        "train.episodes_in_flight=1",
        "--set",
        "trainer.type=torch",
        "--set",
        "train.group_size=8",
    )
    process = play.begin(*few)
    wait_until(lambda: play.episodes() > 0 or process.poll() is not None, 600)
    assert processes_on(far, "api_server") and play.episodes() < 8, play.output
    machines.remove_node(far, allow_graceful=False)
    assert process.wait(600) == 0, play.output
    assert "vllm-0 could not be opened 3 times in a row" in play.output
    assert "Going on from update 0 on what is left of the cluster." in play.output
    assert twice_or_lost(play.run) == [] and play.episodes() == 8


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"no Ray cluster answers at --cluster 127\.0\.0\.1:1: .*refused.*ray start --head"),
        ("nonsense", "neither 'auto' nor an address"),
    ],
)
def test_an_address_where_no_cluster_answers_is_reported_with_the_reason(address: str, message: str):
    with pytest.raises(PrerequisiteError, match=message):
        Cluster(address)


# ---- episodes


def test_episodes_of_a_node_that_is_lost_are_played_elsewhere_and_each_counts_once(
    machines: Any, cluster: Cluster, tmp_path: Path
) -> None:
    open_or_skip("bubblewrap", tmp_path / "cache")
    far = add_node(machines)
    nodes = cluster.nodes()
    assert len(nodes) >= 2
    reports: list[str] = []
    lost = threading.Event()

    def host_of(context: RunContext, line: str) -> Any:
        placement = place(context.config, TINY, nodes)
        local: Any = context.host
        hosts: Any = cluster.places(placement).open_hosts(
            context.config,
            ListedRepositories(f"{line}\n"),
            str(tmp_path / "policy"),
            local,
            reports.append,
        )

        def lose() -> None:
            wait_until(lambda: any(host.in_flight for host in hosts._hosts), 120)
            machines.remove_node(far, allow_graceful=False)
            lost.set()

        threading.Thread(target=lose, daemon=True).start()
        return hosts

    run = scripted_game.play(tmp_path, tmp_path / "cache", "bubblewrap", host_of=host_of)
    assert lost.wait(120)
    assert any("was lost" in line for line in reports), reports
    with Store.open(run.database, writer=False) as store:
        members = [(row.group_id, row.member) for row in store.episodes()]
        assert store.last_update() == 2
        assert all(group.status in ("consumed", "complete", "void") for group in store.groups(update=1))
    assert len(members) == len(set(members)) > 20
