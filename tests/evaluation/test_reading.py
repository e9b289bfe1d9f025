"""Files of records in every format give the same tasks; what cannot be read says what to do."""

import json
import sys

import pytest
from field_records import make_clones, swe_bench_record

from selfplay.errors import PrerequisiteError, UsageError
from selfplay.evaluation.tasks import find_tasks, read_tasks


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    clones = make_clones(tmp_path_factory.mktemp("clones"))
    return [swe_bench_record(clones, instance_id=f"tiny-{number}") for number in range(3)]


def as_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def ids(tasks):
    return [task.instance_id for task in tasks]


def test_a_json_list_is_read_like_lines(records, tmp_path):
    (tmp_path / "a.jsonl").write_text(as_lines(records))
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    assert read_tasks(tmp_path / "a.json") == read_tasks(tmp_path / "a.jsonl")


def test_a_byte_order_mark_is_no_part_of_the_first_record(records, tmp_path):
    (tmp_path / "a.jsonl").write_text(as_lines(records), encoding="utf-8-sig")
    assert ids(read_tasks(tmp_path / "a.jsonl")) == ["tiny-0", "tiny-1", "tiny-2"]


def test_parquet_is_read_like_lines(records, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra parquet)")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.jsonl").write_text(as_lines(records))
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    assert read_tasks(tmp_path / "a.parquet") == read_tasks(tmp_path / "a.jsonl")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-10])
    with pytest.raises(UsageError, match=r"torn.parquet: .*Is it whole"):
        read_tasks(tmp_path / "torn.parquet")


def test_a_folder_that_datasets_saved_is_read(records, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra parquet)")
    folder = tmp_path / "saved"
    for split, some in (("test", records[:2]), ("dev", records[2:])):
        (folder / split).mkdir(parents=True)
        table = pyarrow.Table.from_pylist(some)
        file = pyarrow.OSFile(str(folder / split / "data-00000-of-00001.arrow"), "wb")
        with file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        (folder / split / "state.json").write_text("{}")
        (folder / split / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text('{"splits": ["test", "dev"]}')
    assert ids(find_tasks([f"{folder}:test"])) == ["tiny-0", "tiny-1"]
    with pytest.raises(UsageError, match=r"has the splits dev, test. Name one, as in --tasks .*saved:test"):
        find_tasks([str(folder)])


def test_parquet_without_pyarrow_says_what_to_install(records, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(PrerequisiteError, match=r"needs pyarrow.*pip install 'selfplay-swe\[parquet\]'"):
        read_tasks(tmp_path / "a.parquet")


def test_a_snapshot_of_the_hub_is_read_with_all_shards_of_a_split(records, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# Tiny")
    (tmp_path / "data" / "test-00000-of-00002.jsonl").write_text(as_lines(records[:1]))
    (tmp_path / "data" / "test-00001-of-00002.jsonl").write_text(as_lines(records[1:]))
    assert ids(find_tasks([str(tmp_path)])) == ["tiny-0", "tiny-1", "tiny-2"]
    with pytest.raises(UsageError, match="has no split 'dev'. It has: test"):
        find_tasks([f"{tmp_path}:dev"])


def test_a_folder_without_records_says_what_is_known(tmp_path):
    with pytest.raises(UsageError, match=r"holds no file of task records. Known are \.jsonl"):
        find_tasks([str(tmp_path)])


def test_a_list_that_is_not_whole_says_so(records, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(records)[:-5])
    with pytest.raises(UsageError, match=r"begins with '\[' and is no JSON list"):
        read_tasks(tmp_path / "a.json")


def test_a_bad_record_is_named_by_its_number_in_its_format(records, tmp_path):
    bad = [records[0], {**records[1], "base_commit": None}]
    (tmp_path / "a.json").write_text(json.dumps(bad))
    (tmp_path / "a.jsonl").write_text("\n" + as_lines(bad))
    with pytest.raises(UsageError, match="  record 2: lacks base_commit"):
        read_tasks(tmp_path / "a.json")
    with pytest.raises(UsageError, match="  line 3: lacks base_commit"):
        read_tasks(tmp_path / "a.jsonl")


def test_a_text_that_is_not_utf_8_says_how_to_convert_it(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"repo": "\xff"}')
    with pytest.raises(UsageError, match="iconv"):
        read_tasks(tmp_path / "a.jsonl")
