"""The actor of a host, without Ray around it."""

from pathlib import Path

import pytest

from selfplay import parts
from selfplay.cluster.ray_hosts import HostActor
from selfplay.config import build_config
from selfplay.errors import PartError
from selfplay.repositories.prepare import ListedRepositories
from selfplay.verdicts.randomness import Secret


def test_a_part_that_a_host_cannot_load_stops_the_start_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(parts.FOLDER_VARIABLE, "")
    config = build_config({"agent": {"tools": ["submit", "host_tools:SEARCH"]}})
    actor = HostActor(config, ListedRepositories(""), "carried", str(tmp_path), Secret.new())
    with pytest.raises(PartError, match=f"'host_tools:SEARCH' cannot be loaded.*in {tmp_path}"):
        actor.open()
