"""Statistics against values from hand calculations and printed tables, and properties for any numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay.evaluation.statistics import MIN_CHANGED, estimate, paired_difference, pass_at_k, t_quantile

RATES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=12)
PAIRS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    min_size=2,
    max_size=12,
)


@pytest.mark.parametrize(
    ("freedom", "table"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (10, 2.228), (29, 2.045), (100, 1.984), (1000, 1.962)],
)
def test_quantiles_equal_those_of_a_printed_table(freedom, table):
    assert t_quantile(0.975, freedom) == pytest.approx(table, abs=5e-4)


def test_the_error_of_a_mean_is_the_spread_between_bugs():
    found = estimate([0.0, 0.5, 1.0, 0.5])
    assert (found.mean, found.count) == (0.5, 4)
    assert found.error == pytest.approx(math.sqrt((0.25 + 0.25) / 3 / 4))


def test_more_attempts_at_the_same_bugs_do_not_shrink_the_error():
    """Four equal attempts at each of two bugs are two observations, not eight: the clustered error."""
    of_eight = math.sqrt(0.5 * 0.5 / 8)
    error = estimate([0.0, 1.0]).error
    assert error == pytest.approx(0.5)
    assert error > of_eight


def test_one_bug_has_no_error_and_no_interval():
    assert estimate([0.25]).error is None
    difference = paired_difference([0.0], [1.0])
    assert (difference.low, difference.high, difference.direction) == (None, None, 0)


def test_no_values_have_no_mean():
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_a_paired_interval_by_hand():
    """Changes 0.5, 0, 0.5, 1: mean 0.5, variance 1/6, error sqrt(1/24) = 0.2041.

    t(3) = 3.1824, so the interval reaches 0.6496 to each side.
    """
    found = paired_difference([0.0, 0.5, 0.5, 0.0], [0.5, 0.5, 1.0, 1.0])
    assert (found.mean, found.changed, found.count) == (0.5, 3, 4)
    assert found.error == pytest.approx(0.204124, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((-0.149612, 1.149612), abs=1e-5)
    assert found.direction == 0


def test_a_paired_difference_has_a_smaller_error_than_two_separate_rates():
    """Bugs differ much more than the policies do. Each bug gains the same or a little more."""
    before = [0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8]
    after = [0.1, 0.2, 0.45, 0.6, 0.7, 0.85, 0.9]
    paired = paired_difference(before, after)
    errors = [estimate(before).error, estimate(after).error]
    assert paired.direction == 1
    assert paired.error is not None and paired.error < math.hypot(*(error or 0.0 for error in errors)) / 5


def test_a_few_changed_bugs_show_nothing_even_if_the_interval_excludes_0():
    few = paired_difference([0.0] * (MIN_CHANGED - 1), [1.0] * (MIN_CHANGED - 1))
    assert few.low is not None and few.low > 0
    assert few.direction == 0
    assert paired_difference([0.0] * MIN_CHANGED, [1.0] * MIN_CHANGED).direction == 1


def test_pass_at_k_counts_the_choices_without_a_pass():
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == pytest.approx(1 - math.comb(3, 2) / math.comb(4, 2))
    assert pass_at_k(4, 3, 2) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
    with pytest.raises(ValueError, match="no pass@4 from 0 passes in 2 attempts"):
        pass_at_k(2, 0, 4)


@given(PAIRS)
def test_exchanging_the_policies_mirrors_the_difference(pairs):
    before, after = zip(*pairs, strict=True)
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert there.mean == pytest.approx(-back.mean)
    assert there.low == pytest.approx(-(back.high or 0.0))
    assert there.direction == -back.direction
    assert there.changed == back.changed


@given(PAIRS)
def test_an_interval_contains_the_difference_of_the_means(pairs):
    before, after = zip(*pairs, strict=True)
    found = paired_difference(before, after)
    assert found.mean == pytest.approx(estimate(after).mean - estimate(before).mean)
    assert found.low is not None and found.high is not None
    assert found.low <= found.mean <= found.high


@given(RATES)
def test_a_policy_does_not_differ_from_itself(rates):
    found = paired_difference(rates, rates)
    assert (found.mean, found.error, found.changed, found.direction) == (0, 0, 0, 0)


@given(st.integers(1, 12), st.data())
def test_pass_at_k_grows_with_k(n, data):
    c = data.draw(st.integers(0, n))
    values = [pass_at_k(n, c, k) for k in range(1, n + 1)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(c / n)
