import random
from collections import Counter

import pytest

from selfplay import parts
from selfplay.curriculum.sampling import (
    Candidates,
    choose_solver_bugs,
    choose_strategy,
    choose_target,
    replay_weight,
    sample_threshold,
)
from selfplay.errors import PartError
from store_rows import a_bug


def bugs(count: int, order: int = 1, **values) -> list:
    parent = "parent" if order == 2 else None
    stem = values.pop("stem", f"order{order}")
    return [
        a_bug(f"{stem}-{number}", order=order, parent_bug_id=parent, created_update=number, **values)
        for number in range(count)
    ]


def choose(fresh, measured, slots, share, rng, replay_share=0.0):
    return choose_solver_bugs("solve_rate", Candidates(fresh, measured, slots, share, replay_share), rng)


def ids(chosen) -> list[str]:
    return [bug.bug_id for bug in chosen]


def test_fresh_bugs_go_first_and_the_oldest_of_them_before_the_others():
    fresh = list(reversed(bugs(3, stem="fresh")))
    measured = bugs(5, stem="old", solve_rate=0.5)
    assert ids(choose(fresh, measured, 2, 0.25, random.Random(0))) == ["fresh-0", "fresh-1"]


def test_the_store_fills_what_fresh_bugs_leave_without_repeating_a_bug():
    chosen = ids(
        choose(bugs(1, stem="fresh"), bugs(3, stem="old", solve_rate=0.5), 8, 0.25, random.Random(0))
    )
    assert chosen[0] == "fresh-0"
    assert sorted(chosen[1:]) == ["old-0", "old-1", "old-2"]


def test_no_bugs_give_no_groups():
    assert choose([], [], 3, 0.25, random.Random(0)) == []


def drawn(measured, share: float = 0.0, slots: int = 1) -> Counter:
    rng = random.Random(7)
    return Counter(bug.bug_id for _ in range(2000) for bug in choose([], measured, slots, share, rng))


def test_bugs_that_some_attempts_repair_are_preferred_to_settled_ones():
    counts = drawn(
        [
            a_bug("half", solve_rate=0.5),
            a_bug("rare", solve_rate=0.125),
            a_bug("all", solve_rate=1.0),
            a_bug("none", solve_rate=0.0),
        ]
    )
    assert counts["half"] > counts["rare"] > 10 * counts["all"] > 0
    assert counts["none"] > 0


def test_bugs_that_were_seldom_replayed_are_preferred():
    counts = drawn([a_bug("new", solve_rate=0.5, plays=1), a_bug("worn", solve_rate=0.5, plays=7)])
    assert 3 < counts["new"] / counts["worn"] < 5


def test_the_replay_weight_peaks_at_one_half():
    weights = [replay_weight(a_bug(solve_rate=k / 8)) for k in range(9)]
    assert max(weights) == weights[4] == 1.0
    assert weights == weights[::-1]
    assert replay_weight(a_bug(solve_rate=None)) == weights[4]


def test_second_order_bugs_get_their_share_of_slots():
    counts = drawn(bugs(4, solve_rate=0.5) + bugs(4, order=2, solve_rate=0.5), share=0.25, slots=4)
    second = sum(count for name, count in counts.items() if name.startswith("order2"))
    assert 0.22 < second / sum(counts.values()) < 0.28


def test_a_share_of_zero_keeps_second_order_bugs_out():
    assert choose(bugs(2, order=2), [], 2, 0.0, random.Random(0)) == []


def test_the_other_order_fills_in_when_one_has_too_few_bugs():
    assert len(choose(bugs(1), bugs(5, order=2, solve_rate=0.5), 4, 0.25, random.Random(0))) == 4
    assert len(choose(bugs(4), [], 4, 1.0, random.Random(0))) == 4


def test_equal_seeds_make_equal_choices_for_any_order_of_rows():
    measured = bugs(6, solve_rate=0.5)
    one = choose([], measured, 3, 0.25, random.Random(3))
    assert one == choose([], measured[::-1], 3, 0.25, random.Random(3))
    assert {tuple(ids(choose([], measured, 3, 0.25, random.Random(seed)))) for seed in range(20)} != {
        tuple(ids(one))
    }


def test_a_share_of_slots_replays_bugs_of_mixed_results_while_fresh_ones_wait():
    fresh = bugs(8)
    mixed = [a_bug(f"mixed{n}", status="measured", solve_rate=0.5) for n in range(4)]
    settled = [a_bug(f"settled{n}", status="measured", solve_rate=1.0) for n in range(4)]
    chosen = [
        choose(fresh, mixed + settled, 4, 0.0, random.Random(seed), replay_share=0.5) for seed in range(200)
    ]
    assert all(len({bug.bug_id for bug in some}) == 4 for some in chosen)
    counts = Counter(bug.bug_id.rstrip("0123456789") for some in chosen for bug in some)
    assert "settled" not in counts and 300 < counts["mixed"] < 500
    assert not any(bug in mixed for bug in choose(fresh, mixed, 4, 0.0, random.Random(1)))
    everything = choose([], mixed + settled, 8, 0.0, random.Random(1), replay_share=0.5)
    assert len({bug.bug_id for bug in everything}) == 8


def test_the_uniform_sampler_prefers_nothing_and_keeps_order_two_out_at_a_share_of_zero():
    fresh, settled = bugs(2, stem="fresh"), bugs(2, stem="old", solve_rate=1.0)
    second = bugs(2, order=2, stem="second")
    candidates = Candidates([*fresh, *second], settled, 1, 0.0)
    counts = Counter(
        bug.bug_id
        for seed in range(2000)
        for bug in choose_solver_bugs("uniform", candidates, random.Random(seed))
    )
    assert set(counts) == {"fresh-0", "fresh-1", "old-0", "old-1"}
    assert all(400 < count < 600 for count in counts.values())


@pytest.mark.parametrize("chosen", ["twice", "too many", "another"])
def test_a_sampler_that_chooses_what_it_may_not_stops_the_run(chosen, monkeypatch):
    one, two = bugs(2)
    other = bugs(1, stem="other")[0]
    answers = {"twice": [one, one], "too many": [one, two], "another": [other]}
    monkeypatch.setattr(parts, "call", lambda *_: answers[chosen])
    with pytest.raises(PartError, match="curriculum.sampler = 'mine:sampler' chose"):
        choose_solver_bugs("mine:sampler", Candidates([one, two], [], 1, 0.0), random.Random(0))


def test_strategies_are_sampled_by_weight():
    rng = random.Random(0)
    counts = Counter(
        choose_strategy({"removal": 3.0, "history": 1.0, "direct": 0.0}, rng) for _ in range(2000)
    )
    assert set(counts) == {"removal", "history"}
    assert 2.5 < counts["removal"] / counts["history"] < 3.6


def test_targets_used_least_are_chosen():
    rng = random.Random(0)
    chosen = {choose_target(["a", "b", "c"], {"a": 2, "b": 1}, rng) for _ in range(20)}
    assert chosen == {"c"}
    assert {choose_target(["a", "b"], {}, rng) for _ in range(40)} == {"a", "b"}
    with pytest.raises(ValueError, match="no targets"):
        choose_target([], {}, rng)


def test_thresholds_cover_their_range_and_depend_on_seed_and_name_alone():
    sampled = [sample_threshold((2, 4), seed, "passing") for seed in range(60)]
    assert set(sampled) == {2, 3, 4}
    assert sampled == [sample_threshold((2, 4), seed, "passing") for seed in range(60)]
    assert sampled != [sample_threshold((2, 4), seed, "failing") for seed in range(60)]
    assert sample_threshold((5, 5), 1, "passing") == 5
