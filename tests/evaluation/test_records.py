"""The field's shapes of records become tasks. What cannot be played says why; errors name field and value."""

import hashlib
import json

import pytest
from field_records import (
    DIGITS,
    ISSUE,
    NAME,
    OWNER,
    make_clones,
    multi_swe_record,
    r2e_record,
    swe_bench_record,
    swe_smith_record,
)

from selfplay.evaluation.records import Setup
from selfplay.evaluation.tasks import find_tasks, parse_task, task_record

URL = f"https://github.com/{OWNER}/{NAME}"


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    return make_clones(tmp_path_factory.mktemp("clones"))


def test_a_swe_bench_record_is_its_commit_its_issue_and_its_tests(clones):
    record = swe_bench_record(clones)
    task = parse_task(record)
    assert task.repo == f"{URL}@{record['base_commit']}"
    assert task.issue == ISSUE
    assert (task.fail_to_pass, task.pass_to_pass[0]) == ((DIGITS,), "tests/test_numbers.py::test_mean")
    assert "swebench/sweb.eval.x86_64.tiny-owner_1776_tiny-3:latest" in task.setup.images


def test_lists_of_ids_are_read_as_swe_gym_writes_them(clones):
    task = parse_task(swe_bench_record(clones, FAIL_TO_PASS=[DIGITS], PASS_TO_PASS=[]))
    assert (task.fail_to_pass, task.pass_to_pass) == ((DIGITS,), ())


def test_a_record_of_swe_bench_pro_has_lower_case_ids_and_more_text(clones):
    record = swe_bench_record(
        clones,
        fail_to_pass=f"['{DIGITS}']",
        pass_to_pass="[]",
        requirements="Keep the name.",
        interface="No new one.",
        dockerhub_tag="tiny.tiny-3",
        repo_language="python",
    )
    del record["FAIL_TO_PASS"], record["PASS_TO_PASS"]
    task = parse_task(record)
    assert task.fail_to_pass == (DIGITS,)
    assert task.issue == f"{ISSUE}\n\nRequirements:\n\nKeep the name.\n\nInterface:\n\nNo new one."
    assert (task.setup.images, task.setup.folder) == (("jefzda/sweap-images:tiny.tiny-3",), "/app")


def test_a_record_of_swe_rebench_names_python_packages_and_image(clones):
    config = {
        "python": "3.9",
        "pip_packages": ["pytest-mock"],
        "test_cmd": "pytest -rA",
        "install": "pip install .",
    }
    task = parse_task(swe_bench_record(clones, install_config=config, docker_image="swerebench/tiny:3"))
    assert (task.setup.python, task.setup.packages) == ("3.9", ("pytest-mock",))
    assert task.setup.images == ("swerebench/tiny:3",)


def test_a_record_of_another_language_needs_an_image_and_a_log_parser_that_is_known(clones):
    config = {"test_cmd": ["go test -v ./..."], "log_parser": "parse_log_gotest"}
    given = {"language": "go", "install_config": config, "image_name": "swerebench/tiny:3"}
    setup = parse_task(swe_bench_record(clones, **given)).setup
    assert (setup.test, setup.parser, setup.image_only, setup.left_out) == (
        "go test -v ./...",
        "pass-fail",
        True,
        "",
    )
    for missing in ("image_name", "install_config"):
        left_out = parse_task(swe_bench_record(clones, **{**given, missing: None})).setup.left_out
        assert left_out.startswith("its tests are in go (language)")


def test_an_option_among_the_packages_of_a_record_is_not_given_to_pip(clones):
    config = {"pip_packages": ["pytest-mock", "--index-url=https://elsewhere.invalid"]}
    left_out = parse_task(swe_bench_record(clones, install_config=config)).setup.left_out
    assert "an option of pip" in left_out


def test_the_patch_of_a_swe_smith_record_is_the_bug(clones):
    record = swe_smith_record(clones)
    task = parse_task(record)
    assert task.repo == f"{URL}@{record['repo'][-8:]}"
    assert task.setup.patch_is_bug
    assert (task.patch, task.test_patch) == (record["patch"], "")


