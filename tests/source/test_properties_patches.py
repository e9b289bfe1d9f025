"""Properties of all diffs: between trees, by real git, reversed, rendered, and corrupted."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from hostile_texts import LINES, NAMES, changes, contents
from selfplay.errors import PatchError, TreeError
from selfplay.source.apply import apply_patch, diff_trees
from selfplay.source.diffs import parse_patch, path_problem, reverse_patch
from selfplay.source.hunks import Hunk
from selfplay.source.trees import FileEntry, Tree, is_safe_path

CAP = 1 << 24
NO_NEWLINE = "\\ No newline at end of file"


def tree_of(**files: str) -> Tree:
    return Tree({name: FileEntry(text.encode()) for name, text in files.items()})


# git shows the first line as the heading of the hunk, cut after 80 bytes.
INDENTED = "x" + "é" * 60 + "\n" + " \n" * 8


@given(change=changes())
@example(change=(tree_of(a=INDENTED), tree_of(a=INDENTED + "y\n")))
def test_a_diff_between_trees_gives_the_tree_and_its_reverse_takes_it_back(change: tuple[Tree, Tree]) -> None:
    before, after = change
    diff = diff_trees(before, after)
    assert (diff == "") is (before == after)
    assert parse_patch(diff, CAP).changed_paths == tuple(before.changed_paths(after))
    assert apply_patch(before, diff) == after
    assert apply_patch(after, reverse_patch(diff)) == before
    # git also searches near the line that a hunk names; this check does not.
    assert apply_exactly(before, diff) == after
    assert apply_exactly(after, reverse_patch(diff)) == before


def apply_exactly(tree: Tree, text: str) -> Tree:
    """Apply each hunk at the line that it names, where its old lines must be; without git."""
    changed: dict[str, FileEntry | None] = {}
    for file in parse_patch(text, CAP).files:
        rows = split_lines(tree, file.old_path)
        for hunk in reversed(file.hunks):
            sides = hunk_sides(hunk)
            at = hunk.old_start - (1 if hunk.old_count else 0)
            assert rows[at : at + hunk.old_count] == sides[0]
            rows[at : at + hunk.old_count] = sides[1]
        executable = file.executable if file.old_path is None else tree[file.old_path].executable
        changed |= dict.fromkeys(file.paths)
        if file.new_path is not None:
            changed[file.new_path] = FileEntry(b"".join(rows), executable)
    return tree.replace(changed)


def split_lines(tree: Tree, path: str | None) -> list[bytes]:
    """The lines of a file with their newlines, the last one possibly without. path: None for no file."""
    content = b"" if path is None else tree[path].content
    return re.findall(rb"[^\n]*\n|[^\n]+", content)


def hunk_sides(hunk: Hunk) -> tuple[list[bytes], list[bytes]]:
    """The old and the new lines of a hunk."""
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for line, following in itertools.zip_longest(hunk.lines, hunk.lines[1:]):
        content = line[1:].encode() + (b"" if following == NO_NEWLINE else b"\n")
        for mark, side in zip("-+", sides, strict=True):
            if line[0] in (" ", mark):
                side.append(content)
    return sides


@given(change=changes())
def test_rendering_and_reversing_twice_change_nothing_that_was_read(change: tuple[Tree, Tree]) -> None:
    patch = parse_patch(diff_trees(*change), CAP)
    text = patch.text()
    assert parse_patch(text, CAP) == patch
    assert parse_patch(text, CAP).text() == text
    assert reverse_patch(reverse_patch(text)) == text
    # Removed lines come first, as in git's diffs.
    assert not re.search(r"^\+.*\n(\\.*\n)?-", hunks_of(reverse_patch(text)), re.MULTILINE)


def hunks_of(text: str) -> str:
    return "".join(hunk.text() for file in parse_patch(text, CAP).files for hunk in file.hunks)


@given(
    name=st.text(st.sampled_from("a. -/\\\"'\t\n\r\0\x7f\x85\ud800\udcffé b"), min_size=1, max_size=12)
    | st.text(max_size=300),
    text=contents(),
)
@example(name="a/-b", text="x\n")
@example(name='a"b', text="x\n")
@example(name="a\x85b", text="x\n")
def test_a_change_under_any_name_is_refused_or_applies(name: str, text: str) -> None:
    if not is_safe_path(name):
        with pytest.raises(TreeError, match="unsafe path"):
            Tree({name: FileEntry(b"")})
        return
    before, after = Tree(), Tree({name: FileEntry(text.encode())})
    if any(part.startswith("-") for part in name.split("/")) or any(
        unicodedata.category(c) in ("Cc", "Cs") or c == '"' for c in name
    ):
        assert path_problem(name)
    if path_problem(name):
        with pytest.raises(PatchError):
            diff_trees(before, after)
    else:
        assert apply_patch(before, diff_trees(before, after)) == after


# ---- beside real git


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    folder = tmp_path_factory.mktemp("repository")
    variables = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "LC_ALL": "C",
    }

    def run(*arguments: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["git", *arguments], cwd=folder, env=variables, input=stdin, capture_output=True, check=check
        )

    run("init", "-q", "--bare", ".")
    return run


def commits(*trees: Tree) -> bytes:
    """The trees as branches t0, t1, … for `git fast-import`."""
    stream = b""
    for number, tree in enumerate(trees):
        stream += (
            f"commit refs/heads/t{number}\ncommitter t <t@localhost> 0 +0000\ndata 0\ndeleteall\n".encode()
        )
        for path, entry in tree.items():
            mode = "100755" if entry.executable else "100644"
            header = f"M {mode} inline {path}\ndata {len(entry.content)}\n"
            stream += header.encode() + entry.content + b"\n"
    return stream


# As diff.noprefix and diff.mnemonicPrefix write them, and swapped.
PREFIXES = (
    (),
    ("--no-prefix",),
    ("--src-prefix=i/", "--dst-prefix=w/"),
    ("--src-prefix=c/", "--dst-prefix=i/"),
    ("--src-prefix=o/", "--dst-prefix=w/"),
    ("-R",),
)


@settings(max_examples=settings.default.max_examples // 2)  # several processes each
@given(
    change=changes(),
    options=st.sets(
        st.sampled_from(
            ["-M", "--minimal", "--full-index", "--patience", "--no-renames", "--inter-hunk-context=2"]
        )
    ),
    context=st.sampled_from(["-U0", "-U1", "-U3"]),
    prefixes=st.sampled_from(PREFIXES),
    empty=st.booleans(),
)
def test_diffs_of_real_git_are_read_and_give_the_same_tree(
    git,
    change: tuple[Tree, Tree],
    options: set[str],
    context: str,
    prefixes: tuple[str, ...],
    empty: bool,
) -> None:
    before, after = change
    assume(before != after)
    git("fast-import", "--quiet", "--force", stdin=commits(before, after))
    swapped = ("t1", "t0") if "-R" in prefixes else ("t0", "t1")
    setting = f"diff.suppressBlankEmpty={str(empty).lower()}"
    printed = git("-c", setting, "diff", "--text", context, *prefixes, *sorted(options), *swapped).stdout
    diff = printed.decode("utf-8", "replace")
    assume("\nold mode " not in diff)  # a move to a file of another mode, which is refused on purpose
    assert apply_patch(before, diff) == after
    assert apply_patch(after, reverse_patch(diff)) == before
    assert applied_by_git(before, diff_trees(before, after)) == after


MUTANT_LINES = (
    *LINES,
    "@@ -1 +1 @@",
    "@@ -0,0 +1 @@",
    "@@ -1,2 +1,1 @@ heading",
    "@@ -\u0661 +1 @@",
    NO_NEWLINE,
    "--- /dev/null",
    "+++ /dev/null",
    "+++ b/../escape",
    "old mode 100644",
    "new mode 100755",
    "deleted file mode 100644",
    "new file mode 120000",
    "index 0000..1111 120000",
    "similarity index 100%",
    "rename to b/b",
    "copy from a.py",
    "\\ Kein Zeilenumbruch am Dateiende.",
    "diff --git b/b b/b",
    "diff --git a/b/b b/b/b",
    "-a",
    "+a",
    " a",
)


@st.composite
def mutated(draw: st.DrawFn, diff: str) -> str:
    """`diff` with one to three corruptions: lines removed, doubled, moved, added or changed."""
    rows = diff.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(rows) - 1))
        row = rows[at]
        match draw(
            st.sampled_from(
                [
                    "drop",
                    "double",
                    "move",
                    "insert",
                    "mark",
                    "digit",
                    "return",
                    "name",
                    "cut",
                    "shift",
                    "hunk twice",
                    "section twice",
                ]
            )
        ):
            case "drop" if len(rows) > 1:
                rows.pop(at)
            case "double":
                rows.insert(at, row)
            case "move":
                rows.insert(draw(st.integers(0, len(rows) - 1)), rows.pop(at))
            case "insert":
                rows.insert(at, draw(st.sampled_from(MUTANT_LINES)))
            case "mark" if row:
                rows[at] = draw(st.sampled_from([" ", "+", "-", "\\", "@", ""])) + row[1:]
            case "digit":
                digits = [index for index, character in enumerate(row) if character.isdigit()]
                if digits:
                    index = draw(st.sampled_from(digits))
                    rows[at] = row[:index] + draw(st.sampled_from("0123459\u0663")) + row[index + 1 :]
            case "return":
                rows[at] = row.removesuffix("\r") if row.endswith("\r") else row + "\r"
            case "name":
                rows[at] = row.replace(
                    draw(st.sampled_from(NAMES)),
                    draw(st.sampled_from([*NAMES, "../x", "/x", ".git/config", "-x", "x/../y"])),
                )
            case "shift":
                by = draw(st.integers(-3, 9))
                parts = re.split(r"(?<=[-+])(\d+)(?=[, ])", row, maxsplit=2)
                rows[at] = "".join(
                    str(max(int(part) + by, 0)) if part.isdecimal() else part for part in parts
                )
            case "cut":
                rows[at] = row[: draw(st.integers(0, len(row)))]
            case "section twice":
                first = next(
                    (number for number in range(at, -1, -1) if rows[number].startswith("diff --git ")), 0
                )
                last = next(
                    (number for number in range(at + 1, len(rows)) if rows[number].startswith("diff --git ")),
                    len(rows),
                )
                rows[last:last] = rows[first:last]
            case "hunk twice":
                first = next((number for number in range(at, -1, -1) if rows[number].startswith("@@")), None)
                if first is not None:
                    rows[at:at] = rows[first:at]
    return "\n".join(rows)


def check_claims(before: Tree, after: Tree, text: str) -> None:
    """The result is what the text says, file by file and line by line, counted without git."""
    patch = parse_patch(text, CAP)
    assert before.changed_paths(after) == list(patch.changed_paths)
    for file in patch.files:
        expected = Counter(split_lines(before, file.old_path))
        for hunk in file.hunks:
            gone, come = hunk_sides(hunk)
            expected.subtract(gone)
            expected.update(come)
        assert min(expected.values(), default=0) >= 0
        assert +expected == +Counter(split_lines(after, file.new_path))
        if file.old_path is not None and file.new_path is not None:
            assert before[file.old_path].executable is after[file.new_path].executable
        elif file.new_path is not None:
            assert after[file.new_path].executable is file.executable


def applied_by_git(tree: Tree, text: str) -> Tree | None:
    """The tree after `git apply` under the real file names, None if git refuses."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree.write_to(folder)
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": name,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": str(folder.parent),
        }
        done = subprocess.run(
            ["git", "apply", "--whitespace=nowarn", "--unidiff-zero", "-"],
            cwd=folder,
            env=variables,
            input=text.encode(),
            capture_output=True,
            check=False,
        )
        return None if done.returncode else Tree.from_folder(folder)


