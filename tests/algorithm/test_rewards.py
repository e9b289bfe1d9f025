from math import comb

import pytest

from selfplay.algorithm.rewards import (
    INVALID_REWARD,
    Reward,
    RewardInputs,
    binary_reward,
    consistency_reward,
    needs_solve_rate,
    ssr_injector_reward,
    ssr_solver_reward,
)


def ssr(solve_rate: float, alpha: float = 0.8) -> float:
    return ssr_injector_reward(
        RewardInputs("submitted", is_accepted=True, solve_rate=solve_rate, alpha=alpha)
    )


def expected_reward(p: float, group: int, alpha: float = 0.8) -> float:
    return sum(
        comb(group, k) * p**k * (1 - p) ** (group - k) * ssr(k / group, alpha) for k in range(group + 1)
    )


@pytest.mark.parametrize(("group", "best"), [(4, 0.37), (8, 0.257), (16, 0.169), (32, 0.106)])
def test_the_ssr_reward_peaks_at_the_papers_solve_probability(group: int, best: float) -> None:
    grid = [i / 2000 for i in range(1, 2000)]
    assert max(grid, key=lambda p: expected_reward(p, group)) == pytest.approx(best, abs=0.005)


def test_a_bug_that_all_or_none_repair_costs_alpha() -> None:
    assert ssr(0.0, 0.8) == ssr(1.0, 0.8) == -0.8


def test_a_bug_repaired_once_in_eight_earns_by_the_formula() -> None:
    assert ssr(0.125, 0.8) == pytest.approx(1 - 1.8 * 0.125)


def test_consistency_pays_every_valid_bug_the_same_and_waits_for_no_solver() -> None:
    assert consistency_reward(RewardInputs("submitted", is_accepted=True)) == 1.0
    assert not needs_solve_rate(consistency_reward)
    assert needs_solve_rate(ssr_injector_reward)


@pytest.mark.parametrize("reward", [ssr_injector_reward, consistency_reward])
def test_invalid_and_duplicate_artifacts_lose(reward: Reward) -> None:
    assert reward(RewardInputs("max_turns")) == INVALID_REWARD == -1.0
    assert reward(RewardInputs("submitted", is_accepted=True, is_duplicate=True, alpha=0.3)) == -0.3


def test_the_solver_earns_plus_or_minus_one_or_one_and_zero() -> None:
    for reward, lost in ((ssr_solver_reward, -1.0), (binary_reward, 0.0)):
        assert reward(RewardInputs("submitted", is_repaired=True)) == 1.0
        assert reward(RewardInputs("submitted", failed_tests=("t::a",))) == lost


def test_a_solve_rate_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not 1\.5"):
        ssr(1.5)
