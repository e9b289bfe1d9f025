import os
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay.errors import PatchError
from selfplay.source.apply import apply_patch, diff_trees
from selfplay.source.diffs import diff_bytes, diff_text, parse_patch, reverse_patch, shown_diff
from selfplay.source.path_policy import is_protected_path, is_test_path
from selfplay.source.trees import FileEntry, Tree

CAP = 1 << 20


def cases(named):
    """Parameters (diff, complaint) with their names as test ids."""
    return pytest.mark.parametrize(("diff", "complaint"), named.values(), ids=named.keys())


def entries(mapping):
    return Tree({path: FileEntry(text.encode()) for path, text in mapping.items()})


CODE = "def one():\n    return 1\n\n\ndef two():\n    return 2\n"
BEFORE = entries(
    {"pkg/a.py": CODE, "pkg/b.py": "x = 1\n", "pkg/empty.py": "", "tests/test_a.py": "assert 1\n"}
)
MODIFY = "diff --git a/pkg/b.py b/pkg/b.py\n--- a/pkg/b.py\n+++ b/pkg/b.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"


def git_diff(tmp_path, before, after, *options, settings=()):
    """What real git prints when `before` is committed and becomes `after`. settings: of git, key=value."""
    before.write_to(tmp_path)

    def git(*arguments):
        names = [
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@localhost",
            "-c",
            "init.defaultBranch=main",
            "-c",
            "commit.gpgsign=false",
        ]
        return subprocess.run(
            ["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True
        ).stdout.decode()

    git("init", "-q")
    git("add", "-A", "-f")
    git("commit", "-q", "-m", "before")
    for path in before:
        if path not in after:
            (tmp_path / path).unlink()
    after.write_to(tmp_path)
    git("add", "-A", "-f")
    return git(*(part for setting in settings for part in ("-c", setting)), "diff", "--cached", *options)


# ---- diffs of git


def test_a_modification_is_read_and_applied():
    patch = parse_patch(MODIFY, CAP)
    assert [(file.path, file.kind) for file in patch.files] == [("pkg/b.py", "modify")]
    assert apply_patch(BEFORE, MODIFY).text("pkg/b.py") == "x = 2\n"


@pytest.mark.parametrize(
    "options", [(), ("--no-renames",), ("--minimal", "-U1")], ids=["plain", "no renames", "short context"]
)
def test_real_diffs_with_additions_deletions_renames_and_odd_names_apply(tmp_path, options):
    before = BEFORE.replace(
        {
            "with blank.py": FileEntry(b"a = 1\n"),
            "naïve.py": FileEntry(b"b = 1\n"),
            "end.py": FileEntry(b"no newline"),
        }
    )
    after = before.replace(
        {
            "pkg/a.py": None,
            "pkg/renamed.py": FileEntry(CODE.replace("2", "3").encode()),
            "pkg/empty.py": None,
            "pkg/new.py": FileEntry(b"y = 1\n"),
            "pkg/new_empty.py": FileEntry(b""),
            "tool": FileEntry(b"#!/bin/sh\n", executable=True),
            "with blank.py": FileEntry(b"a = 2\n"),
            "naïve.py": FileEntry(b"b = 2\n"),
            "end.py": FileEntry(b"still no newline"),
        }
    )
    diff = git_diff(tmp_path, before, after, *options)
    assert apply_patch(before, diff) == after
    assert set(parse_patch(diff, CAP).changed_paths) == set(before.changed_paths(after))


def test_a_rename_counts_as_both_of_its_paths(tmp_path):
    after = BEFORE.replace({"pkg/a.py": None, "pkg/moved.py": BEFORE["pkg/a.py"]})
    patch = parse_patch(git_diff(tmp_path, BEFORE, after), CAP)
    assert [file.kind for file in patch.files] == ["rename"]
    assert patch.changed_paths == ("pkg/a.py", "pkg/moved.py")
    assert apply_patch(BEFORE, patch.text()) == after


def test_carriage_returns_in_content_are_content(tmp_path):
    before = entries({"dos.py": "a = 1\r\nb = 2\r\n"})
    after = entries({"dos.py": "a = 1\r\nb = 3\r\n"})
    assert apply_patch(before, git_diff(tmp_path, before, after)) == after


def test_the_executable_bit_of_a_modified_file_stays():
    before = Tree({"tool": FileEntry(b"a\n", executable=True)})
    after = apply_patch(
        before,
        "diff --git a/tool b/tool\nindex 7898192..6178079 100755\n--- a/tool\n+++ b/tool\n"
        "@@ -1 +1 @@\n-a\n+b\n",
    )
    assert after == Tree({"tool": FileEntry(b"b\n", executable=True)})


def test_blank_text_is_a_patch_without_files():
    assert parse_patch(" \n\n", CAP).is_empty
    assert apply_patch(BEFORE, "") == BEFORE


def test_attributes_and_configuration_in_the_tree_do_not_reach_git(tmp_path, monkeypatch):
    config = tmp_path / "gitconfig"
    config.write_text("[core]\n\tautocrlf = true\n\tfsmonitor = touch owned\n[apply]\n\twhitespace = fix\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    before = BEFORE.replace({".gitattributes": FileEntry(b"* text eol=crlf\n* filter=x\n")})
    name = ".gitattributes"
    diff = (
        f"{MODIFY}diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n"
        "@@ -1,2 +1 @@\n * text eol=crlf\n-* filter=x\n"
    )
    assert apply_patch(before, diff)["pkg/b.py"].content == b"x = 2\n"


# ---- settings of git

REARRANGED = {
    "pkg/a.py": None,
    "pkg/renamed.py": FileEntry(CODE.replace("2", "3").encode()),
    "pkg/empty.py": None,
    "a/b.py": FileEntry(b"y = 1\n"),
    "tool": FileEntry(b"#!/bin/sh\n", executable=True),
    "with blank.py": FileEntry(b"a = 2\n"),
    "naïve.py": FileEntry(b"b = 2\n"),
    "end.py": FileEntry(b"still no newline"),
    "dos.py": FileEntry(b"a = 1\r\n\r\nb = 3\r\n"),
}
ARRANGED = BEFORE.replace(
    {
        "a/b.py": FileEntry(b"y = 0\n"),
        "with blank.py": FileEntry(b"a = 1\n"),
        "naïve.py": FileEntry(b"b = 1\n"),
        "end.py": FileEntry(b"no newline"),
        "dos.py": FileEntry(b"a = 1\r\n\r\nb = 2\r\n"),
    }
)


@pytest.mark.parametrize("context", [0, 1, 3])
@pytest.mark.parametrize(
    "setting",
    [
        "diff.noprefix=true",
        "diff.mnemonicPrefix=true",
        "core.quotePath=false",
        "diff.suppressBlankEmpty=true",
        "diff.renames=false",
    ],
)
def test_diffs_under_gits_own_settings_apply(tmp_path, setting, context):
    after = ARRANGED.replace(REARRANGED)
    diff = git_diff(tmp_path, ARRANGED, after, f"-U{context}", settings=[setting])
    assert apply_patch(ARRANGED, diff) == after
    assert apply_patch(after, reverse_patch(diff)) == ARRANGED
    assert parse_patch(parse_patch(diff, CAP).text(), CAP) == parse_patch(diff, CAP)


def test_a_swapped_diff_is_read_under_the_names_that_it_writes(tmp_path):
    after = ARRANGED.replace(REARRANGED)
    assert apply_patch(after, git_diff(tmp_path, ARRANGED, after, "-R")) == ARRANGED


def test_names_that_differ_in_a_prefix_of_git_are_one_file_and_equal_names_have_no_prefix():
    swap = MODIFY.replace("a/pkg", "i/pkg").replace("b/pkg", "w/pkg")
    assert parse_patch(swap, CAP).changed_paths == ("pkg/b.py",)
    bare = MODIFY.replace("a/pkg/b.py", "a/b.py").replace("b/pkg/b.py", "a/b.py")
    assert parse_patch(bare, CAP).changed_paths == ("a/b.py",)


def test_a_rename_without_prefixes_is_read_by_its_own_headers():
    diff = "diff --git a/x.py b/x.py\nsimilarity index 100%\nrename from a/x.py\nrename to b/x.py\n"
    assert parse_patch(diff, CAP).changed_paths == ("a/x.py", "b/x.py")


def test_other_words_for_a_missing_newline_are_read():
    diff = "diff --git a/e b/e\n--- a/e\n+++ b/e\n@@ -1 +1 @@\n-x\n{0}\n+y\n{0}\n"
    diff = diff.format("\\ Kein Zeilenumbruch am Dateiende.")
    assert apply_patch(entries({"e": "x"}), diff) == entries({"e": "y"})


# ---- a diff whose end was cut

FUNCTIONS = "def a():\n    return 1\n\n\n\ndef b():\n    return 2\n"


@pytest.mark.parametrize("cut", [str.rstrip, lambda diff: diff.rstrip() + "\n", lambda diff: diff[:-1]])
def test_blank_context_that_was_cut_at_the_end_is_read(cut):
    before = entries({"m.py": FUNCTIONS, "n.py": FUNCTIONS})
    after = entries(dict.fromkeys(before, FUNCTIONS.replace("return 1", "return 3")))
    diff = diff_trees(before, after)
    assert apply_patch(before, cut(diff)) == after
    first, second = (f"diff --git{part}" for part in diff.split("diff --git")[1:])
    assert apply_patch(before, f"{cut(first)}\n{cut(second)}") == after


def test_context_that_was_cut_and_is_not_blank_is_refused_with_the_line_and_the_remedy():
    before = entries({"m.py": FUNCTIONS.replace("\n\n\n\n", "\n#\n#\n#\n")})
    diff = diff_trees(before, entries({"m.py": before.text("m.py").replace("return 1", "return 3")}))
    with pytest.raises(PatchError, match=r"line 3 of the file is '#', and the hunk has ''. Write it with"):
        apply_patch(before, diff.partition(" #\n")[0])
    with pytest.raises(PatchError, match=r"line 9 of the diff: .*ends within a hunk.*0 more old and 1 more"):
        apply_patch(before, diff.replace("-1,5 +1,5", "-1,3 +1,4").partition(" #\n")[0] + " #\n")


# ---- where a hunk lands

BRANCHES = "def f(kind):\n" + "".join(f"    if kind == {n}:\n        return None\n" for n in range(5))
LETTERS = "a = 1\nb = 2\nc = 3\nd = 4\n"


def hunk_on(content, hunk):
    """The file after one hunk."""
    return apply_patch(
        entries({"m.py": content}), f"diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n{hunk}"
    ).text("m.py")


def test_a_hunk_without_context_changes_the_line_that_it_names():
    rows = BRANCHES.split("\n")
    assert hunk_on(BRANCHES, "@@ -5 +5 @@\n-        return None\n+        return 7\n") == "\n".join(
        [*rows[:4], "        return 7", *rows[5:]]
    )
    assert hunk_on(LETTERS, "@@ -2 +2 @@\n-b = 2\n+b = 9\n") == LETTERS.replace("2", "9")
    assert hunk_on(LETTERS, "@@ -3 +2,0 @@\n-c = 3\n") == LETTERS.replace("c = 3\n", "")


def test_an_insertion_without_context_goes_after_the_line_that_it_names():
    assert hunk_on(LETTERS, "@@ -2,0 +3 @@\n+new\n") == LETTERS.replace("b = 2\n", "b = 2\nnew\n")
    assert hunk_on(LETTERS, "@@ -0,0 +1 @@\n+new\n") == f"new\n{LETTERS}"
    assert hunk_on(LETTERS, "@@ -4,0 +5 @@\n+new\n") == f"{LETTERS}new\n"


@cases(
    {
        "another line of the same text": (
            "@@ -1,3 +1,3 @@\n         return None\n-    if kind == 1:\n+    if kind == 9:\n"
            "         return None\n",
            r"hunk 1 of 'm.py' .* says that its old text is at line 1, but this text is at line 3. ",
        ),
        "several of them": (
            "@@ -2 +2 @@\n-        return None\n+        return 7\n",
            "at line 2, but this text is at lines 3, 5, 7, …",
        ),
        "the second hunk": (
            "@@ -2 +2,2 @@\n-    if kind == 0:\n+    if not kind:\n+        #\n"
            "@@ -5 +6 @@\n-    if kind == 1:\n+    if kind == 7:\n",
            "hunk 2 of 'm.py' .* at line 5, but this text is at line 4",
        ),
        "beyond the end": ("@@ -12 +12 @@\n-x\n+y\n", "after the end of the file, which has 11 lines"),
        "text that is there, but not beyond the end": (
            "@@ -90 +90 @@\n-    if kind == 1:\n+y\n",
            "at line 90, but this text is at line 4",
        ),
        "an insertion beyond the end": ("@@ -12,0 +13 @@\n+y\n", "inserts after line 12, .* has 11 lines"),
        "trailing context that is missing, as for the end of a file": (
            "@@ -2,2 +2,2 @@\n         return None\n-    if kind == 4:\n+    if kind == 5:\n",
            "at line 2, but this text is at line 9",
        ),
    },
)
def test_a_hunk_that_would_land_elsewhere_is_refused_with_both_lines(diff, complaint):
    with pytest.raises(PatchError, match=complaint):
        hunk_on(BRANCHES, diff)


@cases(
    {
        "other line ends": ("@@ -1 +1 @@\n-a\n+c\n", "CRLF in the file, LF in the hunk"),
        "an insertion after a last line without a newline": (
            "@@ -2,0 +3 @@\n+c\n",
            "after a line that has no newline",
        ),
        "a marker within the file": (
            "@@ -1 +1 @@\n-a\r\n+c\n\\ No newline at end of file\n",
            "after a line that has no newline",
        ),
        "a marker for a line that has a newline": (
            "@@ -1 +1 @@\n-a\r\n\\ No newline at end of file\n+c\n",
            "CRLF in the file, no newline in the hunk",
        ),
        "no marker for the last line": ("@@ -2 +2 @@\n-b\n+c\n", "no newline in the file, LF in the hunk"),
    },
)
def test_line_ends_count(diff, complaint):
    with pytest.raises(PatchError, match=complaint):
        hunk_on("a\r\nb", diff)


# ---- refused diffs


def modification(name, other=None):
    return (
        f"diff --git a/{name} b/{other or name}\n--- a/{name}\n+++ b/{other or name}\n"
        "@@ -1 +1 @@\n-x = 1\n+x = 2\n"
    )


def addition(name, mode="100644"):
    return (
        f"diff --git a/{name} b/{name}\nnew file mode {mode}\n--- /dev/null\n+++ b/{name}\n"
        "@@ -0,0 +1 @@\n+x = 1\n"
    )


@cases(
    {
        "a path outside": (addition("../evil.py"), "plain relative path"),
        "a path outside, deeper": (addition("pkg/../../evil.py"), "plain relative path"),
        "an absolute path": (addition("/etc/evil.py"), "plain relative path"),
        "the repository's own folder": (addition(".git/hooks/pre-commit"), "plain relative path"),
        "the same in capitals": (addition("pkg/.GIT/config"), "plain relative path"),
        "a name like an option": (addition("pkg/-rf"), "like an option"),
        "a quoted newline": ('diff --git "a/x\\ny" "b/x\\ny"\nnew file mode 100644\n', "plain relative path"),
        "a quoted escape": (
            'diff --git "a/x\\033y" "b/x\\033y"\nnew file mode 100644\n',
            "control characters",
        ),
        "a name that is too long": (addition("x" * 300), "too long"),
        "a symbolic link": (addition("link", "120000"), "symbolic link"),
        "a submodule": (addition("module", "160000"), "submodule"),
        "a link by its index line": (
            MODIFY.replace("---", "index 1234567..89abcde 120000\n---", 1),
            "symbolic link",
        ),
        "a strange mode": (addition("suid", "104755"), "mode 104755"),
        "an escape in a mode": (addition("x", "\x1b[31m"), r"mode \\x1b\[31m is unknown"),
        "a mode change": (
            "diff --git a/pkg/b.py b/pkg/b.py\nold mode 100644\nnew mode 100755\n",
            "mode of a file",
        ),
        "a binary file": (
            "diff --git a/x b/x\nnew file mode 100644\nindex 0000000..1234567\n"
            "Binary files /dev/null and b/x differ\n",
            "binary",
        ),
        "a binary patch": (
            "diff --git a/x b/x\nnew file mode 100644\nindex 0000000..1234567\nGIT binary patch\nliteral 1\n",
            "binary",
        ),
        "a copy": (
            "diff --git a/pkg/b.py b/c.py\nsimilarity index 100%\ncopy from pkg/b.py\ncopy to c.py\n",
            "copies",
        ),
        "two sections for one file": (MODIFY + MODIFY, "two sections"),
        "a section under another name": (
            MODIFY.replace("+++ b/pkg/b.py", "+++ b/pkg/a.py"),
            "does not agree",
        ),
        "another name in the first line": (
            MODIFY.replace("diff --git a/pkg/b.py b/pkg/b.py", "diff --git a/pkg/a.py b/pkg/a.py"),
            "line 2 of the diff: the name 'a/pkg/b.py' does not agree",
        ),
        "a rename without saying so": (
            modification("pkg/b.py", "pkg/c.py"),
            "do not agree.*needs 'rename from'",
        ),
        "an addition without saying so": (
            addition("c.py").replace("new file mode 100644\n", ""),
            "does not agree.*needs 'new file mode'",
        ),
        "a deletion without saying so": (MODIFY.replace("+++ b/pkg/b.py", "+++ /dev/null"), "does not agree"),
        "an addition with old lines": (
            addition("c.py").replace("@@ -0,0 +1 @@\n", "@@ -1 +1 @@\n-y\n"),
            "has old lines",
        ),
        "prefixes of one's own": (
            MODIFY.replace("a/pkg", "old/pkg").replace("b/pkg", "new/pkg"),
            "do not agree.*--src-prefix=a/ --dst-prefix=b/",
        ),
        "a name that takes long to read": (
            f'diff --git "{"a" * 200_000}" "b"\nrename from a\nrename to b\n',
            "line 1 of the diff: the names in the 'diff --git' line are too long",
        ),
        "colours": (f"\x1b[1m{MODIFY}", "git diff --no-color"),
        "headers with carriage returns": (MODIFY.replace("\n", "\r\n"), "carriage return"),
        "words before the diff": (f"Here is the diff:\n{MODIFY}", "must begin with"),
        "a bare unified diff": (MODIFY.partition("\n")[2], "must begin with"),
        "a hunk cut short": (MODIFY.replace("+x = 2\n", ""), "ends within a hunk"),
        "more blanks cut than context has": (
            MODIFY.replace("@@ -1 +1 @@", "@@ -1,999999999 +1,999999999 @@"),
            "ends within a hunk",
        ),
        "a line before the first": (MODIFY.replace("@@ -1 +1 @@", "@@ -0 +0 @@"), "before line 1"),
        "a new line number that does not follow": (
            MODIFY.replace("@@ -1 +1 @@", "@@ -1 +3 @@"),
            "line 4 of the diff: the hunk says that its new text is at line 3; .* that is line 1",
        ),
        "lines beyond the count": (MODIFY + "+y = 1\n", "must begin with"),
        "a hunk that changes nothing": (MODIFY.replace("-x = 1\n+x = 2\n", " x = 1\n"), "changes nothing"),
        "a section that changes nothing": ("diff --git a/pkg/b.py b/pkg/b.py\n", "changes nothing"),
        "hunks out of order": (
            MODIFY.replace("@@ -1 +1 @@", "@@ -9 +9 @@") + "@@ -1 +1 @@\n-y\n+z\n",
            "out of order",
        ),
        "NUL bytes": (MODIFY.replace("x = 2", "x = \0"), "NUL"),
        "half characters": (MODIFY.replace("x = 2", "x = \ud83d"), "half a character"),
        "bytes that are no UTF-8 in a name": (MODIFY.replace("pkg/b.py", "pkg/\udcff.py"), "half a char"),
        "such bytes in a quoted name": (MODIFY.replace("a/pkg/b.py", '"a/pkg/\udcff.py"'), "not UTF-8"),
    },
)
def test_a_malformed_or_unsafe_diff_is_refused(diff, complaint):
    with pytest.raises(PatchError, match=complaint):
        parse_patch(diff, CAP)


@cases(
    {
        "a file that is not there": (modification("pkg/missing.py"), "does not exist"),
        "an addition of what exists": (addition("pkg/b.py"), "exists already"),
        "a file where a folder is": (addition("pkg"), "a file and a folder at once"),
        "a folder where a file is": (addition("pkg/b.py/c.py"), "a file and a folder at once"),
        "other content": (
            MODIFY.replace("-x = 1", "-x = 7"),
            "does not apply: hunk 1 of 'pkg/b.py' .* line 1 of the file is 'x = 1', and the hunk has 'x = 7'",
        ),
        "a deletion that leaves lines": (
            "diff --git a/pkg/a.py b/pkg/a.py\ndeleted file mode 100644\n--- a/pkg/a.py\n+++ /dev/null\n"
            "@@ -1,2 +0,0 @@\n-def one():\n-    return 1\n",
            "does not apply",
        ),
        "a deletion under another mode": (
            "diff --git a/pkg/b.py b/pkg/b.py\ndeleted file mode 100755\n--- a/pkg/b.py\n+++ /dev/null\n"
            "@@ -1 +0,0 @@\n-x = 1\n",
            "another mode",
        ),
        "a change without a change": (MODIFY.replace("+x = 2", "+x = 1"), "does not do what it claims"),
    },
)
def test_a_diff_that_does_not_fit_the_tree_is_refused(diff, complaint):
    with pytest.raises(PatchError, match=complaint):
        apply_patch(BEFORE, diff)


def test_size_is_capped_in_bytes():
    with pytest.raises(PatchError, match="at most 50 are allowed"):
        parse_patch(MODIFY, 50)


def test_the_number_of_files_is_capped():
    with pytest.raises(PatchError, match="more than 500 files"):
        parse_patch("".join(addition(f"f{number}.py") for number in range(501)), CAP)


def test_the_number_of_folders_is_capped():
    deep = [addition(f"{number}/{'d/' * 60}x.py") for number in range(17)]
    assert len(parse_patch("".join(deep[:16]), CAP).files) == 16
    with pytest.raises(PatchError, match="more than 1000 folders"):
        parse_patch("".join(deep), CAP)


def test_a_file_and_a_folder_may_change_places():
    before = entries({"x": "a\n"})
    swap = (
        "diff --git a/x b/x\ndeleted file mode 100644\n--- a/x\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"
        + addition("x/y.py")
    )
    assert apply_patch(before, swap) == entries({"x/y.py": "x = 1\n"})


# ---- comparing and reversing

LINES = st.lists(
    st.sampled_from(
        [
            "a",
            "b",
            "",
            "\r",
            "-- x",
            "++ y",
            "diff --git a/x b/x",
            "@@ -1 +1 @@",
            "\\ No newline at end of file",
        ]
    ),
    max_size=8,
)
TEXTS = st.builds(lambda lines, end: "\n".join(lines) + end, LINES, st.sampled_from(["", "\n"]))
TREES = st.dictionaries(
    st.sampled_from(["a.py", "pkg/b.py", "pkg/with blank", "é"]),
    st.builds(FileEntry, TEXTS.map(str.encode), st.booleans()),
).map(Tree)


@settings(max_examples=60, deadline=None)
@given(before=TREES, after=TREES)
def test_a_diff_between_trees_takes_one_to_the_other_and_its_reverse_back(before, after):
    kept = {
        path: FileEntry(entry.content, before[path].executable) if path in before else entry
        for path, entry in after.items()
    }
    after = Tree(kept)  # executable bits of files that both have are not part of a diff
    diff = diff_trees(before, after)
    assert (diff == "") is (before == after)
    assert diff.endswith("\n") or not diff
    assert apply_patch(before, diff) == after
    assert apply_patch(after, reverse_patch(diff)) == before


def test_a_reversed_diff_shows_removed_lines_first():
    assert reverse_patch(MODIFY).endswith("@@ -1,1 +1,1 @@\n-x = 2\n+x = 1\n")


def test_a_change_that_text_cannot_hold_is_named():
    with pytest.raises(PatchError, match="binary"):
        diff_trees(BEFORE, BEFORE.replace({"data": FileEntry(b"\0")}))


def test_a_diff_carries_bytes_of_any_encoding():
    before, after = (BEFORE.replace({"data": FileEntry(word)}) for word in (b"caf\xe9\n", b"th\xe9\r"))
    diff = diff_trees(before, after)
    assert diff_bytes(diff).count(b"\n-caf\xe9\n+th\xe9\r\n") == 1
    assert diff_text(diff_bytes(diff)) == diff and "\n-caf\ufffd\n" in shown_diff(diff)
    assert apply_patch(before, diff) == after and apply_patch(after, reverse_patch(diff)) == before


# ---- paths


@pytest.mark.parametrize(
    "path",
    ["tests/test_a.py", "pkg/tests/data.json", "test_a.py", "pkg/a_test.py", "tests.py", "conftest.py"],
)
def test_tests_are_known_by_their_paths(path):
    assert is_test_path(path) and is_protected_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "pkg/a.py",
        "pkg/testing.py",
        "latest/contest.py",
        "pkg/protest_x.py",
        "docs/testing.md",
        "pkg/py.typed",
        "src/pkg/json.py",
    ],
)
def test_code_is_not_protected(path):
    assert not is_test_path(path) and not is_protected_path(path)