def check_corrupted(before: Tree, text: str) -> None:
    try:
        result = apply_patch(before, text)
    except PatchError:
        event("refused")
        return
    event("applies")
    check_claims(before, result, text)
    assert apply_exactly(before, text) == result
    if text.strip():
        # Our reader accepts a diff without a last newline or last blanks; git does not.
        assert applied_by_git(before, text.removesuffix("\n") + "\n") in (None, result)
        assert applied_by_git(before, parse_patch(text, CAP).text()) == result


@settings(max_examples=2 * settings.default.max_examples)  # most are refused, which is fast
@given(change=changes(max_files=2), data=st.data())
def test_a_corrupted_diff_is_refused_or_does_what_it_says_and_what_git_does(
    change: tuple[Tree, Tree], data: st.DataObject
) -> None:
    before, after = change
    assume(before != after)
    text = data.draw(mutated(diff_trees(before, after)), label="diff")
    check_corrupted(before, text)


@pytest.mark.parametrize(
    "hunk",
    ["@@ -\u0661 +1 @@\n-x\n+y\n", "@@ -1 +1 @@\n-x\n+x\n"],
    ids=["digits that git does not read", "no change"],
)
def test_a_hunk_that_git_would_not_read_or_that_does_nothing_is_refused(hunk: str) -> None:
    with pytest.raises(PatchError):
        apply_patch(tree_of(a="x\n"), f"diff --git a/a b/a\n--- a/a\n+++ b/a\n{hunk}")


ROWS = st.sampled_from(
    [
        *MUTANT_LINES,
        *(f"{a} {prefix}{name}" for a, prefix in [("---", "a/"), ("+++", "b/")] for name in NAMES[:3]),
    ]
)


@given(rows=st.lists(ROWS, max_size=12))
def test_rows_of_diffs_in_any_order_are_refused_or_read_as_safe_paths(rows: list[str]) -> None:
    text = "\n".join(rows)
    try:
        patch = parse_patch(text, CAP)
    except PatchError:
        return
    assert not any(path_problem(path) for path in patch.changed_paths)
    assert parse_patch(patch.text(), CAP) == patch


@given(text=st.text(max_size=200))
def test_any_text_is_a_patch_or_refused(text: str) -> None:
    try:
        patch = parse_patch(text, CAP)
    except PatchError:
        return
    assert patch.is_empty is (not text.strip())
