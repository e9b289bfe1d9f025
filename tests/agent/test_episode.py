import gzip

import pytest

from selfplay.agent.episode import Episode, FinishReason, Role, Turn


def episode(**changes: object) -> Episode:
    values: dict[str, object] = {
        "episode_id": "u0001-sol0-m0",
        "role": Role.SOLVER,
        "repository": "tiny",
        "update": 1,
        "group": "u0001-sol0",
        "member": 0,
        "seed": 7,
        "finish": FinishReason.SUBMITTED,
        "messages": ({"role": "user", "content": "hej"},),
        "turns": (Turn("<tool: submit>\n</tool>", "submit", "", (3, 5)),),
        "token_ids": (1, 2, 3, 4, 5),
        "loss_mask": (0, 0, 0, 1, 1),
        "logprobs": (0.0, 0.0, 0.0, -0.25, -1.5),
        "weight_versions": ((3, 0),),
        "submission": {"patch": "diff"},
    }
    return Episode(**{**values, **changes})  # type: ignore[arg-type]


def test_an_episode_reads_back_equal_from_its_file(tmp_path):
    written = episode()
    assert Episode.read(written.write(tmp_path)) == written


def test_no_partial_file_is_left_beside_the_episode(tmp_path):
    path = episode().write(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_file_is_an_error_and_not_an_episode(tmp_path):
    path = episode().write(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises((EOFError, gzip.BadGzipFile)):
        Episode.read(path)


def test_only_action_tokens_count():
    assert episode().action_tokens == 2


def test_sequences_of_different_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        episode(logprobs=(0.0,))
