"""The secret of a run: where it is kept, what it shows, and what is derived from it."""

import pickle
import stat

import pytest

from selfplay.errors import RunError
from selfplay.evaluation.folder import Folder
from selfplay.verdicts.randomness import HASH_SEEDS, SECRET_FILE, Secret

SECRET = Secret(bytes(range(32)))


def test_a_folder_gets_one_secret_that_only_its_user_can_read(tmp_path):
    found = Secret.of_folder(tmp_path)
    assert Secret.of_folder(tmp_path) == found
    assert stat.S_IMODE((tmp_path / SECRET_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [SECRET_FILE]
    assert Secret.new() != found


def test_a_secret_that_is_there_is_never_replaced(tmp_path):
    SECRET.write(tmp_path)
    Secret.new().write(tmp_path)
    assert Secret.of_folder(tmp_path) == SECRET


def test_an_evaluation_keeps_its_secret_too(tmp_path):
    folder = Folder(tmp_path / "evaluation")
    assert folder.secret() == Folder(tmp_path / "evaluation").secret()
    assert folder.results() == [] and folder.identity() is None  # so that it can still begin


def test_a_damaged_secret_is_named_with_the_remedy_and_not_shown(tmp_path):
    (tmp_path / SECRET_FILE).write_bytes(b"not a secret")
    with pytest.raises(RunError, match=r"judging.key has 12 bytes instead of 32. Remove it"):
        Secret.of_folder(tmp_path)
    with pytest.raises(ValueError, match="has 32 bytes, not 1"):
        Secret(b"x")


def test_the_text_of_a_secret_does_not_hold_it():
    assert repr(SECRET) == str(SECRET) == "Secret()"
    assert pickle.loads(pickle.dumps(SECRET)) == SECRET  # as it travels to other hosts of a run


def test_equal_purposes_draw_alike_and_all_others_differ():
    def numbers(secret, *parts):
        generator = secret.generator(*parts)
        return [generator.random(), generator.randrange(10**9), generator.sample(range(100), 3)]

    first = numbers(SECRET, "disguise", "a", "b")
    assert numbers(SECRET, "disguise", "a", "b") == first
    others = [("disguise", "ab", ""), ("disguise", "a"), ("order", "a", "b")]
    drawn = [numbers(SECRET, *parts) for parts in others] + [numbers(Secret.new(), "disguise", "a", "b")]
    assert first not in drawn and len({str(one) for one in drawn}) == len(drawn)


def test_the_generator_draws_evenly():
    generator = SECRET.generator("evenness")
    assert abs(sum(generator.random() for _ in range(4000)) / 4000 - 0.5) < 0.03
    assert {generator.getrandbits(3) for _ in range(200)} == set(range(8))
    assert generator.getrandbits(300).bit_length() > 200 and generator.getrandbits(0) == 0
    assert sorted(generator.choices("ab", k=4000)).index("b") / 4000 == pytest.approx(0.5, abs=0.05)


def test_hash_seeds_come_from_one_range_and_noise_seeds_cannot_be_tried():
    seeds = [SECRET.hash_seed(str(number)) for number in range(300)]
    low, high = HASH_SEEDS
    assert all(low <= seed <= high for seed in seeds) and len(set(seeds)) == 300
    assert max(seeds) > high // 2  # so that no early version's seeds are likely
    assert max(SECRET.noise_seed(str(number)) for number in range(50)).bit_length() > 120


def test_what_a_killed_start_left_behind_is_removed(tmp_path):
    (tmp_path / f"{SECRET_FILE}.1234.partial").write_bytes(b"half")
    assert Secret.of_folder(tmp_path) == Secret.of_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [SECRET_FILE]
