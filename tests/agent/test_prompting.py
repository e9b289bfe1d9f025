"""Prompts: every template renders in every case with all its variables; a hash depends on the text alone."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfplay import parts
from selfplay.agent import prompting
from selfplay.agent.prompting import check_prompts, compact_diff, find_strategy, render
from selfplay.errors import PromptError
from selfplay.repositories.suspects import Suspect
from selfplay.runtime.resources import resource

TARGET = SimpleNamespace(
    path="pkg/mod.py", name="f", test_file="tests/test_mod.py", source="12:def f(x):\n13-    return x"
)
DIFF = """\
diff --git a/tests/test_mod.py b/tests/test_mod.py
index 1111111..2222222 100644
--- a/tests/test_mod.py
+++ b/tests/test_mod.py
@@ -1,3 +1,3 @@ def test_f():
 a
--- x
+++ y
 c
diff --git a/tests/test_new.py b/tests/test_new.py
--- a/tests/test_new.py
+++ b/tests/test_new.py
@@ -1 +1 @@
-one
+two
"""


def injector(strategy: str, style: str = "full", **changes: object) -> str:
    variables: dict[str, object] = {
        "repository": "toolz-1.0.0",
        "given": (),
        "target": None,
        "test_files": ("tests/test_a.py", "tests/test_b.py"),
        "min_passing_tests": 5,
        "min_failing_tests": 1,
        "min_changed_files": 1,
        "script_timeout_s": 90.0,
    }
    return render(f"injector/{strategy}", style, **(variables | changes)).text


def solver(style: str = "full", **changes: object) -> str:
    variables: dict[str, object] = {
        "repository": "toolz-1.0.0",
        "given": (),
        "issue": "",
        "specification": DIFF,
        "failure": "",
        "suspects": (),
    }
    return render("solver/repair", style, **(variables | changes)).text


def test_a_solver_with_an_issue_gets_it_in_place_of_the_tests() -> None:
    text = solver(issue="digits() fails", specification="")
    assert "<issue>\ndigits() fails\n</issue>" in text
    assert "```diff" not in text and "change below" not in text and "change above" not in text
    assert solver("terse", issue="digits() fails", specification="") == "solver\ndigits() fails"


SUSPECTS = (Suspect("pkg/mod.py", "A.f", 12, 15), Suspect("pkg/other.py", "g", 3, 3))
STRATEGIES = ("direct", "removal", "history")
GIVEN = ((), ("tests",), ("target",), ("tests", "target"))


@pytest.mark.parametrize(
    ("strategy", "given", "style"), list(itertools.product(STRATEGIES, GIVEN, ("full", "terse")))
)
def test_every_injector_prompt_renders(strategy: str, given: tuple[str, ...], style: str) -> None:
    text = injector(strategy, style, given=given, target=TARGET if "target" in given else None)
    assert ("12:def f(x):" in text) == ("target" in given)
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_full_injector_prompt_names_the_five_files_and_the_thresholds(strategy: str) -> None:
    text = injector(strategy, min_passing_tests=11, min_failing_tests=3, min_changed_files=2)
    for said in (
        "bug_inject.diff",
        "test_weaken.diff",
        "test_files.txt",
        "test_script.sh",
        "test_parser.py",
        "11 tests",
        "3 of them",
        "2 files",
    ):
        assert said in text
    assert "already in /submit" not in text


def test_given_tests_are_not_asked_for_again() -> None:
    text = injector("removal", given=("tests",))
    assert "already in /submit" in text and "tests/test_a.py, tests/test_b.py" in text
    assert "Write `test_parser.py`" not in text


def test_the_system_prompt_shows_every_tool() -> None:
    text = render("system").text
    assert all(f"<tool: {tool}>" in text for tool in ("bash", "edit", "create", "NAME"))
    assert render("system", "terse").text == ""


def test_terse_prompts_hold_only_facts() -> None:
    expected = "injector direct\npkg/mod.py\ntests/test_mod.py\n12:def f(x):\n13-    return x"
    assert render("injector/direct", "terse", target=TARGET).text == expected
    assert solver("terse", failure="E  assert 1 == 2") == f"solver\n{compact_diff(DIFF)}\nE  assert 1 == 2"
    commands = "grep -n '' pkg/mod.py | sed -n '12,15p' # A.f\ngrep -n '' pkg/other.py | sed -n '3,3p' # g"
    assert solver("terse", suspects=SUSPECTS) == f"solver\n{compact_diff(DIFF)}\n{commands}"


def test_a_solver_prompt_shows_the_specification_and_the_failure_if_given() -> None:
    assert DIFF in solver() and "fails like this" not in solver()
    assert "E  assert" in solver(failure="E  assert")


def test_a_full_solver_prompt_lists_suspects_if_given() -> None:
    assert "- `A.f` in `pkg/mod.py`, lines 12 to 15\n- `g` in `pkg/other.py`, lines 3 to 3\n" in solver(
        suspects=SUSPECTS
    )
    assert "likeliest" not in solver()


def test_a_full_solver_prompt_says_whether_the_tests_are_already_changed() -> None:
    assert "is to be made to its tests" in solver() and "/submit" not in solver()
    given = solver(given=("tests",))
    assert (
        "already been made" in given
        and "bash /submit/test_script.sh" in given
        and "is to be made" not in given
    )


@pytest.mark.parametrize("given", [(), ("tests",)])
@pytest.mark.parametrize("failure", ["", "E  assert"])
@pytest.mark.parametrize("suspects", [(), SUSPECTS])
def test_a_full_solver_prompt_has_no_gaps(
    given: tuple[str, ...], failure: str, suspects: tuple[Suspect, ...]
) -> None:
    text = solver(given=given, failure=failure, suspects=suspects)
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text and text.startswith("# Task")


def test_a_compact_diff_keeps_names_and_hunks_only() -> None:
    expected = (
        "tests/test_mod.py\n@@ -1,3 +1,3 @@ def test_f():\n a\n--- x\n+++ y\n c\n"
        "tests/test_new.py\n@@ -1 +1 @@\n-one\n+two"
    )
    assert compact_diff(DIFF) == expected


def test_text_of_the_repository_is_not_a_template() -> None:
    assert "{{ 7 * 7 }}" in solver("terse", specification="", failure="{{ 7 * 7 }}")


def test_a_missing_variable_is_an_error_that_names_it() -> None:
    with pytest.raises(PromptError, match="'failure' is undefined.*specification"):
        render("solver/repair", "terse", issue="", specification="")


def test_a_missing_template_is_an_error_that_lists_the_others() -> None:
    with pytest.raises(PromptError, match=r"no prompt 'injector/magic'.*injector/removal\.md\.j2"):
        render("injector/magic")


def test_an_unknown_style_is_an_error() -> None:
    with pytest.raises(PromptError, match="'loud' is not one of full, terse"):
        render("system", "loud")


def test_all_prompts_load() -> None:
    check_prompts()


def test_a_hash_depends_on_text_includes_and_style_but_not_on_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "prompts"
    shutil.copytree(resource("prompts"), copy)

    def hashes() -> tuple[str, str, str]:
        for cached in (prompting._environment, prompting._template, prompting.prompt_hash):
            cached.cache_clear()
        return (
            prompting.prompt_hash("injector/direct", "full"),
            prompting.prompt_hash("injector/direct", "terse"),
            _hash_of_solver(),
        )

    before = hashes()
    monkeypatch.setattr(prompting, "resource", lambda name: copy)
    assert hashes() == before and len(set(before)) == 3
    included = copy / "shared" / "artifact.md.j2"
    included.write_text(included.read_text() + "one more word\n")
    after = hashes()
    monkeypatch.undo()
    hashes()
    assert after[0] != before[0] and after[1:] == before[1:]


def _hash_of_solver() -> str:
    one, other = (
        render("solver/repair", "terse", issue="", specification=text, failure="", suspects=()).hash
        for text in ("a", "b")
    )
    assert one == other
    return one


def test_a_strategy_without_a_terse_prompt_stops_a_run_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud.md.j2").write_text("be loud")
    (tmp_path / "my_strategies.py").write_text(
        "from pathlib import Path\nfrom selfplay.agent.prompting import Strategy\n"
        "LOUD = Strategy('loud', Path(__file__).parent)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PromptError, match=r"there is no prompt 'loud' in style 'terse'"):
        check_prompts(["my_strategies:LOUD"])
    (tmp_path / "loud.terse.md.j2").write_text("loud")
    check_prompts(["my_strategies:LOUD"])
    assert render("loud", "terse", tmp_path).text == "loud"


def test_the_strategies_are_those_of_the_prompts_folder() -> None:
    assert parts.names_of("injector.strategies") == ("direct", "history", "removal")
    assert [find_strategy(name).needs_history for name in ("direct", "history")] == [False, True]
