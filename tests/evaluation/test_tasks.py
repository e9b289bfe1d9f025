"""Task records: they are read strictly and found by set or file; a limit always keeps the same ones."""

import json
import random

import pytest

from selfplay.errors import UsageError
from selfplay.evaluation.tasks import (
    Task,
    choose_subset,
    find_tasks,
    parse_task,
    read_tasks,
    task_record,
    write_tasks,
)


def a_task(name: str, repo: str = "pypi:toolz==1.0.0", **values) -> Task:
    return Task(name, repo, "patch", "test_patch", ("a::b",), ("a::c",), {"bug_inject.diff": "x"}, **values)


def many(count: int) -> list[Task]:
    repos = ["pypi:toolz==1.0.0", "pypi:toolz==0.12.0", "pypi:parse==1.20.2", "pypi:inflection==0.5.1"]
    return [
        a_task(f"bug-{number}", repos[number * number % 3 if number % 5 else 3]) for number in range(count)
    ]


def ids(tasks):
    return [task.instance_id for task in tasks]


def test_a_record_reads_back_equal():
    task = a_task("one", failure="E assert", order=2, attempt_patch="p", set="own", part="unseen")
    assert parse_task(task_record(task)) == task


def test_a_subset_does_not_depend_on_the_order_of_the_file():
    tasks = many(40)
    shuffled = tasks[:]
    random.Random(3).shuffle(shuffled)
    assert set(ids(choose_subset(tasks, 12))) == set(ids(choose_subset(shuffled, 12)))


def test_a_subset_is_pinned_so_that_published_figures_stay_comparable():
    assert ids(choose_subset(many(20), 6)) == ["bug-0", "bug-5", "bug-6", "bug-7", "bug-11", "bug-15"]


def test_a_smaller_subset_is_part_of_a_larger_one():
    tasks = many(40)
    assert all(
        set(ids(choose_subset(tasks, size))) < set(ids(choose_subset(tasks, size + 1)))
        for size in range(1, 30)
    )


def test_a_subset_is_spread_over_projects_of_any_size():
    tasks = [a_task(f"many-{n}") for n in range(30)] + [
        a_task(f"few-{n}", "pypi:parse==1.20.2") for n in range(3)
    ]
    assert sum(task.repository == "parse" for task in choose_subset(tasks, 6)) == 3


def test_revisions_of_one_project_are_one_repository():
    lines = [
        "pypi:toolz==1.0.0",
        "pypi:toolz==0.12.0..1.0.0",
        "https://host/owner/toolz.git@v1",
        "https://host/owner/toolz",
    ]
    assert {a_task("x", line).repository for line in lines} == {"toolz"}


def test_a_subset_keeps_the_order_of_the_tasks():
    tasks = many(30)
    kept = choose_subset(tasks, 10)
    assert kept == [task for task in tasks if task in kept]


def test_a_digest_changes_with_the_bug_and_not_with_its_label():
    task = a_task("one", set="own")
    assert task.digest == a_task("one", set="other", part="p").digest
    assert task.digest != a_task("one", set="own", failure="E").digest


def test_an_unknown_set_is_reported_with_the_known_ones(tmp_path):
    with pytest.raises(
        UsageError, match="no task set and no file named 'owm'. Sets that come with selfplay: "
    ):
        find_tasks(["owm"])


def test_files_are_read_together_and_may_not_share_an_id(tmp_path):
    write_tasks([a_task("one"), a_task("two")], tmp_path / "a.jsonl")
    write_tasks([a_task("three")], tmp_path / "b.jsonl")
    write_tasks([a_task("two")], tmp_path / "c.jsonl")
    found = find_tasks([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert [(task.instance_id, task.set) for task in found] == [("one", "a"), ("two", "a"), ("three", "b")]
    with pytest.raises(UsageError, match="the task 'two' is in 'a' and in"):
        find_tasks([str(tmp_path / "a.jsonl"), str(tmp_path / "c.jsonl")])


def test_test_ids_may_be_the_json_text_of_a_list(tmp_path):
    record = task_record(a_task("one"))
    (tmp_path / "t.jsonl").write_text(json.dumps({**record, "FAIL_TO_PASS": json.dumps(["a::b"])}) + "\n")
    assert read_tasks(tmp_path / "t.jsonl")[0].fail_to_pass == ("a::b",)


def test_written_tasks_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repo").mkdir()
    write_tasks([a_task("one", "./repo")], tmp_path / "t.jsonl")
    assert read_tasks(tmp_path / "t.jsonl")[0].repo == str(tmp_path / "repo")
