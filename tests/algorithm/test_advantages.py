import pytest

from selfplay.algorithm.advantages import Group, compute_advantages


def test_rloo_takes_off_the_mean_of_the_others() -> None:
    assert compute_advantages("rloo", Group([1, -1, -1, -1], [5, 5, 5, 5])) == pytest.approx(
        [2.0, -2 / 3, -2 / 3, -2 / 3]
    )


def test_rloo_is_dr_grpo_times_n_over_n_minus_one() -> None:
    rewards, lengths = [0.775, -0.8, -1.0, 0.55, 0.1], [3, 9, 1, 4, 4]
    scaled = [a * 5 / 4 for a in compute_advantages("dr_grpo", Group(rewards, lengths))]
    assert compute_advantages("rloo", Group(rewards, lengths)) == pytest.approx(scaled)


def test_cwm_weighs_the_mean_by_length() -> None:
    assert compute_advantages("cwm", Group([1, -1], [30, 10])) == pytest.approx([0.5, -1.5])
    assert compute_advantages("cwm", Group([1, -1], [7, 7])) == compute_advantages(
        "dr_grpo", Group([1, -1], [7, 7])
    )


def test_grpo_divides_by_the_sample_deviation() -> None:
    assert compute_advantages("grpo", Group([1, -1], [1, 1])) == pytest.approx(
        [2**-0.5, -(2**-0.5)], rel=1e-5
    )


@pytest.mark.parametrize("name", ["rloo", "dr_grpo", "cwm", "grpo"])
@pytest.mark.parametrize("rewards", [[0.3] * 3, [1.0], []])
def test_a_group_of_equal_rewards_carries_no_gradient(name: str, rewards: list[float]) -> None:
    assert compute_advantages(name, Group(rewards, [3] * len(rewards))) == [0.0] * len(rewards)
