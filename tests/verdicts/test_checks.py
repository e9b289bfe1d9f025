import pytest

from selfplay.outcomes import TestOutcomes
from selfplay.source.apply import apply_patch, diff_trees
from selfplay.source.diffs import parse_patch
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, build_states
from selfplay.verdicts.checks import (
    Thresholds,
    broken_tests,
    judge_baseline,
    judge_bug,
    judge_changed_files,
    judge_empty_log,
    judge_repair,
    judge_repeats,
    judge_reverts,
    judge_weakening,
)
from selfplay.verdicts.prediction import MAX_FILE_BYTES, add_prediction, take_prediction
from selfplay.verdicts.test_logs import short_failure, without_lines_naming
from selfplay.verdicts.verdict import CheckResult, Verdict


def outcomes(passed="", failed=""):
    return TestOutcomes(frozenset(passed), frozenset(failed))


def tree(**files):
    return Tree({name: FileEntry(text.encode()) for name, text in files.items()})


LIMITS = Thresholds(min_passing_tests=3, min_failing_tests=2, min_changed_files=2)

# ---- the decisions


def test_a_baseline_needs_enough_passing_tests_and_no_failing_one():
    assert judge_baseline(outcomes("abc"), LIMITS).passed
    assert "at least 3" in judge_baseline(outcomes("ab"), LIMITS).reason
    assert "1 test(s) fail on the original code: d" in judge_baseline(outcomes("abc", "d"), LIMITS).reason


def test_a_bug_changes_enough_files():
    assert judge_changed_files(["a.py", "b.py"], LIMITS).passed
    assert "at least 2 must change" in judge_changed_files(["a.py"], LIMITS).reason
    assert "empty" in judge_changed_files([], Thresholds()).reason


def test_a_missing_test_is_broken_but_does_not_count_as_failing():
    original, buggy = outcomes("abcd"), outcomes("ab", "c")
    assert broken_tests(original, buggy) == {"c", "d"}
    assert "1 test(s) fail" in judge_bug(original, buggy, LIMITS).reason
    assert judge_bug(original, outcomes("ab", "cd"), LIMITS).passed


def test_a_failing_test_that_the_original_did_not_have_proves_no_bug():
    assert "no test notices" in judge_bug(outcomes("abc"), outcomes("abc", "xyz"), LIMITS).reason


def test_some_test_must_survive_the_bug():
    assert "some must still pass" in judge_bug(outcomes("abc"), outcomes("", "abc"), LIMITS).reason


@pytest.mark.parametrize(
    ("weakened", "hides"),
    [
        (outcomes("abc", "d"), True),
        (outcomes("ab", "d"), True),
        (outcomes("ab", "cd"), False),
        (outcomes("", "cd"), False),
    ],
    ids=["passes again", "gone", "still failing", "others gone"],
)
def test_weakening_hides_a_broken_test_by_passing_or_removing_it(weakened, hides):
    assert judge_weakening(frozenset("cd"), outcomes("ab", "cd"), weakened).passed is hides


def test_a_test_that_is_missing_with_the_bug_is_not_hidden_if_it_stays_missing():
    assert not judge_weakening(frozenset("cd"), outcomes("ab", "c"), outcomes("ab", "c")).passed


def test_each_reverted_file_must_repair_a_broken_test():
    assert judge_reverts(frozenset("cd"), {"a.py": (outcomes("c"), ""), "b.py": (outcomes("abd"), "")}).passed
    finding = judge_reverts(
        frozenset("cd"), {"a.py": (outcomes("c"), ""), "b.py": (outcomes("ab", "cd"), "")}
    )
    assert not finding.passed and "only b.py" in finding.reason
    assert "took too long" in judge_reverts(frozenset("c"), {"a.py": (outcomes(), "took too long")}).reason


def test_repeats_must_be_equal_in_every_state():
    good = (outcomes("ab", "c"), "")
    assert judge_repeats({"original": [good, good], "buggy": [good]}).passed
    finding = judge_repeats({"original": [good, good], "buggy": [good, (outcomes("a", "c"), "")]})
    assert not finding.passed and finding.evidence["moved"] == {"buggy": ["b"]}
    assert "lost" in judge_repeats({"buggy": [good, (outcomes(), "lost")]}).reason


def test_a_parser_must_need_its_log():
    assert judge_empty_log(outcomes(), outcomes(), outcomes("ab")).passed
    assert "empty log" in judge_empty_log(outcomes("a"), outcomes(), outcomes("ab")).reason
    assert "does not name any more" in judge_empty_log(outcomes(), outcomes("b"), outcomes("ab")).reason