@pytest.mark.parametrize(
    "path",
    [
        *[
            "pytest.ini",
            "tox.ini",
            "setup.cfg",
            "pyproject.toml",
            "sub/pyproject.toml",
            "pkg/conftest.py",
            "CONFTEST.py",
        ],
        *[
            "sitecustomize.py",
            "src/usercustomize.py",
            "x.pth",
            "evil.dist-info/entry_points.txt",
            "evil.egg-info/entry_points.txt",
        ],
        *[
            "pytest.py",
            "src/pytest/__init__.py",
            "_pytest/main.py",
            "json.py",
            "lib/random/__init__.py",
            "pkg/fast.so",
            ".gitignore",
            ".gitattributes",
        ],
    ],
)
def test_files_that_steer_a_test_run_are_protected(path):
    assert is_protected_path(path)


def test_a_module_of_the_repositorys_own_shadows_nothing():
    original = entries({"src/packaging/__init__.py": "", "tokenize.py": ""})
    assert not is_protected_path("src/packaging/tags.py", original)
    assert not is_protected_path("tokenize.py", original)
    assert is_protected_path("random.py", original)


# ---- git that is killed


def killed_git(folder, times):
    """A PATH whose git is killed so many times, with half of its work done, and then is the real git."""
    folder.mkdir()
    (folder / "left").write_text("x" * times)
    script = f"""#!/bin/bash
left=$(cat {folder}/left)
[ -z "$left" ] && exec {shutil.which("git")} "$@"
printf %s "${{left#x}}" > {folder}/left
{shutil.which("git")} "$@" > /dev/null
kill -9 $$
"""
    (folder / "git").write_text(script)
    (folder / "git").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_git_is_asked_again_if_it_is_killed(tmp_path, monkeypatch):
    after = BEFORE.replace({"pkg/b.py": FileEntry(b"x = 2\n")})
    monkeypatch.setenv("PATH", killed_git(tmp_path / "bin", 2))
    assert diff_trees(BEFORE, after) == MODIFY


def test_trees_for_which_git_is_killed_repeatedly_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", killed_git(tmp_path / "bin", 9))
    with pytest.raises(PatchError, match="git was killed 3 times"):
        diff_trees(BEFORE, BEFORE.replace({"pkg/b.py": FileEntry(b"x = 2\n")}))
