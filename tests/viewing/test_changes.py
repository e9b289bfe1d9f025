import pytest

from selfplay.viewing.changes import change_text, place_text


def a_diff(*changed: str) -> str:
    removed = sum(line.startswith("-") for line in changed)
    added = sum(line.startswith("+") for line in changed)
    return "".join(
        f"{line}\n" for line in ("--- a/m.py", "+++ b/m.py", f"@@ -4,{removed} +4,{added} @@", *changed)
    )


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (("-    return min(a, b)", "+    return max(a, b)"), "return min → return max"),
        (("-    if x < limit:", "+    if x <= limit:"), "x < → x <="),
        (("-    return x", "+    return not x"), "return → return not"),
        (("-    first()", "-    second()"), "− first()"),
        (("+    extra()",), "+ extra()"),
        (("-a", "+b"), "a → b"),
        (("-return x", "+not x"), "return → not"),
        (("-(value)", "+-(value)"), "( → -("),
    ],
)
def test_the_first_change_of_a_diff_is_shown_after_the_name_before_it(changed, text):
    assert change_text(a_diff(*changed)) == text


def test_text_that_is_no_diff_has_no_change():
    assert change_text("") == ""
    assert change_text("@@ nonsense") == ""


def test_the_place_of_a_bug_is_its_target_or_else_its_first_file():
    assert place_text('{"path": "m.py", "name": "Cache.get"}', a_diff("-a", "+b")) == "Cache.get"
    assert place_text("", a_diff("-a", "+b")) == "m.py"
    assert place_text("free text", "") == "free text"
