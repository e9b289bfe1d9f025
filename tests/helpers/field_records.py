"""Records of the tiny repository in the shapes of the field, and a folder of clones that holds it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tiny_repository import build_tiny_repository

OWNER, NAME = "tiny-owner", "tiny"
DIGITS = "tests/test_numbers.py::test_digits"
ISSUE = "digits() fails for negative numbers\n\n`digits(-120)` should be `[1, 2, 0]`; it raises ValueError."


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def make_clones(folder: Path) -> Path:
    """`folder` with a clone of OWNER/NAME: four commits, the third repairs `digits`."""
    build_tiny_repository(folder / OWNER / NAME, git=True)
    return folder


def swe_bench_record(clones: Path, **changes: Any) -> dict[str, Any]:
    """The repair of `digits` as SWE-bench writes it: ids are JSON texts."""
    clone = clones / OWNER / NAME
    third, second = git(clone, "log", "--format=%H", "--reverse").split()[2:0:-1]
    record = {
        "repo": f"{OWNER}/{NAME}",
        "instance_id": f"{OWNER}__{NAME}-3",
        "base_commit": second,
        "patch": git(clone, "diff", second, third, "--", "tiny"),
        "test_patch": git(clone, "diff", second, third, "--", "tests"),
        "problem_statement": ISSUE,
        "hints_text": "",
        "created_at": "2020-01-01T00:00:00Z",
        "version": "0.4",
        "FAIL_TO_PASS": json.dumps([DIGITS]),
        "PASS_TO_PASS": json.dumps(
            ["tests/test_numbers.py::test_mean", "tests/test_numbers.py::test_is_even"]
        ),
        "environment_setup_commit": second,
    }
    return {**record, **changes}


def swe_smith_record(clones: Path, **changes: Any) -> dict[str, Any]:
    """The third commit's repair undone, as SWE-smith writes it: `patch` is the bug, ids are lists."""
    clone = clones / OWNER / NAME
    third, second = git(clone, "log", "--format=%H", "--reverse").split()[2:0:-1]
    record = {
        "instance_id": f"{OWNER}__{NAME}.{third[:8]}.func_pm__1",
        "patch": git(clone, "diff", third, second, "--", "tiny"),
        "FAIL_TO_PASS": [DIGITS],
        "PASS_TO_PASS": ["tests/test_numbers.py::test_mean", "tests/test_text.py::test_is_palindrome"],
        "image_name": f"nowhere.invalid/swesmith.x86_64.{OWNER}_1776_{NAME}.{third[:8]}",
        "repo": f"swesmith/{OWNER}__{NAME}.{third[:8]}",
        "problem_statement": ISSUE,
    }
    return {**record, **changes}


def r2e_record(clones: Path, **changes: Any) -> dict[str, Any]:
    """The third commit as R2E-Gym writes it: contents of files, and the logs of its tests."""
    clone = clones / OWNER / NAME
    third, second = git(clone, "log", "--format=%H", "--reverse").split()[2:0:-1]
    old, new = (git(clone, "show", f"{commit}:tiny/numbers.py") for commit in (second, third))
    test = "from tiny.numbers import digits, mean\n\n\nclass TestAll:\n    def test_digits(self):\n"
    test += "        assert digits(-120) == [1, 2, 0]\n\n    def test_mean(self):\n"
    test += "        assert mean([2]) == 2\n"
    summary = "=== short test summary info ===\n"
    logs = [
        f"{summary}PASSED r2e_tests/test_1.py::TestAll::test_mean\n"
        f"{word} r2e_tests/test_1.py::TestAll::test_digits\n"
        for word in ("FAILED", "PASSED")
    ]
    record = {
        "repo_name": f"{OWNER}/{NAME}",
        "docker_image": f"namanjain12/tiny_final:{third}",
        "commit_hash": third,
        "parsed_commit_content": json.dumps(
            {
                "old_commit_hash": second,
                "new_commit_hash": third,
                "file_diffs": [
                    {
                        "header": {"file": {"path": "tiny/numbers.py"}},
                        "old_file_content": old,
                        "new_file_content": new,
                    }
                ],
            }
        ),
        "execution_result_content": json.dumps(
            {
                "test_file_names": ["test_1.py"],
                "test_file_codes": [test],
                "old_commit_res_stdout": logs[0],
                "new_commit_res_stdout": logs[1],
            }
        ),
        "expected_output_json": json.dumps({"TestAll.test_mean": "PASSED", "TestAll.test_digits": "PASSED"}),
        "problem_statement": ISSUE,
    }
    return {**record, **changes}


def multi_swe_record(clones: Path, **changes: Any) -> dict[str, Any]:
    """The repair as Multi-SWE writes it: ids are keys of objects."""
    record = swe_bench_record(clones)
    status = {"run": "FAIL", "test": "FAIL", "fix": "PASS"}
    made = {
        "org": OWNER,
        "repo": NAME,
        "number": 3,
        "state": "closed",
        "title": "Fix digits",
        "body": "",
        "base": {"label": "main", "ref": "main", "sha": record["base_commit"]},
        "resolved_issues": [{"number": 2, "title": "digits() fails", "body": "for negative numbers"}],
        "fix_patch": record["patch"],
        "test_patch": record["test_patch"],
        "lang": "python",
        "f2p_tests": {DIGITS: status},
        "p2p_tests": {"tests/test_numbers.py::test_mean": status},
        "s2p_tests": {},
        "n2p_tests": {},
    }
    return {**made, **changes}
