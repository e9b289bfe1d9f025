"""A Ray cluster whose nodes are processes of this machine, and runs of `selfplay train --cluster` on it."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from selfplay.engines.process_keeper import descendants
from selfplay.orchestrator.run_folder import RunFolder
from tiny_repository import build_tiny_repository

ROOT = Path(__file__).parents[2]
SETTINGS = """\
seed = 11

[run]
name = "whole"

[train]
updates = 2
injector_groups = 1
solver_groups = 1
group_size = 3
episodes_in_flight = 4
max_machine_failures = 0.9

[agent]
max_turns = 8
context_tokens = 4096
turn_tokens = 1024
observation_tokens = 1000
prompt_style = "terse"

[injector]
strategies = { direct = 1.0 }
help = ["tests", "target"]
min_passing_tests = [3, 3]

[solver]
help = ["failure", "suspects", "tests"]
max_spec_tokens = 4000

[environment]
baselines = 2

[sandbox]
type = "bubblewrap"

[trainer]
type = "deepspeed"
learning_rate = 1e-3
warmup_updates = 0
bf16 = false
"""


@contextmanager
def open_cluster(path: Sequence[Path]) -> Iterator[Any]:
    """Start a cluster of one node. Yields Ray's own object for it, with `.address` and `.remove_node(node)`.

    path: where the processes of the cluster look for modules first.
    """
    from ray.cluster_utils import Cluster

    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_worker_niceness")}
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, path), *filter(None, [before["PYTHONPATH"]])])
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    machines = Cluster()
    try:
        add_node(machines)
        yield machines
    finally:
        machines.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def add_node(machines: Any, gpus: int = 0) -> Any:
    """Add a node with one CPU, without dashboard and log monitor.

    The ports are chosen here. A node that chooses its own gives up if a busy machine delays its agents.
    """
    probes = [socket.socket() for _ in range(4)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    names = (
        "metrics_agent_port",
        "runtime_env_agent_port",
        "dashboard_agent_listen_port",
        "metrics_export_port",
    )
    ports = {name: probe.getsockname()[1] for name, probe in zip(names, probes, strict=True)}
    for probe in probes:
        probe.close()
    node = machines.add_node(
        wait=False,
        num_cpus=1,
        num_gpus=gpus,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        **ports,
    )
    machines.wait_for_nodes(timeout=120)
    return node


def processes_on(node: Any, words: str) -> set[int]:
    """The ids of the node's processes that have these words in their command line."""
    (raylet,) = node.all_processes["raylet"]
    found = set()
    for pid in descendants(raylet.process.pid):
        try:
            command = (
                Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            )
        except OSError:
            continue  # the process ended meanwhile
        if words in command:
            found.add(pid)
    return found


class Play:
    """`selfplay train --cluster` on the tiny repository, in a folder that the nodes do not share."""

    def __init__(self, home: Path, address: str, more: str, path: Sequence[Path] = (ROOT,)) -> None:
        """more: sections of settings beside `SETTINGS`. path: where the run looks for modules first."""
        self.run = RunFolder(home / "runs" / "whole")
        self.repository = build_tiny_repository(home / "tiny", git=True)
        self._home, self._address, self._path = home, address, path
        self._output_file = home / "output.txt"
        (home / "list.txt").write_text(f"{self.repository}\n")
        (home / "settings.toml").write_text(SETTINGS + more)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "selfplay.cli", "train", "--cluster", self._address, *words]
        variables = {
            "SELFPLAY_CACHE": str(self._home / "cache"),
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, self._path)),
            "COLUMNS": "1000",
        }
        with self._output_file.open("ab") as file:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self._home, env=variables
            )

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        return self.start("--repos", "list.txt", "--config", "settings.toml", *words)

    def resume(self) -> subprocess.Popen[bytes]:
        return self.start("--resume", "whole")

    @property
    def output(self) -> str:
        """What all processes of the run printed."""
        return self._output_file.read_text(encoding="utf-8", errors="replace")

    def last_update(self) -> int:
        return self._number('SELECT coalesce(max("update"), 0) FROM updates WHERE committed_at IS NOT NULL')

    def episodes(self) -> int:
        """How many episodes are recorded in the database."""
        return self._number("SELECT count(*) FROM episodes")

    def _number(self, query: str) -> int:
        if not self.run.database.exists():
            return 0
        with closing(sqlite3.connect(f"{self.run.database.as_uri()}?mode=ro", uri=True)) as database:
            try:
                return int(database.execute(query).fetchone()[0])
            except sqlite3.OperationalError:
                return 0  # the run is still creating the tables

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run.metrics.read_text(encoding="utf-8").splitlines()]
