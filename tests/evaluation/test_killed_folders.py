"""A kill while an evaluation's folder is made or written: the evaluation goes on in that folder."""

from pathlib import Path

import pytest

from selfplay.config import build_config
from selfplay.evaluation.folder import Folder, entries_of, identity_of
from selfplay.evaluation.tasks import Task
from selfplay.viewing.summary import evaluation_folders

TASK = Task("one", "pypi:toolz==1.0.0", "patch", "test_patch", ("a::b",), ("a::c",), {"bug_inject.diff": "x"})
IDENTITY = identity_of(build_config({}), {"model": "p", "weights": 0}, [TASK])


@pytest.mark.parametrize(
    "files",
    [{}, {"evaluation.partial": '{"pol'}, {"results.jsonl": ""}, {"results.jsonl": '{"instance_id": "on'}],
    ids=["nothing in it", "half an identity", "no result", "half a result"],
)
def test_a_half_made_folder_is_continued(tmp_path: Path, files: dict[str, str]) -> None:
    folder = Folder(tmp_path / "evaluations" / "u0000")
    folder.path.mkdir(parents=True)
    for name, text in files.items():
        (folder.path / name).write_text(text)
    assert evaluation_folders(tmp_path) == []
    folder.begin(IDENTITY)
    assert list(entries_of(folder)) == ["one"]
    assert folder.results() == []
    assert evaluation_folders(tmp_path) == [(0, folder)]


def test_half_an_episode_is_removed_when_the_evaluation_goes_on(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "u0001")
    folder.episodes.mkdir(parents=True)
    (folder.episodes / "one-abc-m0.json.77.partial").write_bytes(b"half")
    (folder.episodes / "one-abc-m1.json.gz").write_bytes(b"whole")
    folder.begin(IDENTITY)
    assert [path.name for path in folder.episodes.iterdir()] == ["one-abc-m1.json.gz"]
