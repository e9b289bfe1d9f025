import pytest

from selfplay.errors import OutcomesError
from selfplay.outcomes import MAX_ID_LENGTH, TestOutcomes, parse_outcomes


def test_a_map_of_passed_and_failed_is_read():
    outcomes = parse_outcomes(b'{"a::x": "passed", "a::y": "failed"}\n', 10)
    assert outcomes == TestOutcomes(frozenset({"a::x"}), frozenset({"a::y"}))
    assert outcomes.ids == {"a::x", "a::y"}


def test_the_json_form_gives_the_same_outcomes_back():
    outcomes = TestOutcomes(frozenset({"b", "a"}), frozenset({"c"}))
    assert TestOutcomes.from_json(outcomes.to_json()) == outcomes
    assert list(outcomes.to_json()) == ["a", "b", "c"]


def test_ids_can_be_taken_out_of_both_sets():
    assert TestOutcomes(frozenset("ab"), frozenset("cd")).without({"a", "c", "z"}) == TestOutcomes(
        frozenset("b"), frozenset("d")
    )


def test_a_vanished_test_differs_like_a_failed_one():
    before = TestOutcomes(frozenset({"a", "b", "c"}), frozenset())
    assert before.differing(TestOutcomes(frozenset({"a"}), frozenset({"b"}))) == ("b", "c")


def test_no_test_passes_and_fails_at_once():
    with pytest.raises(ValueError, match="at once"):
        TestOutcomes(frozenset("a"), frozenset("a"))


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        (b"", "not one JSON object"),
        (b"all good", "not one JSON object"),
        (b'{"a": "passed"} {}', "not one JSON object"),
        (b'{"a": "passed", "a": "failed"}', "twice"),
        (b'["a"]', "not an object"),
        (b'"passed"', "not an object"),
        (b'{"a": "skipped"}', "leave skipped tests out"),
        (b'{"a": true}', "only 'passed' and 'failed'"),
        (b'{"a": {"b": "passed"}}', "only 'passed' and 'failed'"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not one JSON object"),
        (b'{"": "passed"}', "between 1 and"),
        (b'{"' + b"x" * (MAX_ID_LENGTH + 1) + b'": "passed"}', "between 1 and"),
        (b'{"a\\u001b[2J": "passed"}', "control characters"),
        (b'{"\\ud800": "passed"}', "half a character"),
        (b'{"\xff": "passed"}', "not one JSON object"),
    ],
)
def test_anything_else_is_refused_with_a_reason(printed, complaint):
    with pytest.raises(OutcomesError, match=complaint):
        parse_outcomes(printed, 100)


def test_too_many_ids_are_refused():
    with pytest.raises(OutcomesError, match="named 3 tests; at most 2"):
        parse_outcomes(b'{"a": "passed", "b": "passed", "c": "passed"}', 2)


def test_output_larger_than_the_ids_can_take_is_refused_unread():
    with pytest.raises(OutcomesError, match="more than 1 test ids can take"):
        parse_outcomes(b" " * 100_000, 1)


def test_error_messages_quote_hostile_text_harmlessly():
    with pytest.raises(OutcomesError) as caught:
        parse_outcomes(b'{"\\u001b]0;owned": "\\u0007"}', 10)
    assert "\x1b" not in str(caught.value) and "\x07" not in str(caught.value)
