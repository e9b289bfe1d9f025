"""A scripted game gives the recorded rows: tokens, masks, rewards, verdicts, losses."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from machine import open_or_skip
from recorded_game import differences, record

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]

RECORDING = Path(__file__).parent.parent / "recordings" / "game.json.gz"


def test_a_scripted_game_gives_the_recorded_rows(tmp_path):
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the recording was made with Python 3.11; tracebacks in prompts differ between versions")
    open_or_skip("bubblewrap", tmp_path / "cache")
    found = list(
        differences(json.loads(gzip.decompress(RECORDING.read_bytes())), record(tmp_path, tmp_path / "cache"))
    )
    assert not found, f"{len(found)} difference(s):\n" + "\n".join(found[:20])
