import io
import tarfile

import pytest

from selfplay.errors import PatchError, TreeError
from selfplay.source.trees import FileEntry, Tree, ignore_rules, is_safe_path


def tree(**files: str) -> Tree:
    return Tree({name.replace("__", "/"): FileEntry(text.encode()) for name, text in files.items()})


def test_equal_trees_have_equal_digests_and_equal_archives():
    one = Tree({"a.py": FileEntry(b"1"), "b/c.py": FileEntry(b"2", True)})
    two = Tree({"b/c.py": FileEntry(b"2", True), "a.py": FileEntry(b"1")})
    assert one == two
    assert one.digest == two.digest
    assert one.to_tar() == two.to_tar()


def test_the_digest_sees_content_path_and_executable_bit():
    base = Tree({"a": FileEntry(b"x")})
    others = [Tree({"a": FileEntry(b"y")}), Tree({"b": FileEntry(b"x")}), Tree({"a": FileEntry(b"x", True)})]
    assert len({base.digest, *(other.digest for other in others)}) == 4


def test_an_archive_gives_the_tree_back():
    original = Tree({"a.py": FileEntry(b"\x00\xff"), "d/run.sh": FileEntry(b"#!", True)})
    assert Tree.from_tar(original.to_tar()) == original


def test_links_devices_and_unsafe_names_in_an_archive_are_left_out():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in [
            ("../out", tarfile.REGTYPE),
            ("/abs", tarfile.REGTYPE),
            ("link", tarfile.SYMTYPE),
            (".git/config", tarfile.REGTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            tar.addfile(info)
        good = tarfile.TarInfo("good")
        good.size = 2
        tar.addfile(good, io.BytesIO(b"ok"))
    assert list(Tree.from_tar(buffer.getvalue())) == ["good"]


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../b", "a//b", ".git/config", "a/.GIT/x", "a\\b", "a\0", "a\nb", "./a"]
)
def test_unsafe_paths_are_refused(path: str):
    assert not is_safe_path(path)
    with pytest.raises(TreeError, match="unsafe path"):
        Tree({path: FileEntry(b"")})


@pytest.mark.parametrize("path", ["x" * 256, "é" * 128, "a/" * 64 + "a", ("x" * 250 + "/") * 16 + "x"])
def test_a_path_that_linux_does_not_take_is_refused(path: str):
    assert not is_safe_path(path)
    with pytest.raises(TreeError, match="unsafe path"):
        Tree({path: FileEntry(b"")})


@pytest.mark.parametrize("path", ["x" * 255, "é" * 127, "a/" * 63 + "a", "\udcff" * 255])
def test_the_longest_names_and_the_deepest_path_can_be_written(path: str, tmp_path):
    Tree({path: FileEntry(b"x")}).write_to(tmp_path)
    assert Tree.from_folder(tmp_path) == Tree({path: FileEntry(b"x")})


@pytest.mark.parametrize(
    "paths", [("a", "a/b"), ("a/b/c/d", "a/b"), ("a", "a.py", "a/b/c"), ("a-", "a/x", "a")]
)
def test_no_tree_holds_a_path_as_file_and_as_folder(paths):
    with pytest.raises(TreeError, match="a file and a folder at once"):
        Tree({path: FileEntry(b"") for path in paths})
    with pytest.raises(PatchError):  # whoever wrote the paths is at fault, never the machine
        Tree().replace({path: FileEntry(b"") for path in paths})


def test_names_that_differ_in_case_or_unicode_form_alone_stand_side_by_side(tmp_path):
    both = Tree({name: FileEntry(name.encode()) for name in ("A", "a", "\u00e9", "e\u0301")})
    both.write_to(tmp_path)
    assert Tree.from_folder(tmp_path) == both


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ("a.py", "a.py/x.py", ["a.py"]),
        ("d/a.py d/b.py", "d", ["d/a.py"]),
        ("d/e/a.py", "d/e", ["d/e/a.py"]),
        ("a.py", "a.py/x/y.py a.py/z.py", ["a.py"]),
    ],
)
def test_a_restored_path_takes_the_place_of_what_stands_in_its_way(before: str, after: str, paths):
    original = Tree({path: FileEntry(b"original") for path in before.split()})
    changed = Tree({path: FileEntry(b"changed") for path in (*after.split(), "other")})
    restored = changed.restore(original, paths)
    assert {path: original.files[path] for path in paths}.items() <= restored.files.items()
    assert restored.keys() == {*paths, "other"}


def test_restoring_a_path_that_the_original_lacks_removes_it():
    original = tree(a="1")
    changed = tree(a="2", new="3")
    assert changed.restore(original, ["a", "new"]) == original


def test_changed_paths_name_additions_deletions_and_edits():
    assert tree(same="1", gone="1", edited="1").changed_paths(tree(same="1", edited="2", added="1")) == [
        "added",
        "edited",
        "gone",
    ]


def test_reading_a_folder_skips_git_caches_and_links(tmp_path):
    (tmp_path / "pkg" / "__pycache__").mkdir(parents=True)
    (tmp_path / "pkg" / "a.py").write_text("x")
    (tmp_path / "pkg" / "__pycache__" / "a.pyc").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    assert list(Tree.from_folder(tmp_path)) == ["pkg/a.py"]


def test_nested_gitignore_files_apply_below_their_folder():
    rules = ignore_rules(
        Tree(
            {
                ".gitignore": FileEntry(b"*.log\n!keep.log\n"),
                "sub/.gitignore": FileEntry(b"build/\n/top.txt\n"),
            }
        )
    )
    ignored = [
        p
        for p in [
            "x.log",
            "keep.log",
            "sub/build/o",
            "sub/deep/build/o",
            "build/o",
            "sub/top.txt",
            "sub/deep/top.txt",
        ]
        if rules.match_file(p)
    ]
    assert ignored == ["x.log", "sub/build/o", "sub/deep/build/o", "sub/top.txt"]
