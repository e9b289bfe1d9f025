"""Every bug that a diff can put in can be taken out by a solver, or the validator rejects it."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay.source.apply import MAX_COMPARED_BYTES, apply_patch, diff_trees
from selfplay.source.diffs import diff_text
from selfplay.source.trees import FileEntry, Tree
from selfplay.verdicts.artifact import Artifact
from selfplay.verdicts.bug import BugState, States, build_states
from selfplay.verdicts.prediction import MAX_FILE_BYTES, take_prediction
from selfplay.verdicts.repairs import graded_trees, judge_exact_repair, take_repair

MOST = 1 << 18  # bytes of a diff, the default of `validator.max_patch_bytes`
TESTS = ("tests/test_total.py",)
WRONG = "        result = price\n"
RIGHT = "        result += price\n"
SOURCE = f"def total(prices):\n    result = 0\n    for price in prices:\n{RIGHT}    return result\n"
KEPT = {
    "shop/__init__.py": FileEntry(b""),
    "tests/test_total.py": FileEntry(b"def test_total():\n    assert total([1, 2]) == 3\n"),
}


def states_of(original: Tree, bug: dict[str, FileEntry | None] | str, attempt: str = "") -> States:
    """The trees of a bug: a change of the original, or its diff."""
    diff = bug if isinstance(bug, str) else diff_trees(original, original.replace(bug))
    weakened = original.replace({TESTS[0]: FileEntry(b"def test_total():\n    assert total([1, 2])\n")})
    artifact = Artifact(diff, diff_trees(original, weakened), TESTS, "script", "parser")
    return build_states(original, BugState(artifact, 2 if attempt else 1, attempt, ("t",), ()))


def assert_repairable(states: States) -> None:
    """The check accepts. A solver that undoes the bug has the original graded, wherever it starts."""
    finding = judge_exact_repair(states, TESTS, MOST)
    assert finding.passed, finding.reason
    for start in (states.solver_start, states.buggy):  # as `solver.help` has it
        undone = start.restore(states.original, states.original.changed_paths(states.buggy))
        repair = take_repair(states, start, undone.to_tar(), TESTS, MOST)
        kept = json.loads(json.dumps(repair.patch))
        assert graded_trees(states, kept, TESTS, MOST).final == states.original
        assert repair.restored == ()


def assert_rejected(states: States, reason: str) -> None:
    finding = judge_exact_repair(states, TESTS, MOST)
    assert not finding.passed and reason in finding.reason, finding


def shop(content: bytes, path: str = "shop/prices.py", executable: bool = False, **others: bytes) -> Tree:
    return Tree({**KEPT, path: FileEntry(content, executable)} | {p: FileEntry(c) for p, c in others.items()})


# ---- encodings


@pytest.mark.parametrize(
    ("coding", "word"),
    [
        ("latin-1", "café"),
        ("shift-jis", "表示ソ"),  # their second bytes are a backslash
        ("euc-jp", "価格"),
        ("cp1251", "цена"),
        ("koi8-r", "цена"),
        ("utf-8-sig", "café"),
        ("utf-8", "café \u2028\x85\x0c"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_source_in_any_encoding_is_repaired_byte_for_byte(coding, word, newline):
    lines = [f"# -*- coding: {coding} -*-", *SOURCE.split("\n")]
    lines[4] += f"  # {word}"  # a changed line, and beside it one that stays
    lines[5] += f"  # {word}"
    original = shop(newline.join(lines).encode(coding))
    wrong = [line.replace("+=", "=") for line in lines]
    states = states_of(original, {"shop/prices.py": FileEntry(newline.join(wrong).encode(coding))})
    assert states.buggy != original
    assert_repairable(states)


def test_a_deleted_and_an_added_file_in_another_encoding_are_repaired():
    original = shop(b"# caf\xe9\n")
    assert_repairable(states_of(original, {"shop/prices.py": None}))
    assert_repairable(states_of(original, {"shop/fast.py": FileEntry(b"# \xff\xfe caf\xe9")}))


def test_a_diff_that_names_only_ascii_lines_of_a_file_in_another_encoding_is_repaired():
    original = shop(b"# -*- coding: latin-1 -*-\n# caf\xe9\n\n\n\n" + SOURCE.encode())
    diff = (
        "diff --git a/shop/prices.py b/shop/prices.py\n--- a/shop/prices.py\n+++ b/shop/prices.py\n"
        f"@@ -8,3 +8,3 @@\n     for price in prices:\n-{RIGHT}+{WRONG}     return result\n"
    )
    assert_repairable(states_of(original, diff))


def test_a_binary_file_can_neither_be_broken_nor_repaired():
    utf16 = shop("# café\nx = 1\n".encode("utf-16"), "shop/names.txt")
    with pytest.raises(Exception, match="binary"):
        states_of(utf16, {"shop/names.txt": FileEntry("# café\nx = 2\n".encode("utf-16"))})
    with pytest.raises(Exception, match="binary"):
        states_of(utf16, "diff --git a/shop/names.txt b/n\nrename from shop/names.txt\nrename to n\n")
    changed = utf16.replace({"shop/names.txt": FileEntry("x = 2\n".encode("utf-16"))})
    assert take_prediction(utf16, changed.to_tar()).restored == ("shop/names.txt",)


# ---- sizes


def test_source_over_a_mebibyte_is_repaired():
    table = b"".join(b"row_%06d = %06d\n" % (n, n) for n in range(80_000))
    original = shop(table + SOURCE.encode())
    assert len(table) > MAX_FILE_BYTES
    bug = {"shop/prices.py": FileEntry(table + SOURCE.replace(RIGHT, WRONG).encode())}
    assert_repairable(states_of(original, bug))


def test_a_file_that_is_too_large_to_compare_is_no_place_for_a_bug():
    original = shop(b"x = 1\n" * (MAX_COMPARED_BYTES // 6 + 1))
    bug = {"shop/prices.py": FileEntry(original["shop/prices.py"].content + b"x = 2\n")}
    assert_rejected(states_of(original, bug), "bytes")


def test_a_bug_whose_repair_is_a_larger_diff_than_grading_reads_is_rejected():
    rename = (
        "diff --git a/shop/prices.py b/shop/costs.py\nrename from shop/prices.py\nrename to shop/costs.py\n"
    )
    assert_repairable(states_of(shop(SOURCE.encode()), rename))
    generator = random.Random(0)
    large = b"".join(b"x_%d = %d\n" % (n, generator.getrandbits(40)) for n in range(20_000))
    assert_rejected(states_of(shop(large), rename), f"{MOST} bytes")
    # The bug's diff shows one line of context, the repair's three.
    lines = [b"x_%02d = 0000000000000000000000000000\n" % (n % 100) for n in range(9_800)]
    wrong = [line.replace(b"0\n", b"1\n") if n % 7 == 3 else line for n, line in enumerate(lines)]
    hunks = "".join(
        f"@@ -{n},3 +{n},3 @@\n {old.decode()}-{line.decode()}+{new.decode()} {after.decode()}"
        for n, (old, line, new, after) in enumerate(
            zip(lines, lines[1:], wrong[1:], lines[2:], strict=False), 1
        )
        if line != new
    )
    diff = (
        f"diff --git a/shop/prices.py b/shop/prices.py\n--- a/shop/prices.py\n+++ b/shop/prices.py\n{hunks}"
    )
    assert len(diff) < MOST
    assert_rejected(states_of(shop(b"".join(lines)), diff), f"{MOST} bytes")


def test_more_files_than_a_diff_may_name_cannot_be_renamed():
    files = {f"shop/m{n}.py": FileEntry(b"x = %d\n" % n) for n in range(300)}
    diff = "".join(
        f"diff --git a/shop/m{n}.py b/shop/n{n}.py\nrename from shop/m{n}.py\nrename to shop/n{n}.py\n"
        for n in range(300)
    )
    assert_rejected(states_of(Tree({**KEPT, **files}), diff), "500 files")


# ---- ignored files


@pytest.mark.parametrize(
    ("path", "rules"),
    [
        ("shop/prices.py", {".gitignore": b"prices.py\n"}),
        ("build/prices.py", {".gitignore": b"build/\n"}),
        ("shop/data/prices.py", {"shop/.gitignore": b"/data/\n"}),
        ("shop/prices.py", {".gitignore": b"*\n!*.py\n", "shop/.gitignore": b"*\n"}),
        (".hypothesis/prices.py", {}),
    ],
)
def test_a_file_that_a_rule_ignores_is_repaired_however_it_was_broken(path, rules):
    original = shop(SOURCE.encode(), path, **rules)
    assert_repairable(states_of(original, {path: FileEntry(SOURCE.replace(RIGHT, WRONG).encode())}))
    assert_repairable(states_of(original, {path: None}))
    assert_repairable(states_of(original, {path: None, "shop/moved.py": original[path]}))
    assert_repairable(states_of(shop(b"", "shop/a.py", **rules), {path: FileEntry(b"x = 1\n")}))


def test_a_module_with_the_name_of_one_of_pythons_is_repaired_if_it_was_there():
    original = shop(SOURCE.encode(), "types.py")
    assert_repairable(states_of(original, {"types.py": None, "shop/prices.py": FileEntry(b"x\n")}))


def test_the_rules_are_the_originals_and_a_repair_needs_none_of_a_bugs_files():
    original = shop(SOURCE.encode(), **{".gitignore": b"*.log\n"})
    before = original.replace({".gitignore": FileEntry(b"*\n"), "shop/prices.py": None})
    repaired = before.replace({"shop/prices.py": original["shop/prices.py"], "new.py": FileEntry(b"x\n")})
    taken = take_prediction(before, repaired.to_tar(), original=original)
    assert apply_patch(before, taken.patch).changed_paths(before) == ["new.py", "shop/prices.py"]


# ---- kinds of changes, names and modes


@pytest.mark.parametrize(
    "path", ["é/ü.py", "with blank/a b.py", "a b/b a.py", "日本.py", "x b/x.py", "#a~.py"]
)
@pytest.mark.parametrize("executable", [False, True])
def test_files_with_odd_names_and_executable_bits_are_repaired(path, executable):
    original = shop(SOURCE.encode(), path, executable)
    assert_repairable(states_of(original, {path: FileEntry(b"", executable)}))
    assert_repairable(states_of(original, {path: None}))
    assert_repairable(states_of(original, {path: None, f"{path}/a": FileEntry(b"x", executable)}))
    assert_repairable(states_of(original, {f"new/{path}": FileEntry(b"\r", executable)}))


def test_an_empty_file_that_a_bug_deletes_or_adds_is_repaired():
    assert_repairable(states_of(shop(b"x\n"), {"shop/__init__.py": None}))
    assert_repairable(states_of(shop(b"x\n"), {"shop/prices/__init__.py": FileEntry(b"")}))


def test_attributes_of_the_repository_change_nothing():
    rules = {".gitattributes": b"* text eol=crlf\n*.py -diff binary filter=lfs\nshop export-ignore\n"}
    original = shop(SOURCE.encode(), **rules)
    assert_repairable(
        states_of(original, {"shop/prices.py": FileEntry(SOURCE.replace(RIGHT, WRONG).encode())})
    )


def test_a_failed_repair_that_loses_an_executable_bit_is_no_second_order_bug():
    original = shop(b"#!/bin/sh\n", "shop/run", executable=True)
    bug = {"shop/run": None, "shop/other.py": FileEntry(b"x = 1\n")}
    start = states_of(original, bug).solver_start
    attempt = diff_trees(start, start.replace({"shop/run": FileEntry(b"exit\n")}))
    assert_rejected(states_of(original, bug, attempt), "executable bit")
    same_mode = diff_trees(start, start.replace({"shop/run": FileEntry(b"exit\n", executable=True)}))
    assert_repairable(states_of(original, bug, same_mode))


def test_a_second_order_bug_is_repaired_by_undoing_both():
    original = shop(b"# caf\xe9\n" + SOURCE.encode(), **{".gitignore": b"prices.py\n"})
    bug = {"shop/prices.py": None, "shop/costs.py": FileEntry(b"# \xff\n")}
    start = states_of(original, bug).solver_start
    attempt = diff_trees(
        start,
        start.replace({"shop/prices.py": FileEntry(b"# \xe9\n"), "shop/__init__.py": FileEntry(b"1\n")}),
    )
    assert_repairable(states_of(original, bug, attempt))


contents = st.binary(max_size=60).map(lambda data: data.replace(b"\0", b"\n"))
lines = st.lists(
    st.sampled_from([b"a", b"\xe9", b"\xc3\xa9", b"\x83\\", b"\r", b"@@ -1 +1 @@", b"-- a"]), max_size=12
)
files = st.dictionaries(
    st.sampled_from(["shop/a.py", "build/b.py", "é.txt", "types.py", "data/c.log"]),
    st.builds(FileEntry, contents | lines.map(b"\n".join), st.just(False)),
)


@given(before=files, after=files)
def test_whatever_a_bug_does_to_text_files_is_repaired_or_rejected(before, after):
    original = Tree({**KEPT, **before, ".gitignore": FileEntry(b"build/\n*.log\n")})
    states = states_of(original, {**dict.fromkeys(before), **after})
    finding = judge_exact_repair(states, TESTS, MOST)
    assert not finding.passed or finding.evidence["undone"] == original.changed_paths(states.buggy)
    if not finding.passed:  # a new module with one of Python's names: protected_paths rejects it
        assert "types.py" in finding.reason and "types.py" not in original
    else:
        assert_repairable(states)


# ---- what opens no way to a reward


@pytest.mark.parametrize(
    "path",
    ["conftest.py", "tests/new.py", "pytest.ini", "x.pth", "sitecustomize.py", "types.py", ".gitignore"],
)
def test_a_bug_gives_its_repair_no_right_to_protected_files(path):
    original = shop(b"# caf\xe9\n" + SOURCE.encode())
    states = states_of(original, {"shop/prices.py": None})
    planted = states.solver_start.replace({path: FileEntry(b"# \xe9\n"), **original.files})
    repair = take_repair(states, states.solver_start, planted.to_tar(), TESTS, MOST)
    assert path in repair.restored and path not in repair.patch
    by_hand = diff_trees(states.solver_start, planted.restore(original, TESTS))
    assert path not in graded_trees(states, by_hand, TESTS, MOST).final


def test_new_ignored_files_large_ones_and_binaries_do_not_count():
    original = shop(SOURCE.encode(), **{".gitignore": b"*.log\n"})
    states = states_of(original, {"shop/prices.py": None})
    left = {
        "run.log": FileEntry(b"x\n"),
        "core": FileEntry(b"\0"),
        "dump.txt": FileEntry(b"x" * (MAX_FILE_BYTES + 1)),
    }
    workspace = states.solver_start.replace({**left, "shop/prices.py": original["shop/prices.py"]})
    repair = take_repair(states, states.solver_start, workspace.to_tar(), TESTS, MOST)
    assert repair.restored == ("core", "dump.txt")
    assert graded_trees(states, repair.patch, TESTS, MOST).final == original


def test_what_a_run_left_behind_takes_no_room_from_the_repair():
    original = shop(SOURCE.encode(), "zone/prices.py")
    states = states_of(original, {"zone/prices.py": None})
    left = {f"out/{n}.txt": FileEntry(b"%d\n" % n * 20_000) for n in range(600)}
    workspace = states.solver_start.replace({**left, "zone/prices.py": original["zone/prices.py"]})
    repair = take_repair(states, states.solver_start, workspace.to_tar(), TESTS, MOST)
    assert "zone/prices.py" not in repair.restored and "out/1.txt" in repair.patch + "".join(repair.restored)
    assert (
        graded_trees(states, repair.patch, TESTS, MOST).final["zone/prices.py"] == original["zone/prices.py"]
    )
    assert len(repair.patch) <= MOST


def test_a_diff_of_bytes_reads_back_from_files_and_json():
    original = shop(b"# caf\xe9\n")
    artifact = Artifact(diff_trees(original, shop(b"# th\xe9\n")), "", TESTS, "script", "parser")
    data = {name: json.loads(json.dumps(text)) for name, text in artifact.to_files().items()}
    assert Artifact.from_files(data) == artifact
    assert "caf\udce9" in artifact.bug_inject
    assert diff_text(b"caf\xe9") == "caf\udce9"
