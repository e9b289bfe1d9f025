"""Filters as a person types them."""

from datetime import datetime

import pytest

from selfplay.curriculum.bug_filter import BugFilter
from selfplay.errors import UsageError
from selfplay.viewing.filter_text import filter_of, filter_text, since, solve_rates


def test_a_range_of_solve_rates_has_one_bound_or_two():
    assert solve_rates("0.1..0.6") == (0.1, 0.6)
    assert solve_rates("0.5..") == (0.5, None)
    assert solve_rates("..0.2") == (None, 0.2)
    assert solve_rates("0.5") == (0.5, 0.5)


@pytest.mark.parametrize("text", ["", "..", "0.6..0.1", "0..2", "many"])
def test_what_is_no_range_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"0\.1\.\.0\.6"):
        solve_rates(text)


def test_since_is_an_update_an_age_or_a_date():
    assert since("12", 0) == since("u12", 0) == (12, None)
    assert since("2d", 1e6) == (None, 1e6 - 2 * 86400)
    assert since("90m", 1e6) == (None, 1e6 - 90 * 60)
    assert since("2026-11-30", 0) == (None, datetime(2026, 11, 30).timestamp())
    with pytest.raises(UsageError, match="yesterday.*6h"):
        since("yesterday", 0)


def test_a_line_of_filters_is_read_and_written_alike():
    base = BugFilter(sort="status", text="kept")
    found = filter_of("repository='a b' order=2 solve-rate=0.1..0.6 since=3", base, 0.0)
    assert found == BugFilter(
        repository="a b",
        order=2,
        min_solve_rate=0.1,
        max_solve_rate=0.6,
        since_update=3,
        sort="status",
        text="kept",
    )
    assert filter_text(BugFilter(repository="a b", order=2, min_solve_rate=0.1, since_update=3)) == (
        "repository='a b' order=2 solve-rate=0.1.. since=3"
    )
    assert filter_of("", found, 0.0) == base


@pytest.mark.parametrize("text", ["size=3", "order", "order=3", "'open"])
def test_what_is_no_filter_is_refused(text):
    with pytest.raises(UsageError):
        filter_of(text, BugFilter(), 0.0)
