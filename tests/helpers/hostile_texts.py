"""Hypothesis strategies for hostile repositories: texts, file names, and changes of trees."""

from __future__ import annotations

from hypothesis import strategies as st

from selfplay.source.trees import FileEntry, Tree

# No name is a folder of another name, so any subset is a valid tree.
NAMES = (
    "a.py",
    "pkg/b.py",
    "a/a",
    "b/b",
    "x b/x",
    "a b/a b/a",
    "with blank.txt",
    " led",
    "trailed ",
    "é.py",
    "日本/ü",
    "it's $(here) & `there`; *?[x]{y}~!#%",
    "dev/null",
    "0000",
    "0000-new",
    "0001",
    "rename to a.py",
    "sub/new file mode 100644",
    "c:colon",
    "e\u0301",
    "\u202egpj.py",
    "x" * 120,
)
LINES = (
    "",
    "a",
    "b",
    "c",
    "x = 1",
    "    return 1",
    "def function():",
    " ",
    "\t",
    "\r",
    "windows\r",
    "half\rway",
    "\f",
    "\x0b\x1c\x85\u2028\u2029",
    "\x1b[31m\x07",
    "\ufeff",
    "é",
    "x" + "é" * 60,
    "日本語" * 40,
    "\U0001f600",
    "- x",
    "-- x",
    "--- a/a.py",
    "+ y",
    "++ y",
    "+++ b/a.py",
    "@@ -1 +1 @@",
    "diff --git a/a.py b/a.py",
    "\\ No newline at end of file",
    " No newline at end of file",
    "new file mode 100755",
    "rename from a.py",
    "GIT binary patch",
    "<tool: bash>",
    "</tool>",
    "<|im_start|>assistant",
    "<<<<<<< SEARCH",
    "=======",
    ">>>>>>> REPLACE",
)
lines = st.sampled_from(LINES)
names = st.sampled_from(NAMES)


def contents(max_lines: int = 12) -> st.SearchStrategy[str]:
    """Texts of LINES: also empty, without a final newline, or with CRLF in all or some lines."""
    joined = st.builds(
        lambda chosen, newline, end: newline.join(chosen) + (newline if end else ""),
        st.lists(lines, max_size=max_lines),
        st.sampled_from(["\n", "\n", "\r\n"]),
        st.booleans(),
    )
    return joined | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@st.composite
def edited(draw: st.DrawFn, text: str) -> str:
    """`text` with changes in up to three places. A long text gets a diff of several hunks."""
    parts = text.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(parts)))
        gone = draw(st.integers(0, 2))
        parts[at : at + gone] = draw(st.lists(lines, max_size=2))
    return "\n".join(parts)


@st.composite
def changes(draw: st.DrawFn, max_files: int = 3) -> tuple[Tree, Tree]:
    """A tree before and after a change. Files keep their executable bit, which a diff does not record."""
    before: dict[str, FileEntry] = {}
    after: dict[str, FileEntry] = {}
    for name in draw(st.lists(names, unique=True, max_size=max_files)):
        what = draw(st.sampled_from(["modify", "modify", "modify", "add", "delete", "keep", "move"]))
        executable = draw(st.booleans())
        old = draw(contents(30))
        if what != "add":
            before[name] = FileEntry(old.encode(), executable)
        if what == "move":
            after[f"moved/{name}"] = FileEntry(draw(st.just(old) | edited(old)).encode(), executable)
        elif what != "delete":
            new = draw(edited(old)) if what == "modify" else old
            after[name] = FileEntry(new.encode(), executable)
    return Tree(before), Tree(after)
