import math

import pytest

from selfplay.agent.token_ratios import ratios_file, read_ratios, write_ratios


def test_ratios_come_back_with_the_tokens_that_have_none(tmp_path):
    file = ratios_file(tmp_path, 3)
    write_ratios(file, {"u0003-sol0-m0": [math.nan, 1.25, 1e9], "u0003-sol0-m1": [math.nan]})
    assert read_ratios(file, "u0003-sol0-m0") == [None, 1.25, 65_504.0]
    assert read_ratios(file, "u0003-sol0-m1") == [None]
    assert [each.name for each in file.parent.iterdir()] == ["update-00003.npz"]


@pytest.mark.parametrize("content", [None, b"", b"torn", b"PK\x03\x04"])
def test_a_missing_or_torn_file_and_another_episode_have_none(tmp_path, content):
    file = ratios_file(tmp_path, 1)
    assert read_ratios(file, "u0001-sol0-m0") == []
    write_ratios(file, {"other": [1.0]})
    assert read_ratios(file, "u0001-sol0-m0") == []
    if content is not None:
        file.write_bytes(content)
        assert read_ratios(file, "other") == []