def test_lines_that_name_a_test_are_found_by_its_last_name():
    log = b"PASSED t.py::T::test_a[1 - x]\nok test_ab\ntest_a ... ok\n2 passed\n"
    assert without_lines_naming(log, {"t.py::T::test_a[1 - x]"}) == b"ok test_ab\n2 passed\n"
    assert without_lines_naming(b"PASSED a.py::test_a\rok\nend", {"a.py::test_a"}) == b"end"


def test_a_repair_needs_an_explicit_pass_of_every_test():
    assert judge_repair(outcomes("abc"), "a", "bc") == ()
    assert judge_repair(outcomes("a", "b"), "ab", "c") == ("b", "c")


def test_a_verdict_survives_its_json_form():
    check = CheckResult("patches", False, "no", {"files": {"a": "add"}}, 0.1)
    verdict = Verdict(False, (check,), "patches", ("a",), ("b", "c"), "digest", "E   boom", 1.5, 3, 2)
    assert Verdict.from_json(verdict.to_json()) == verdict


# ---- a failure in its own words

LOG = b"""
=================================== FAILURES ===================================
___________________________________ test_one ___________________________________
tests/test_b.py:3: in test_one
    assert 1 == 2
E   assert 1 == 2
________________________________ T.test_one[a-b] _______________________________
tests/test_a.py:9: in test_one
    boom()
E   \x1b[31mValueError: \x07boom
___________________________________ test_one ___________________________________
tests/test_a.py:4: in test_one
    assert 3 == 4
E   assert 3 == 4
=========================== short test summary info ============================
FAILED tests/test_a.py::test_one - assert 3 == 4
1 failed
"""


def test_the_failure_is_the_one_of_the_tests_own_file():
    assert (
        short_failure(LOG, "tests/test_a.py::test_one")
        == "tests/test_a.py:4: in test_one\n    assert 3 == 4\nE   assert 3 == 4"
    )
    assert short_failure(LOG, "tests/test_b.py::test_one").endswith("E   assert 1 == 2")


def test_the_failure_of_a_method_with_parameters_is_found_and_made_harmless():
    assert short_failure(LOG, "tests/test_a.py::T::test_one[a-b]", max_lines=1) == "E   ValueError: boom"


def test_without_a_traceback_the_end_of_the_log_is_shown():
    assert (
        short_failure(LOG, "elsewhere::x", max_lines=2)
        == "FAILED tests/test_a.py::test_one - assert 3 == 4\n1 failed"
    )
    assert short_failure(b"", "x") == ""


# ---- predictions

BEFORE = Tree(
    {
        ".gitignore": FileEntry(b"*.log\nbuild/\nkept.log\n"),
        "pkg/a.py": FileEntry(b"x = 1\n"),
        "kept.log": FileEntry(b"tracked although ignored\n"),
        "tests/test_a.py": FileEntry(b"assert 1\n"),
        "tool": FileEntry(b"#!\n", executable=True),
    }
)


def after(changes):
    return BEFORE.replace(
        {path: None if content is None else FileEntry(content) for path, content in changes.items()}
    ).to_tar()


def test_an_untouched_workspace_predicts_nothing():
    assert take_prediction(BEFORE, BEFORE.to_tar()) == take_prediction(
        BEFORE, after({"x.log": b"", "a/__pycache__/b.pyc": b"\0"})
    )
    assert take_prediction(BEFORE, BEFORE.to_tar()).patch == ""


def test_untracked_files_count_and_ignored_ones_do_not():
    prediction = take_prediction(
        BEFORE, after({"pkg/new.py": b"y = 1\n", "build/lib/a.py": b"z\n", "run.log": b"z\n"})
    )
    assert apply_patch(BEFORE, prediction.patch).changed_paths(BEFORE) == ["pkg/new.py"]
    assert prediction.restored == ()


def test_tracked_files_count_even_when_a_rule_ignores_them():
    original = BEFORE.replace({"kept.log": FileEntry(b"as the bug did not leave it\n")})
    prediction = take_prediction(BEFORE, after({"kept.log": b"changed\n"}), original=original)
    assert apply_patch(BEFORE, prediction.patch)["kept.log"].content == b"changed\n"


def test_a_file_that_is_no_code_counts_only_if_the_bug_changed_it():
    changes = {"pkg/a.py": b"x = 2\n", "kept.log": b"changed\n", "data/new.txt": b"new\n", "tool": b"#!/\n"}
    prediction = take_prediction(BEFORE, after(changes))
    assert prediction.restored == ("data/new.txt", "kept.log", "tool")
    assert set(prediction.reasons) == {"it is no code, and the bug did not change it"}
    original = BEFORE.replace({"kept.log": None, "data/new.txt": FileEntry(b"deleted by the bug\n")})
    patch = diff_trees(BEFORE, Tree.from_tar(after(changes)))
    _, restored = add_prediction(original, BEFORE, parse_patch(patch, 1 << 20), ())
    assert restored == ("tool",)


