"""A small recorded run, which the views read."""

import pytest

from selfplay.curriculum.store import Store
from store_rows import recorded_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where `selfplay` finds runs/
    return recorded_run(tmp_path / "runs" / "demo")


@pytest.fixture
def store(run):
    with Store.open(run / "selfplay.db", writer=False) as opened:
        yield opened
