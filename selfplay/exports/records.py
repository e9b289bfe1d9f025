"""Bugs as task records of SWE-bench and SWE-smith, which `selfplay eval --tasks` reads again.

A bug of a run is no commit: `base_commit` is the original. So a SWE-bench record keeps under `selfplay` the
artifact, which makes the state that a solver starts in. `patch` and `test_patch` apply to that state.
A SWE-smith record needs no such state: its `patch` is the bug, on the original. It has the seven fields, and
`selfplay` only where its repository is not at OWNER/NAME on GitHub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfplay.curriculum.rows import BugRow
from selfplay.errors import PatchError
from selfplay.evaluation.records import GIT_HOST
from selfplay.exports.base import RunExport, write_lines
from selfplay.exports.trajectories import file_name
from selfplay.repositories.specs import RepositorySpec
from selfplay.source.diffs import parse_patch
from selfplay.verdicts.bug import MAX_STORED_PATCH

ELSEWHERE = "selfplay"  # the owner of a repository that has none, such as a folder
OWNED = re.compile(r"(?:https|ssh|file)://[^/]*/(?:.*/)?(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?:\.git)?/?")


def write_swe_bench(run: RunExport, path: Path) -> int:
    """SWE-bench records as JSONL; test ids are the JSON texts of lists."""
    return write_lines((swe_bench(run, bug) for bug in run.bugs()), path)


def swe_bench(run: RunExport, bug: BugRow) -> dict[str, Any]:
    """One record: SWE-bench's fields, and `selfplay` with what makes the solver's state."""
    record = bug.task_record()
    return {
        "repo": "/".join(owner_and_name(run.specs[bug.repository], bug)),
        "instance_id": record["instance_id"],
        "base_commit": bug.base_commit,
        "patch": record["patch"],
        "test_patch": record["test_patch"],
        "problem_statement": "",
        "hints_text": "",
        "created_at": datetime.fromtimestamp(bug.created_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": "",
        "FAIL_TO_PASS": json.dumps(list(bug.fail_to_pass)),
        "PASS_TO_PASS": json.dumps(list(bug.pass_to_pass)),
        "environment_setup_commit": bug.base_commit,
        "selfplay": {
            "repo": run.line_of(bug),
            "artifact": dict(bug.artifact),
            "attempt_patch": bug.attempt_patch,
            "failure": bug.failure,
            "order": bug.order,
        },
    }


def write_swe_smith(run: RunExport, path: Path) -> int:
    """SWE-smith records as JSONL."""
    return write_lines(_swe_smith_records(run), path)


def _swe_smith_records(run: RunExport) -> Iterator[dict[str, Any]]:
    for bug in run.bugs():
        patch = whole_patch(bug)
        if patch is None:
            run.left_out["second-order bugs change one file twice, which one patch cannot say"] += 1
            continue
        spec = run.specs[bug.repository]
        owner, name = owner_and_name(spec, bug)
        commit = bug.base_commit[:8]
        record: dict[str, Any] = {
            "instance_id": bug.task_record()["instance_id"],
            "patch": patch,
            "FAIL_TO_PASS": list(bug.fail_to_pass),
            "PASS_TO_PASS": list(bug.pass_to_pass),
            "image_name": f"swesmith.x86_64.{owner}_1776_{name}.{commit}".lower(),
            "repo": f"swesmith/{owner}__{name}.{commit}",
            "problem_statement": "",
        }
        if not is_on_git_host(spec):
            record["selfplay"] = {"repo": run.line_of(bug), "setup": {"patch_is_bug": True}}
        yield record


def whole_patch(bug: BugRow) -> str | None:
    """The diff from the original to the bug. None for a second-order bug whose two diffs share a file."""
    inject = bug.artifact["bug_inject.diff"]
    if not bug.attempt_patch:
        return inject
    try:
        paths = [parse_patch(diff, MAX_STORED_PATCH).changed_paths for diff in (inject, bug.attempt_patch)]
    except PatchError:
        return None
    return None if set(paths[0]) & set(paths[1]) else inject + bug.attempt_patch


def owner_and_name(spec: RepositorySpec, bug: BugRow) -> tuple[str, str]:
    """The owner and the name of a repository; one without an owner gets selfplay's."""
    if spec.kind == "git" and (found := OWNED.fullmatch(spec.location)):
        return found["owner"], found["name"]
    return ELSEWHERE, file_name(bug.repository) or "repository"


def is_on_git_host(spec: RepositorySpec) -> bool:
    """Whether readers of the field find the repository by its owner and name."""
    return (
        spec.kind == "git"
        and spec.location.startswith(f"{GIT_HOST}/")
        and not any((spec.install, spec.test, spec.parser))
    )
