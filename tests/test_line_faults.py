"""Messages on files with many wrong lines: equal faults together, at most ten, each remedy once."""

import json
from pathlib import Path

import pytest

from selfplay.errors import RepositoryListError, UsageError, listed_faults
from selfplay.evaluation.tasks import find_tasks
from selfplay.repositories.specs import read_repository_list

RECORD = {
    "instance_id": "a",
    "repo": "pypi:toolz==1.0.0",
    "patch": "",
    "test_patch": "",
    "FAIL_TO_PASS": [],
    "PASS_TO_PASS": [],
}


def test_lines_with_the_same_fault_are_one_line_of_the_message():
    faults = [(number, "lacks repo") for number in range(1, 241)]
    assert listed_faults(faults) == "  lines 1–240: lacks repo"


def test_faults_are_in_the_order_of_their_first_lines_with_ranges():
    faults = [(1, "a"), (2, "b"), (3, "a"), (4, "a"), (9, "a")]
    assert listed_faults(faults) == "  lines 1, 3–4, 9: a\n  line 2: b"


def test_scattered_lines_are_counted_after_a_few():
    assert (
        listed_faults([(number, "a") for number in range(1, 40, 2)]) == "  lines 1, 3, 5, 7, and 16 more: a"
    )


def test_at_most_ten_faults_are_listed_then_how_many_more():
    lines = listed_faults([(number, f"fault {number}") for number in range(1, 48)]).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "  … 37 more"


def test_a_remedy_is_said_once():
    assert listed_faults([(1, "'x' is wrong; write y"), (2, "'z' is wrong; write y")]) == (
        "  line 1: 'x' is wrong; write y\n  line 2: 'z' is wrong"
    )


def message_of_tasks(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError) as caught:
        find_tasks([str(path)])
    return str(caught.value)


def test_a_file_of_other_records_has_a_short_message_with_a_remedy(tmp_path):
    record = json.dumps({key: value for key, value in RECORD.items() if key != "repo"})
    message = message_of_tasks(tmp_path / "t.jsonl", [record] * 240)
    assert "240 unusable task record(s), nothing was started:\n  lines 1–240: lacks repo\n" in message
    assert "`selfplay inspect-bugs --tasks FILE` writes some." in message


def test_a_line_that_is_no_json_is_reported_by_the_number_of_its_own_line(tmp_path):
    message = message_of_tasks(tmp_path / "t.jsonl", [json.dumps(RECORD), "name,repo", "x,y"])
    assert "  lines 2–3: is not JSON: Expecting value (column 1)\n" in message
    assert "line 1" not in message


def test_test_ids_of_a_wrong_kind_are_named_by_their_key(tmp_path):
    lines = [
        json.dumps({**RECORD, key: value}) for key in ("FAIL_TO_PASS", "PASS_TO_PASS") for value in ("x", 3)
    ]
    message = message_of_tasks(tmp_path / "t.jsonl", lines)
    assert "line 1: FAIL_TO_PASS is 'x', neither a list of test ids nor the JSON of one" in message
    assert "line 4: PASS_TO_PASS is 3, neither a list of test ids nor the JSON of one" in message


def test_a_list_with_many_wrong_lines_has_a_short_message(tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"wrong{number}\n" for number in range(60)))
    with pytest.raises(RepositoryListError) as caught:
        read_repository_list(tmp_path / "list.txt")
    message = str(caught.value)
    assert len(caught.value.problems) == 60
    assert message.count("\n") == 11
    assert message.endswith("  … 50 more")
    assert message.count("pypi:toolz==1.0.0") == 1
