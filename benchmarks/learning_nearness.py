"""Classes of bugs by their distance from what a run played: played, in a target's function, or elsewhere.

Reads recordings only. Invariant: each bug is in exactly one class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from selfplay.curriculum.store import Store
from selfplay.errors import SelfplayError
from selfplay.evaluation.tasks import Task
from selfplay.orchestrator.run_folder import RunFolder
from selfplay.source.diffs import parse_patch

PLAYED, SAME_FUNCTION, ELSEWHERE = "played", "not played, in its targets", "not played, in other functions"


def classes_of(tasks: Sequence[Task], run: RunFolder) -> dict[str, list[str]]:
    """Class -> ids of its bugs.

    tasks: bugs in the same repositories, as `selfplay inspect-bugs --tasks` writes them.
    """
    with Store.open(run.database, writer=False) as store:
        played = {(bug.repository, str(bug.task_record()["patch"])) for bug in store.bugs()}
        groups = [
            (group.repository, json.loads(group.target_json))
            for group in store.groups(role="injector")
            if group.target_json
        ]
    targets = {(repository, t["path"], t["first_line"], t["last_line"]) for repository, t in groups}
    found: dict[str, list[str]] = {PLAYED: [], SAME_FUNCTION: [], ELSEWHERE: []}
    for task in tasks:
        repository = task.instance_id.partition("__")[0]
        lines = list(repaired_lines(task.patch))
        is_near = any(
            there == repository and path == where and first <= line <= last
            for path, line in lines
            for there, where, first, last in targets
        )
        found[
            PLAYED if (repository, task.patch) in played else SAME_FUNCTION if is_near else ELSEWHERE
        ].append(task.instance_id)
    return found


def repaired_lines(patch: str) -> Iterator[tuple[str, int]]:
    """Each (file, line) that a repair changes.

    Lines count in the repaired file. A text that is no diff has none.
    """
    try:
        files = parse_patch(patch, len(patch.encode()) + 1).files
    except SelfplayError:
        return
    for file in files:
        for hunk in file.hunks:
            line = hunk.new_start
            for text in hunk.lines:
                if text[:1] in ("+", "-"):
                    yield file.path, line
                line += text[:1] in ("+", " ")