def test_a_new_module_does_not_count_if_it_is_imported_instead_of_a_fixed_one():
    shadows = {"pkg/a/__init__.py": b"x\n", "src/pkg/a.py": b"x\n", "src/pkg/__init__.py": b"x\n"}
    tree = BEFORE.replace({"src/other.py": FileEntry(b"y = 1\n")})
    workspace = tree.replace({path: FileEntry(text) for path, text in shadows.items()})
    fine = {"pkg/b.py": FileEntry(b"z = 1\n"), "pkg/a_more.py": FileEntry(b"z = 1\n")}
    prediction = take_prediction(tree, workspace.replace(fine).to_tar(), ("pkg/a.py",))
    assert prediction.restored == tuple(sorted(shadows))
    assert take_prediction(tree, workspace.to_tar()).restored == ()


def test_an_ignore_file_that_the_solver_wrote_hides_nothing():
    prediction = take_prediction(BEFORE, after({".gitignore": b"*\n", "pkg/new.py": b"y = 1\n"}))
    assert "pkg/new.py" in prediction.patch and prediction.restored == (".gitignore",)


@pytest.mark.parametrize(
    "path",
    [
        "tests/test_a.py",
        "conftest.py",
        "pytest.ini",
        "sitecustomize.py",
        "x.pth",
        "pytest.py",
        "evil.dist-info/entry_points.txt",
    ],
)
def test_protected_files_are_restored_and_recorded(path):
    prediction = take_prediction(BEFORE, after({path: b"evil\n", "pkg/a.py": b"x = 2\n"}))
    assert prediction.restored == (path,)
    assert apply_patch(BEFORE, prediction.patch).changed_paths(BEFORE) == ["pkg/a.py"]


def test_a_deleted_test_is_restored():
    prediction = take_prediction(BEFORE, after({"tests/test_a.py": None, "pkg/a.py": None}))
    assert prediction.restored == ("tests/test_a.py",)
    assert "pkg/a.py" not in apply_patch(BEFORE, prediction.patch)


@pytest.mark.parametrize("content", [b"\0", b"x" * (MAX_FILE_BYTES + 1)], ids=["binary", "huge"])
def test_a_change_that_a_text_diff_cannot_hold_is_restored(content):
    assert take_prediction(BEFORE, after({"pkg/data.py": content})).restored == ("pkg/data.py",)


def test_files_with_hostile_names_are_restored_and_recorded_harmlessly():
    restored = take_prediction(BEFORE, after({"pkg/\x1b[2J.py": b"x\n", "-rf": b"x\n"})).restored
    assert restored == ("'-rf'", "'pkg/\\x1b[2J.py'")


def test_a_changed_mode_alone_is_no_change():
    tar = BEFORE.replace(
        {"tool": FileEntry(b"#!\n"), "pkg/a.py": FileEntry(b"x = 1\n", executable=True)}
    ).to_tar()
    assert take_prediction(BEFORE, tar).patch == ""


def test_more_files_than_a_patch_may_have_are_cut_and_recorded():
    prediction = take_prediction(BEFORE, after({f"junk/{number}.py": b"x\n" for number in range(510)}))
    assert len(prediction.restored) == 10 and prediction.patch.count("diff --git") == 500


def test_more_bytes_than_a_repair_can_need_are_cut_and_recorded():
    prediction = take_prediction(
        BEFORE, after({f"junk/{number}.py": b"x\n" * (1 << 19) for number in range(10)})
    )
    assert prediction.restored == ("junk/8.py", "junk/9.py")


# ---- a bug's trees


def test_the_trees_of_a_bug_are_built_once_for_all_who_ask():
    original = tree(code="one\n", tests="two\n")
    buggy = original.replace({"code": FileEntry(b"broken\n")})
    weakened = buggy.replace({"tests": FileEntry(b"weak\n")})

    def bug():
        artifact = Artifact(diff_trees(original, buggy), diff_trees(buggy, weakened), ("tests",), "s", "p")
        return BugState(artifact, 1, "", ("t",), ())

    states = build_states(original, bug())
    assert (states.buggy, states.solver_start) == (buggy, weakened)
    assert build_states(Tree(dict(original)), bug()) is states
    other = original.replace({"more": FileEntry(b"")})
    assert build_states(other, bug()).buggy == buggy.replace({"more": FileEntry(b"")})
