from math import comb

import pytest

from selfplay.algorithm.rewards import INVALID_REWARD, duplicate_reward, injector_reward, solver_reward


def expected_reward(p: float, group: int, alpha: float = 0.8) -> float:
    return sum(
        comb(group, k) * p**k * (1 - p) ** (group - k) * injector_reward("ssr", k / group, alpha)
        for k in range(group + 1)
    )


@pytest.mark.parametrize(("group", "best"), [(4, 0.37), (8, 0.257), (16, 0.169), (32, 0.106)])
def test_the_ssr_reward_peaks_at_the_papers_solve_probability(group: int, best: float) -> None:
    grid = [i / 2000 for i in range(1, 2000)]
    assert max(grid, key=lambda p: expected_reward(p, group)) == pytest.approx(best, abs=0.005)


def test_a_bug_that_all_or_none_repair_costs_alpha() -> None:
    assert injector_reward("ssr", 0.0, 0.8) == injector_reward("ssr", 1.0, 0.8) == -0.8


def test_a_bug_repaired_once_in_eight_earns_by_the_formula() -> None:
    assert injector_reward("ssr", 0.125, 0.8) == pytest.approx(1 - 1.8 * 0.125)


def test_consistency_pays_every_valid_bug_alike() -> None:
    assert {injector_reward("consistency", s) for s in (0.0, 0.5, 1.0)} == {1.0}


def test_invalid_and_duplicate_artifacts_lose() -> None:
    assert INVALID_REWARD == -1.0
    assert duplicate_reward(0.8) == -0.8


def test_the_solver_earns_plus_or_minus_one() -> None:
    assert (solver_reward(True), solver_reward(False)) == (1.0, -1.0)


def test_a_solve_rate_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not 1\.5"):
        injector_reward("ssr", 1.5)
