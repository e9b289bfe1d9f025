"""Which paths of a bug are reverted together."""

from selfplay.source.diffs import FilePatch
from selfplay.verdicts.reverts import revert_units


def sections(**renames: str) -> list[FilePatch]:
    return [FilePatch(new, old, new, "rename") for old, new in renames.items()]


def test_each_path_is_reverted_alone():
    assert revert_units([], ["b.py", "a.py"]) == [("a.py", ("a.py",)), ("b.py", ("b.py",))]


def test_both_paths_of_a_rename_are_one_unit_while_both_differ():
    rename = sections(a="b")
    assert revert_units(rename, ["a", "b", "c"]) == [("b", ("a", "b")), ("c", ("c",))]
    assert revert_units(rename, ["b"]) == [("b", ("b",))]


def test_a_file_and_the_files_of_a_folder_of_its_name_are_one_unit():
    changed = ["w.py", "w.py/x.py", "w.py/y/z.py", "w.py-", "v.py"]
    assert revert_units([], changed) == [
        ("v.py", ("v.py",)),
        ("w.py", ("w.py", "w.py/x.py", "w.py/y/z.py")),
        ("w.py-", ("w.py-",)),
    ]


def test_a_rename_into_a_folder_of_the_old_name_is_one_unit_with_all_that_stands_there():
    files = [FilePatch("a/b", "a", "a/b", "rename"), FilePatch("c", "d/e", "c", "rename")]
    assert revert_units(files, ["a", "a/b", "a/n", "c", "d", "d/e"]) == [
        ("a/b", ("a", "a/b", "a/n")),
        ("c", ("c", "d", "d/e")),
    ]
