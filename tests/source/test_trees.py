import io
import tarfile

import pytest

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
    with pytest.raises(ValueError, match="unsafe path"):
        Tree({path: FileEntry(b"")})


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