def test_an_r2e_record_has_its_patch_and_its_ids_from_contents_and_logs(clones):
    task = parse_task(r2e_record(clones))
    assert task.fail_to_pass == ("r2e_tests/test_1.py::TestAll::test_digits",)
    assert task.pass_to_pass == ("r2e_tests/test_1.py::TestAll::test_mean",)
    assert "+    return [int(char) for char in str(abs(number))]" in task.patch
    assert "+++ b/r2e_tests/test_1.py" in task.test_patch


def test_a_multi_swe_record_has_its_ids_in_objects_and_its_issue_in_a_list(clones):
    others = {"n2p_tests": {"of another record": None}}
    task = parse_task(multi_swe_record(clones, **others))
    assert (task.instance_id, task.fail_to_pass) == (f"{OWNER}__{NAME}-3", (DIGITS,))
    assert task.issue == "digits() fails\n\nfor negative numbers"


def test_records_of_other_languages_say_why_they_are_left_out(clones):
    java = parse_task(multi_swe_record(clones, lang="java"))
    go = parse_task(swe_bench_record(clones, repo_language="go"))
    assert java.setup.left_out.startswith("its tests are in java (lang)")
    assert go.setup.left_out.startswith("its tests are in go (repo_language)")


def test_tasks_of_every_shape_can_be_written_and_read_again(clones):
    shapes = (swe_bench_record, swe_smith_record, r2e_record, multi_swe_record)
    for task in (parse_task(shape(clones)) for shape in shapes):
        assert parse_task(task_record(task)) == task


def test_frozen_tasks_keep_their_digests():
    """Folders of earlier evaluations name these digests; another one would make them another evaluation."""

    def digest(name):
        return hashlib.sha256("".join(task.digest for task in find_tasks([name])).encode()).hexdigest()[:16]

    assert (digest("own"), digest("human")) == ("9052d4f082849af8", "c5fb10ec4bc4fd10")


# ---- base_commit of plain records


def plain(**changes):
    record = {"instance_id": "x", "repo": "./tiny", "patch": "p", "test_patch": "t"}
    return {**record, "FAIL_TO_PASS": ["a"], "PASS_TO_PASS": [], **changes}


def test_the_base_commit_of_a_plain_record_pins_its_repository():
    assert parse_task(plain(base_commit="abcdef1")).repo == "./tiny@abcdef1"
    assert (
        parse_task(plain(repo="./tiny test=pytest", base_commit="abcdef1")).repo
        == "./tiny@abcdef1 test=pytest"
    )
    assert parse_task(plain(repo="./tiny@abcdef1234", base_commit="abcdef1")).repo == "./tiny@abcdef1234"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_commit": "main"}, "base_commit is 'main', not a commit id"),
        ({"base_commit": "abcdef1", "repo": "./tiny@v1"}, "leave one of them out"),
        ({"base_commit": "abcdef1", "repo": "./tiny@1234567"}, "repo names 1234567: keep one of them"),
        ({"base_commit": "abcdef1", "repo": "pypi:tiny==1.0"}, "which has no commits: leave base_commit out"),
        ({"FAIL_TO_PASS": "tests"}, "FAIL_TO_PASS is 'tests', neither a list"),
        ({"PASS_TO_PASS": {"a": 1}}, "PASS_TO_PASS is {'a': 1}, neither a list"),
        ({"problem_statement": 3}, "problem_statement is not a text"),
        ({"repo": "owner/name"}, "lacks base_commit"),
        ({"repo": "owner/name", "base_commit": "v1"}, "base_commit is 'v1', not a commit id"),
        ({"repo": "o/n", "base_commit": "abcdef1", "FAIL_TO_PASS": 3}, "FAIL_TO_PASS is 3, not a list"),
        ({"repo": "o/n", "image_name": "i"}, "repo is 'o/n' and there is no base_commit: add base_commit"),
        ({"selfplay": {"setup": {"images": "x"}}}, "selfplay.setup.images is 'x', not a list of texts"),
    ],
)
def test_an_error_names_the_field_its_value_and_the_remedy(changes, message):
    with pytest.raises(ValueError) as caught:
        parse_task(plain(**changes))
    assert message in str(caught.value)


def test_an_unknown_name_in_a_setup_is_refused():
    with pytest.raises(ValueError, match=r"selfplay.setup.imagez is not known; known are images"):
        Setup.from_json({"imagez": []})
    assert Setup.from_json(json.loads(json.dumps(Setup(images=("a",)).to_json()))) == Setup(images=("a",))
