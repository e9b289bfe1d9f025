"""One bug has one digest, however it is spelled; another bug has another."""

import pytest

from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.bug import bug_digest

CODE = '''"""Numbers."""


def clamp(value, low, high):
    """Within bounds."""
    result = value
    if value < low:
        result = low
    return min(result, high)


def keyword(call):
    return call(high=1)
'''
ORIGINAL = Tree(
    {"a.py": FileEntry(CODE.encode()), "b.py": FileEntry(b"x = 1\n"), "c.js": FileEntry(b"f(x)\n")}
)


def digest(changes: dict[str, str | None]) -> str:
    entries = {path: None if text is None else FileEntry(text.encode()) for path, text in changes.items()}
    return bug_digest(ORIGINAL, ORIGINAL.replace(entries))


BUG = CODE.replace("min(result, high)", "min(result, low)")


@pytest.mark.parametrize(
    "text",
    [
        BUG + "\n",
        BUG + "# x\n",
        BUG.replace("result", "number"),
        BUG.replace("Within bounds.", "Between."),
        BUG.replace("value, low, high", "v, lowest, high").replace("value", "v").replace("low", "lowest"),
    ],
    ids=["a blank line", "a comment", "a local variable", "a docstring", "parameters"],
)
def test_a_bug_that_is_spelled_anew_is_the_same(text: str):
    text = text.replace("lowestest", "lowest")
    assert digest({"a.py": text}) == digest({"a.py": BUG})


def test_a_comment_in_another_file_makes_no_other_bug():
    assert digest({"a.py": BUG, "b.py": "x = 1  # one\n", "c.js": "f(x)\n\n"}) == digest({"a.py": BUG})


@pytest.mark.parametrize(
    "changes",
    [
        {"a.py": BUG.replace("low)", "value)")},
        {"a.py": BUG, "b.py": "x = 2\n"},
        {"a.py": BUG, "c.js": "g(x)\n"},
        {"a.py": BUG, "b.py": None},
        {"a.py": BUG, "d.py": ""},
    ],
)
def test_other_code_is_another_bug(changes):
    assert digest(changes) != digest({"a.py": BUG})


def test_bugs_in_what_the_normal_form_leaves_out_are_told_apart():
    renamed = [CODE.replace("high", name) for name in ("top", "most")]
    documented = [CODE.replace("Within bounds.", text) for text in ("Within.", "Bounds.")]
    commented = [CODE + comment for comment in ("# a\n", "# b\n")]
    found = [digest({"a.py": text}) for text in (*renamed, *documented, *commented)]
    assert len(set(found)) == len(found)
    assert digest({"a.py": renamed[0] + "# x\n"}) == found[0]


def test_the_same_change_of_another_repository_is_another_bug():
    other = ORIGINAL.replace({"more.py": FileEntry(b"")})
    changed = other.replace({"a.py": FileEntry(BUG.encode())})
    assert bug_digest(other, changed) != digest({"a.py": BUG})
