import pytest

from selfplay.errors import ArtifactError, UsageError
from selfplay.verdicts.artifact import FILE_NAMES, MAX_FILE_BYTES, Artifact

FILES = {
    "bug_inject.diff": "bug\n",
    "test_weaken.diff": "weaken\n",
    "test_files.txt": "tests/test_a.py\n./tests/test_b.py\n\ntests/test_a.py\n",
    "test_script.sh": "pytest -rA\n",
    "test_parser.py": "print('{}')\n",
}


def test_an_artifact_survives_writing_and_reading(tmp_path):
    artifact = Artifact.from_files(FILES)
    artifact.write(tmp_path / "artifact")
    assert Artifact.read(tmp_path / "artifact") == artifact
    assert {path.name for path in (tmp_path / "artifact").iterdir()} == set(FILE_NAMES)


def test_carriage_returns_survive_writing_and_reading(tmp_path):
    artifact = Artifact.from_files(FILES | {"bug_inject.diff": "+a\r\n"})
    artifact.write(tmp_path)
    assert Artifact.read(tmp_path).bug_inject == "+a\r\n"


def test_test_files_are_distinct_and_plain():
    assert Artifact.from_files(FILES).test_files == ("tests/test_a.py", "tests/test_b.py")


def test_only_a_line_feed_ends_the_name_of_a_test_file():
    names = "tests/a\x0cb.py\r\ntests/c\x1cd\u2028e.py\n  tests/f\x0c\n"
    found = Artifact.from_files(FILES | {"test_files.txt": names}).test_files
    assert found == ("tests/a\x0cb.py", "tests/c\x1cd\u2028e.py", "tests/f\x0c")


def test_the_prompts_names_are_aliases():
    renamed = dict(FILES)
    renamed["bug_patch.diff"] = renamed.pop("bug_inject.diff")
    renamed["test_patch.diff"] = renamed.pop("test_weaken.diff")
    renamed["parse_test_output.py"] = renamed.pop("test_parser.py")
    assert Artifact.from_files(renamed) == Artifact.from_files(FILES)


def test_a_file_under_both_its_names_is_refused():
    with pytest.raises(ArtifactError, match="twice"):
        Artifact.from_files(FILES | {"bug_patch.diff": "other"})


def test_every_missing_file_is_named():
    with pytest.raises(ArtifactError, match=r"lacks test_weaken\.diff, test_script\.sh"):
        Artifact.from_files(
            {name: text for name, text in FILES.items() if name not in ("test_weaken.diff", "test_script.sh")}
        )


def test_other_files_are_left_alone():
    assert Artifact.from_files(FILES | {"notes.md": "x"}) == Artifact.from_files(FILES)


@pytest.mark.parametrize("name", ["test_script.sh", "test_parser.py"])
def test_an_empty_script_or_parser_is_refused(name):
    with pytest.raises(ArtifactError, match=f"{name} is empty"):
        Artifact.from_files(FILES | {name: " \n"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("\udcff", "not UTF-8"), ("a\0b", "NUL"), ("x" * (MAX_FILE_BYTES + 1), "at most")],
    ids=["bytes", "nul", "huge"],
)
def test_invalid_text_and_too_large_text_is_refused(text, complaint):
    with pytest.raises(ArtifactError, match=complaint):
        Artifact.from_files(FILES | {"test_script.sh": text})


def test_a_diff_may_carry_bytes_that_are_no_utf_8_and_keeps_them(tmp_path):
    artifact = Artifact.from_files(FILES | {"bug_inject.diff": "caf\udce9\n"})
    artifact.write(tmp_path)
    assert (tmp_path / "bug_inject.diff").read_bytes() == b"caf\xe9\n"
    assert Artifact.read(tmp_path) == artifact and Artifact.read(tmp_path).digest == artifact.digest
    with pytest.raises(ArtifactError, match="not UTF-8"):
        Artifact.from_files(FILES | {"bug_inject.diff": "\ud83d\n"})


def test_the_digest_depends_on_the_content():
    digest = Artifact.from_files(FILES).digest
    assert digest == Artifact.from_files(dict(reversed(FILES.items()))).digest
    assert (
        digest
        != Artifact.from_files(FILES | {"bug_inject.diff": "bug\nw", "test_weaken.diff": "eaken\n"}).digest
    )


def test_a_link_in_the_folder_is_not_followed(tmp_path):
    Artifact.from_files(FILES).write(tmp_path)
    (tmp_path / "test_script.sh").unlink()
    (tmp_path / "test_script.sh").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match=r"lacks test_script\.sh"):
        Artifact.read(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        Artifact.read(tmp_path / "nowhere")
