"""Records with all fields that the published data sets have, in the formats in which these are published."""

import json

import pytest
from field_records import (
    DIGITS,
    ISSUE,
    make_clones,
    multi_swe_record,
    r2e_record,
    swe_bench_record,
    swe_smith_record,
)

from selfplay.errors import UsageError
from selfplay.evaluation.tasks import parse_task, read_tasks


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    return make_clones(tmp_path_factory.mktemp("clones"))


def without(record, *names):
    return {name: value for name, value in record.items() if name not in names}


def verified(clones):
    return swe_bench_record(clones, difficulty="15 min - 1 hour", hints_text=None)


def gym(clones):
    record = swe_bench_record(clones, FAIL_TO_PASS=[DIGITS], PASS_TO_PASS=[])
    return without(record, "environment_setup_commit")


def pro(clones):
    record = swe_bench_record(
        clones,
        fail_to_pass=f"['{DIGITS}']",
        pass_to_pass="[]",
        requirements="Keep the name.",
        interface="No new interfaces are introduced",
        repo_language="python",
        issue_specificity="['edge_case_bug']",
        issue_categories="['back_end_knowledge']",
        before_repo_set_cmd="git reset --hard\ngit checkout HEAD -- tests/test_numbers.py",
        selected_test_files_to_run="['tests/test_numbers.py']",
        dockerhub_tag="tiny-owner.tiny-3",
    )
    return without(record, "FAIL_TO_PASS", "PASS_TO_PASS", "hints_text", "created_at", "version")


def rebench(clones):
    config = {
        "env_vars": None,
        "env_yml_path": None,
        "install": "pip install -e .[dev]",
        "log_parser": "parse_log_pytest",
        "no_use_env": None,
        "packages": "requirements.txt",
        "pip_packages": ["pytest"],
        "pre_install": ["apt-get update"],
        "python": "3.9",
        "reqs_path": ["requirements/base.txt"],
        "test_cmd": "pytest --no-header -rA --tb=line --color=no -p no:cacheprovider",
    }
    return swe_bench_record(
        clones,
        install_config=config,
        FAIL_TO_PASS=[DIGITS],
        PASS_TO_PASS=[],
        FAIL_TO_FAIL=[],
        PASS_TO_FAIL=[],
        license_name="MIT License",
        requirements="attrs==23.1.0\npytest==8.3.4\n",
        environment="name: tiny\nchannels:\n  - defaults\n",
        meta={"commit_name": "head_commit", "has_test_patch": True, "num_modified_files": 1},
        docker_image="swerebench/sweb.eval.x86_64.tiny-owner_1776_tiny-3",
        image_name="swerebench/sweb.eval.x86_64.tiny-owner_1776_tiny-3",
    )


def multi(clones):
    counts = {
        "passed_count": 1,
        "failed_count": 1,
        "skipped_count": 0,
        "passed_tests": [],
        "failed_tests": [],
    }
    return multi_swe_record(
        clones, fixed_tests={}, run_result=counts, test_patch_result=counts, fix_patch_result=counts
    )


def r2e(clones):
    return r2e_record(
        clones,
        modified_files=["tiny/numbers.py"],
        modified_entity_summaries=[{"ast_type_str": "function_definition", "end_lineno": 9}],
        relevant_files=["tiny/numbers.py"],
        num_non_test_files=1,
        num_non_test_func_methods=1,
        num_non_test_lines=2,
        prompt="You are an expert software engineer …",
        problem_statement=f"Consider this issue.\n[ISSUE]\n{ISSUE}\n[/ISSUE]\n",
    )


SHAPES = (verified, gym, pro, rebench, swe_smith_record, multi, r2e)
FORMATS = ("jsonl", "json", "parquet", "folder")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_published_shape_gives_the_same_task_in_every_format(shape, form, clones, tmp_path):
    record = shape(clones)
    file = tmp_path / f"test.{form}"
    if form == "jsonl":
        file.write_text(json.dumps(record) + "\n")
    elif form == "json":
        file.write_text(json.dumps([record]))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra parquet)")
        parquet = pytest.importorskip("pyarrow.parquet")
        # Parquet knows no empty object; a data set's other records fill it.
        filled = {
            name: {"of another record": None} if value == {} else value for name, value in record.items()
        }
        file = tmp_path / "snapshot"
        (file / "data").mkdir(parents=True)
        (file / "README.md").write_text("# A data set")
        table = pyarrow.Table.from_pylist([filled])
        shard = file / "data" / "test-00000-of-00001.parquet"
        parquet.write_table(table, shard)
        file = shard if form == "parquet" else file
    (task,) = read_tasks(file)
    wanted = parse_task(record)
    assert (task.digest, task.issue, task.setup) == (wanted.digest, wanted.issue, wanted.setup)
    assert task.setup.left_out == ""
    assert task.issue.startswith("digits() fails")
    assert len(task.fail_to_pass) == 1


def test_a_swe_smith_record_is_known_by_its_repository_and_its_image_by_the_published_name(clones):
    record = swe_smith_record(clones)
    published = f"jyangballin/swesmith.x86_64.{record['repo'].partition('/')[2].replace('__', '_1776_')}"
    older = record["image_name"].rpartition("/")[2].replace("_1776_", "__")
    assert parse_task({**record, "image_name": None}).setup.images == (published,)
    assert parse_task(without(record, "image_name")).setup.patch_is_bug
    assert parse_task({**record, "image_name": older}).setup.images == (older, published)
    assert parse_task({**record, "image_name": published}).setup.images == (published,)


def test_an_r2e_record_names_its_image_and_its_issue_stands_between_marks(clones):
    task = parse_task(r2e(clones))
    assert task.setup.images == (r2e(clones)["docker_image"],)
    assert task.issue == ISSUE


def test_a_multi_swe_record_without_a_language_is_known_by_its_tests(clones):
    record = without(multi(clones), "lang")
    assert parse_task(record).setup.left_out == ""
    java = {**record, "test_patch": "--- a/src/T.java\n+++ b/src/T.java\n@@ -1 +1 @@\n-a\n+b\n"}
    assert parse_task(java).setup.left_out.startswith("it names no language (lang), and its test_patch")


def test_a_bad_record_is_named_by_number_and_id_with_the_field_and_a_remedy(clones, tmp_path):
    good, file = verified(clones), tmp_path / "tasks.jsonl"
    bad = [
        {**good, "instance_id": "first", "base_commit": None},
        {**good, "instance_id": "second", "patch": 3},
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in (good, *bad)))
    with pytest.raises(UsageError) as caught:
        read_tasks(file)
    lines = str(caught.value).split("\n")
    assert lines[1] == (
        "  line 2: lacks base_commit (instance_id 'first'); add the commit that `patch` repairs"
    )
    assert lines[2] == "  line 3: patch is 3, not a text (instance_id 'second')"
